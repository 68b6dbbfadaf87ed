"""An image encoder with one classifier per task: it trains encoders on labels.

Its encoder is what `lit_decoder` and other systems begin with, under the same names.
Letters: B rows, C labels of all tasks together.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from twelve_in_one.config.settings import OfficialOptions, OptimizerOptions
from twelve_in_one.models.image_encoders import ImageEncoderConfig, image_encoder, pixel_range
from twelve_in_one.models.layers import fold_key
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.optim import param_groups
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.systems import fields, objectives
from twelve_in_one.systems.base import AnyTask, Batch, Facts, Inputs, Objective, Params, System
from twelve_in_one.tasks.kinds import KINDS, Candidates
from twelve_in_one.tasks.losses import Sums

SYSTEM = "image_classifier"


@dataclasses.dataclass(frozen=True)
class ImageClassifierConfig:
    """Sizes and numerics.

    Attributes:
      encoder: a Vision Transformer that pools its tokens, or an EfficientNet; it has no classes of
        its own.
      label_smoothing: share of the target spread evenly over all classes.
      classes: (task, number of its classes) of all tasks.
    """

    encoder: ImageEncoderConfig
    label_smoothing: float = 0.0
    classes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        pools = not isinstance(self.encoder, ViTConfig) or self.encoder.pool != "none"
        if not pools or self.encoder.num_classes:
            raise ValueError("encoder: should pool its tokens, and have num_classes 0")
        if self.encoder.image_size[0] != self.encoder.image_size[1]:
            raise ValueError(f"encoder.image_size {self.encoder.image_size} should be a square")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} should be in [0, 1)")


class ImageClassifier(nn.Module):
    """Encoder and classifiers."""

    config: ImageClassifierConfig

    @nn.compact
    def __call__(
        self, images: jax.Array, dropout_key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Scores: task -> float32[B, its classes].

        Args:
          images: float[B, S, S, 3] in the encoder's range.
          dropout_key: of dropout and drop path, or None.
        """
        config = self.config
        _, aux = image_encoder(config.encoder, name="encoder")(images, fold_key(dropout_key, 0))
        zeros, axes = nn.initializers.zeros_init(), ("visual_embed", "labels")
        return {
            task: nn.Dense(
                count,
                dtype=config.encoder.dtype,
                kernel_init=nn.with_logical_partitioning(zeros, axes),
                bias_init=nn.with_logical_partitioning(zeros, axes[1:]),
                name=f"head_{task}",
            )(aux["pooled"]).astype(jnp.float32)
            for task, count in config.classes
        }


@dataclasses.dataclass(frozen=True)
class ImageClassifierSystem(System):
    """The classifier with its config."""

    config: ImageClassifierConfig

    name = SYSTEM
    version = 1
    config_type = ImageClassifierConfig
    may_be_zero = ("num_classes", "num_registers", "window", "cropped_positions")
    inputs = Inputs(answers="head_{head}/")
    pixels = True
    image_kinds = {"classify": "class"}
    mixes = True
    optional = ("head_",)

    @classmethod
    def from_fields(cls, fields_: Mapping[str, Any]) -> Self:
        return cls(fields.build(ImageClassifierConfig, fields_))

    @classmethod
    def resolve(cls, fields_: Mapping[str, Any], facts: Facts) -> Self:
        classes = tuple((name, labels) for name, labels, _ in facts.own_heads)
        return cls.from_fields({**fields_, "classes": classes})

    def init(self, key: jax.Array) -> Params:
        return nn.unbox(_init(self.config, key))

    def abstract(self) -> Params:
        return _abstract(self.config)

    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        return param_groups.kernels_decay(options)

    @property
    def image_size(self) -> int:
        return self.config.encoder.image_size[0]

    @property
    def pixel_range(self) -> tuple[float, float]:
        return pixel_range(self.config.encoder)

    def objective(self, tasks: Sequence[AnyTask]) -> Objective:
        smoothing = self.config.label_smoothing

        def rows(
            params: Params, batch: Batch, dropout_key: jax.Array | None, part: jax.Array
        ) -> tuple[jax.Array, jax.Array, None]:
            outputs = self._apply(params, batch, dropout_key)
            of_task = [outputs[task.name] for task in tasks]
            # [B, parts]: the loss that each row would have as one of each task
            found = [_row_loss(logits, batch["targets"], smoothing) for logits in of_task]
            by_task, right = (jnp.stack(column, 1) for column in zip(*found, strict=True))
            rows = jnp.arange(len(part))
            return by_task[rows, part], right[rows, part], None

        return objectives.of_rows(self, tasks, rows)

    def _apply(
        self, params: Params, batch: Batch, dropout_key: jax.Array | None
    ) -> dict[str, jax.Array]:
        return ImageClassifier(self.config).apply({"params": params}, batch["images"], dropout_key)

    def judge(self, task: AnyTask) -> Callable[[Params, Batch], tuple[Sums, Candidates]]:
        kind = KINDS[task.kind]

        def judge(params: Params, batch: Batch) -> tuple[Sums, Candidates]:
            outputs = self._apply(params, batch, None)
            return kind.loss(task, outputs, batch), kind.candidates(task, outputs[task.head], batch)

        return judge

    def sizes(self, task: AnyTask) -> dict[str, Any]:
        return {"num_labels": dict(self.config.classes)[task.name]}


def _row_loss(
    logits: jax.Array, targets: jax.Array, smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and whether the best class is the target, [B]; rows of other tasks, whose
    targets are no classes here, get numbers that are not used.
    """
    targets = jnp.clip(targets, 0, logits.shape[-1] - 1)
    one_hot = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, one_hot), jnp.argmax(logits, -1) == targets


@functools.lru_cache(maxsize=16)
def _abstract(config: ImageClassifierConfig) -> Params:
    return jax.eval_shape(functools.partial(_init, config), jax.random.key(0))


def _init(config: ImageClassifierConfig, key: jax.Array) -> Params:
    images = jnp.zeros((1, *config.encoder.image_size, 3), config.encoder.dtype)
    return ImageClassifier(config).init(key, images)["params"]
