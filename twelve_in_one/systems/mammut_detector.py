"""MaMMUT as an open-vocabulary detector, as a system.

It begins with the weights of `mammut`, learns boxes of some classes, and is then scored on those
and on others. Vectors of names are computed once, as training begins.

Letters: B photos, G true boxes, C classes, T sentences for a class, L tokens, E size of vectors.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.config.settings import ConfigError, OfficialOptions, OptimizerOptions
from twelve_in_one.models import mammut_detector
from twelve_in_one.models.detection.open_vocabulary import DetectorConfig, Learnt
from twelve_in_one.models.mammut import MammutConfig
from twelve_in_one.models.mammut_detector import Classes, MammutDetector, MammutDetectorConfig
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.systems import fields
from twelve_in_one.systems.base import (
    AnyTask,
    Batch,
    Detected,
    Facts,
    Inputs,
    Objective,
    Params,
    System,
)
from twelve_in_one.tasks import detection
from twelve_in_one.tasks.losses import Sums

SYSTEM = "mammut_detector"
PARTS = ("proposals", "proposal_boxes", "classes", "boxes", "masks")
_BACKBONE = r"(encoder|bridge|image_map)/.*"


@dataclasses.dataclass(frozen=True)
class MammutDetectorSystemConfig(MammutDetectorConfig):
    """The model, and how it is trained.

    Attributes:
      backbone_rate: factor on the learning rate of the encoder; 0 keeps it as it is.
      max_boxes: G, most boxes of a photo that are learnt.
    """

    backbone_rate: float = 0.1
    max_boxes: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone_rate < 0 or self.max_boxes < 1:
            raise ValueError(
                f"backbone_rate {self.backbone_rate} should not be negative, and max_boxes "
                f"{self.max_boxes} positive"
            )
        if self.encoder.image_size[0] != self.encoder.image_size[1]:
            raise ValueError(f"encoder.image_size {self.encoder.image_size} should be a square")


@dataclasses.dataclass(frozen=True)
class MammutDetectorSystem(System):
    """The model with its config."""

    config: MammutDetectorSystemConfig

    name = SYSTEM
    version = 1
    config_type = MammutDetectorSystemConfig
    data_decides = ("num_classes",)
    may_be_zero = (
        *fields.OF_ENCODERS,
        *("contrast_chunk", "pad_id", "eos_id", "start_id"),
        *("mask_samples", "mask_layers", "box_layers", "region_temperature"),
    )
    inputs = Inputs(words="decoder/", answers="vocabulary")
    pixels = True
    image_kinds = {"detect": "boxes"}
    optional = ("vocabulary", "background")

    @classmethod
    def from_fields(cls, fields_: Mapping[str, Any]) -> Self:
        return cls(fields.build(MammutDetectorSystemConfig, fields_))

    @classmethod
    def resolve(cls, fields_: Mapping[str, Any], facts: Facts) -> Self:
        pad_id, eos_id, start_id = facts.special_ids
        ((_, count, _),) = facts.own_heads
        own = dict(
            decoder={**fields_["decoder"], "vocab_size": facts.vocab_size},
            pad_id=pad_id,
            eos_id=eos_id,
            start_id=start_id,
            num_classes=count,
            novel=facts.novel,
        )
        try:
            return cls.from_fields({**fields_, **own})
        except ValueError as error:
            raise ConfigError([f"model: {error}"]) from error

    @classmethod
    def misfits(
        cls, fields_: Mapping[str, Any], tasks: Mapping[str, tuple[AnyTask, Any]]
    ) -> list[str]:
        if len(tasks) == 1:
            return []
        return [f"tasks: a detector has one list of classes, so one task, not {', '.join(tasks)}"]

    # Parameters.

    def init(self, key: jax.Array) -> Params:
        return nn.unbox(mammut_detector.init_params(self.config, key))

    def abstract(self) -> Params:
        return mammut_detector.abstract_params(self.config)

    @property
    def frozen(self) -> tuple[str, ...]:
        detector = self.config.detector
        found = [r"decoder/.*", "log_scale", r"text_map/.*"]
        found += ["vocabulary"] if detector.classifier == "text" else []
        found += ["background"] if detector.background == "empty" else []
        return tuple(
            pattern
            for pattern in found
            if self.config.text_projection or not pattern.startswith("text_map")
        )

    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        return (
            *(ParamGroup(*group) for group in options.groups),
            ParamGroup(_BACKBONE, self.config.backbone_rate),
            ParamGroup(".*/(kernel|embedding)", 1.0, options.weight_decay),
            ParamGroup(".*"),
        )

    def derived(self, params: Params, sentences: jax.Array) -> dict[str, jax.Array]:
        detector, found = self.config.detector, {}
        if detector.classifier == "text":
            found["vocabulary"] = self.class_vectors(params, sentences)
        if detector.background == "empty":
            empty = jnp.full((1, 1, sentences.shape[-1]), self.config.pad_id, jnp.int32)
            empty = empty.at[..., 0].set(self.config.eos_id)
            found["background"] = self.class_vectors(params, empty)[0]
        return found

    def class_vectors(self, params: Params, sentences: jax.Array) -> jax.Array:
        """Unit vectors float32[C, E] of classes with sentences int32[C, T, L]."""
        return self._apply(params, sentences, method="class_vectors")

    # Computation.

    @property
    def image_size(self) -> int:
        return self.config.encoder.image_size[0]

    def objective(self, tasks: Sequence[AnyTask]) -> Objective:
        detector = self.config.detector
        parts = PARTS if detector.mask_samples else PARTS[:-1]

        def loss(params: Params, batch: Batch, dropout_key: jax.Array | None) -> Sums:
            found = self._apply(params, batch, dropout_key, method="learn")
            rows = jnp.stack([jnp.stack(pair) for pair in self._losses(found)][: len(parts)])
            rows = jnp.where(batch["_mask"][None, None], rows, 0.0)
            return Sums(rows[:, 0].sum(-1), rows[:, 1].sum(-1), count(batch))

        def count(batch: Batch) -> jax.Array:
            return jnp.full(len(parts), jnp.sum(batch["_mask"], dtype=jnp.float32))

        names = tuple(task.name for task in tasks)
        weights = detector.loss_weights[: len(parts)]
        return Objective((self, names), parts, loss, count, weights=weights)

    def _losses(self, found: Learnt) -> list[tuple[jax.Array, jax.Array]]:
        """Loss and score [B] of all parts; scores are, in their order: recall of the true boxes,
        overlap of positive anchors, right classes of objects, and of pixels of masks.
        """
        config = self.config.detector
        if config.proposals == "centerness":
            scores = detection.centerness_loss
            boxes = detection.iou_loss(
                found.anchor_boxes, found.anchor_truth, found.anchor_positive
            )
            overlap = 1 - boxes
        else:
            scores = detection.objectness_loss
            boxes = detection.delta_loss(
                found.anchor_boxes,
                found.anchor_truth,
                found.anchor_positive,
                found.anchor_counted,
                config.delta[1],
            )
            overlap = jnp.zeros_like(boxes)
        right = jnp.argmax(found.classes, axis=-1) == found.labels
        pixels = jnp.mean((found.masks > 0) == found.mask_targets, axis=(2, 3))
        deltas = jnp.abs(found.deltas - found.delta_targets).max(axis=-1)
        return [
            (
                scores(found.anchor_logits, found.anchor_targets, found.anchor_counted),
                found.recall,
            ),
            (boxes, overlap),
            (
                detection.class_loss(
                    found.classes, found.labels, found.counted, config.background_weight
                ),
                detection.share(right, found.positive),
            ),
            (
                detection.delta_loss(
                    found.deltas,
                    found.delta_targets,
                    found.positive,
                    found.counted,
                    config.delta[0],
                ),
                detection.share(deltas < 1, found.positive),
            ),
            (
                detection.mask_loss(found.masks, found.mask_targets, found.mask_counted),
                detection.share(pixels, found.mask_counted),
            ),
        ]

    def _apply(self, params: Params, *inputs: Any, method: str) -> Any:
        return MammutDetector(self.config).apply({"params": params}, *inputs, method=method)

    def detect(self, params: Params, batch: Batch, classes: Classes | None = None) -> Detected:
        found, proposals = self._apply(
            params, batch["images"], batch["size"], classes, method="detect"
        )
        rows = jnp.sum(batch["_mask"], dtype=jnp.float32)
        return Detected(Sums(jnp.zeros(()), jnp.zeros(()), rows), *found, proposals)

    def validation_key(self, task: AnyTask) -> Hashable:
        return (self,)

    def sizes(self, task: AnyTask) -> dict[str, Any]:
        config = self.config
        masks = config.detector.mask_samples > 0
        return {
            "max_tokens": config.text_length,
            "max_boxes": config.max_boxes,
            "mask_side": 28 if masks else 0,
        }


def detector_of(
    model: MammutConfig, detector: DetectorConfig, **more: Any
) -> MammutDetectorSystemConfig:
    """A detector on a MaMMUT; `more` are other fields of `MammutDetectorSystemConfig`."""
    own = {field.name: getattr(model, field.name) for field in dataclasses.fields(MammutConfig)}
    return MammutDetectorSystemConfig(**own | dict(detector=detector) | more)
