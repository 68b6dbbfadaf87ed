"""MaMMUT as a system: pairs are learnt in two passes at once, other texts in the generative one.

A row of group "pairs" has a contrastive loss against all other pairs of its batch, on all devices,
and the generative loss of its text; rows of other groups have the latter alone. Both are parts of
one backward pass and are logged apart.

Letters: B rows, K tokens of a picture, L tokens of a text, E size of a vector.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models import mammut, reading
from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.models.layers import fold_key
from twelve_in_one.models.mammut import Mammut, MammutConfig
from twelve_in_one.systems import fields, objectives
from twelve_in_one.systems.base import (
    AnyTask,
    Batch,
    Embedded,
    Facts,
    Inputs,
    Joint,
    Objective,
    Params,
)
from twelve_in_one.systems.text_system import TextSystem, hide_some
from twelve_in_one.tasks import contrastive, losses
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.tasks.losses import Sums

SYSTEM = "mammut"
# Parts of the loss; the last is none, but its score is the share of texts that a batch repeats.
CAPTIONS, CONTRAST, REPEATED = "captions", "contrast", "repeated"


@dataclasses.dataclass(frozen=True)
class MammutSystemConfig(MammutConfig):
    """The model, and what its tasks need.

    Attributes:
      max_prompt: longest question or prompt.
      hidden_images: share of the training rows whose decoder does not see the picture, from which
        it learns what words alone say; needed to score that.
      beams: of captions; all other texts are written greedily.
    """

    max_prompt: int = 32
    hidden_images: float = 0.0
    beams: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hidden_images < 1:
            raise ValueError(f"hidden_images {self.hidden_images} should be in [0, 1)")
        if self.encoder.image_size[0] != self.encoder.image_size[1]:
            raise ValueError(f"encoder.image_size {self.encoder.image_size} should be a square")


@dataclasses.dataclass(frozen=True)
class MammutSystem(TextSystem):
    """The model with its config."""

    config: MammutSystemConfig

    name = SYSTEM
    config_type = MammutSystemConfig
    may_be_zero = (
        "num_registers",
        "num_classes",
        "window",
        "cropped_positions",
        "contrast_chunk",
        "pad_id",
        "eos_id",
        "start_id",
    )
    inputs = Inputs(words="decoder/")
    image_kinds = {**TextSystem.image_kinds, "pairs": "pairs", "zero_shot": "names"}

    @classmethod
    def from_fields(cls, fields_: Mapping[str, Any]) -> Self:
        return cls(fields.build(MammutSystemConfig, fields_))

    @classmethod
    def resolve(cls, fields_: Mapping[str, Any], facts: Facts) -> Self:
        decoder = {**fields_["decoder"], "vocab_size": facts.vocab_size}
        return cls._resolved(fields_, facts, decoder=decoder)

    @classmethod
    def misfits(
        cls, fields_: Mapping[str, Any], tasks: Mapping[str, tuple[AnyTask, Any]]
    ) -> list[str]:
        pairs = [name for name, (task, options) in tasks.items() if task.group == "pairs"]
        return [
            f"task.{name}.prompt: {tasks[name][0].prompt!r}: pairs are learnt without one"
            for name in pairs
            if tasks[name][0].prompt
        ]

    def init(self, key: jax.Array) -> Params:
        return nn.unbox(mammut.init_params(self.config, key))

    def abstract(self) -> Params:
        return _abstract(self.config)

    def prompt(self, task: ImageTask) -> str:
        return task.prompt  # the paper has none: questions alone begin texts

    @property
    def options(self) -> reading.Options:
        config = self.config
        return dataclasses.replace(
            super().options, prefix_lm=config.prefix_lm, max_tokens=config.text_length
        )

    # Computation.

    def objective(self, tasks: Sequence[AnyTask]) -> Objective:
        config = self.config
        paired = [task.kind == "pairs" and config.contrast_weight > 0 for task in tasks]
        if not any(paired):
            return objectives.of_rows(self, tasks, self._text_rows, self.counted)
        names = tuple(task.name for task in tasks)
        mixed = len(tasks) > 1
        # Of pairs, and of other tasks.
        weights = [config.caption_weight if task.kind == "pairs" else 1.0 for task in tasks]
        writes = any(weights)

        def rows(
            params: Params, batch: Batch, dropout_key: jax.Array | None
        ) -> tuple[tuple[jax.Array, jax.Array], Sums]:
            keys = [fold_key(dropout_key, number) for number in range(4)]
            encoded = self._apply(params, batch["images"], keys[0], method="encode")
            text = self._apply(params, batch["tokens"], keys[1], method="embed_text")
            vectors = encoded.embedding, text
            if not writes:
                return vectors, _padded(2)
            part = objectives.part_of_rows(tasks, batch)
            scored = self._score_rows(params, encoded.tokens, batch, keys[2:])
            texts = losses.by_part(*scored[:2], batch["_mask"], part, len(tasks), scored[2])
            return vectors, _padded(0, texts, 2)

        def together(params: Params, vectors: Any, batch: Batch) -> Sums:
            part = objectives.part_of_rows(tasks, batch)
            mask = batch["_mask"] & jnp.array(paired)[part]
            found = self._contrast(params, *vectors, batch["tokens"], mask)
            repeated = Sums(jnp.zeros(()), found.repeated, found.sums.count)
            joint = jax.tree.map(lambda *x: jnp.stack(x), found.sums, repeated)
            return _padded(len(tasks) if writes else 0, joint)

        def count(batch: Batch) -> jax.Array:
            rows = jnp.sum(batch["_mask"], dtype=jnp.float32)
            texts = jnp.sum(self.counted(batch), dtype=jnp.float32)
            return jnp.stack([*[texts] * (len(tasks) if writes else 0), rows, rows])

        written = (names if mixed else (CAPTIONS,)) if writes else ()
        joint = Joint(rows, together)
        return Objective(
            (self, names),
            (*written, CONTRAST, REPEATED),
            joint.loss,
            count,
            mixed,
            joint,
            weights=(*(weights if writes else ()), config.contrast_weight, 0.0),
        )

    def _text_rows(
        self, params: Params, batch: Batch, dropout_key: jax.Array | None, part: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`objectives.Rows` of the generative pass alone."""
        keys = [fold_key(dropout_key, number) for number in range(4)]
        encoded = self._apply(params, batch["images"], keys[0], method="encode")
        return self._score_rows(params, encoded.tokens, batch, keys[2:])

    def _score_rows(
        self, params: Params, tokens: jax.Array, batch: Batch, keys: Sequence[jax.Array | None]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        tokens = hide_some(tokens, self.config.hidden_images, keys[0])
        logits = self._apply(params, tokens, batch, keys[1], method="score")
        return self.text_rows(logits, batch, self.config.label_smoothing)

    def _apply(self, params: Params, *inputs: Any, method: str) -> Any:
        return Mammut(self.config).apply({"params": params}, *inputs, method=method)

    def _contrast(
        self,
        params: Params,
        images: jax.Array,
        texts: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
    ) -> contrastive.Contrast:
        config = self.config
        return contrastive.contrastive_loss(
            images,
            texts,
            self._apply(params, method="scale"),
            mask,
            form=config.contrast,
            gamma=config.focal_gamma,
            keys=contrastive.text_keys(tokens) if config.skip_same_text else None,
            chunk=config.contrast_chunk,
        )

    def encode(self, params: Params, batch: Batch) -> jax.Array:
        return self._apply(params, batch["images"], method="encode").tokens

    def score(self, params: Params, tokens: jax.Array, batch: Batch) -> jax.Array:
        return self._apply(params, tokens, batch, method="score")

    def decoder(self, params: Params) -> tuple[TextDecoderConfig, Params]:
        return self.config.decoder, params["decoder"]

    def embed(self, params: Params, batch: Batch) -> Embedded:
        nothing = jnp.zeros((len(next(iter(batch.values()))), 0))
        images = texts = nothing
        if "images" in batch:
            images = self._apply(params, batch["images"], method="encode").embedding
        if "tokens" in batch:
            texts = self._apply(params, batch["tokens"], method="embed_text")
        scale = self._apply(params, method="scale")
        sums = Sums(*jnp.zeros((3,)))
        if "images" in batch and "tokens" in batch:
            sums = self._contrast(params, images, texts, batch["tokens"], batch["_mask"]).sums
        elif "images" in batch:
            sums = sums._replace(count=jnp.sum(batch["_mask"], dtype=jnp.float32))
        return Embedded(sums, images, texts, jnp.full(len(nothing), scale))

    def validation_key(self, task: AnyTask) -> Hashable:
        return (self, task.kind)

    def sizes(self, task: AnyTask) -> dict[str, Any]:
        return {
            "max_tokens": self.config.text_length,
            "max_prompt": self.config.max_prompt,
            "max_question": 0,
            "condition": 0,
        }


def for_tasks(model: MammutConfig, **fields: Any) -> MammutSystemConfig:
    """A model with what its tasks need; `fields` are any of `MammutSystemConfig`'s."""
    own = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return MammutSystemConfig(**own | fields)


def _padded(before: int, sums: Sums | None = None, after: int = 0) -> Sums:
    """Sums with zeros for parts before and after them; of zeros alone if None."""
    if sums is None:
        return Sums(*jnp.zeros((3, before)))
    return jax.tree.map(lambda x: jnp.pad(x, (before, after)), sums)


@functools.lru_cache(maxsize=16)
def _abstract(config: MammutSystemConfig) -> Params:
    return mammut.abstract_params(config)
