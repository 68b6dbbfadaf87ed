"""LiT-decoder as a system: one text decoder learns all tasks from one mixture.

Letters: B rows, L tokens of a text, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.config.settings import ConfigError, OfficialOptions, OptimizerOptions
from twelve_in_one.models import lit_decoder
from twelve_in_one.models.lit_decoder import LitDecoder, LitDecoderConfig
from twelve_in_one.optim import param_groups
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.systems import fields
from twelve_in_one.systems.base import AnyTask, Batch, Facts, Inputs, Objective, Params, System
from twelve_in_one.tasks import losses
from twelve_in_one.tasks.image_task import GROUPS, ImageTask
from twelve_in_one.tasks.losses import Sums

SYSTEM = "lit_decoder"
_GROUP_PROMPTS = {"classify": "classify:", "caption": "caption:", "vqa": "answer:", "ocr": "read:"}


@dataclasses.dataclass(frozen=True)
class LitDecoderSystem(System):
    """The decoder on its encoder, with its config."""

    config: LitDecoderConfig

    name = SYSTEM
    version = 1
    config_type = LitDecoderConfig
    may_be_zero = ("num_registers", "num_classes", "window", "pad_id", "eos_id", "start_id")
    inputs = Inputs(words="decoder/", task_ids="task_table")
    pixels = True
    image_kind = "text"
    mixes = True

    @classmethod
    def from_fields(cls, fields_: Mapping[str, Any]) -> Self:
        return cls(fields.build(LitDecoderConfig, fields_))

    @classmethod
    def resolve(cls, fields_: Mapping[str, Any], facts: Facts) -> Self:
        pad_id, eos_id, start_id = facts.special_ids
        width = fields_["encoder"]["hidden_dim"]
        decoder = {**fields_["decoder"], "vocab_size": facts.vocab_size, "encoder_dim": width}
        conditions = len(GROUPS) if fields_["specificity"] == "group" else facts.num_tasks
        try:
            return cls.from_fields(
                {
                    **fields_,
                    "decoder": decoder,
                    "pad_id": pad_id,
                    "eos_id": eos_id,
                    "start_id": start_id,
                    "num_tasks": conditions,
                }
            )
        except ValueError as error:
            raise ConfigError([f"model: {error}"]) from error

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("encoder/.*",) if self.config.freeze_encoder else ()

    def init(self, key: jax.Array) -> Params:
        return nn.unbox(lit_decoder.init_params(self.config, key))

    def abstract(self) -> Params:
        return _abstract(self.config)

    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        return param_groups.kernels_decay(options)

    @property
    def image_size(self) -> int:
        return self.config.encoder.image_size[0]

    def prompt(self, task: ImageTask, question: str) -> str:
        """The words before a text, without those that go elsewhere."""
        config, words = self.config, []
        if config.conditioning == "prompt" and config.specificity != "none":
            of_task = task.prompt or f"{task.name}:"
            words.append(of_task if config.specificity == "dataset" else _GROUP_PROMPTS[task.group])
        if question and config.question != "encoder":
            words.append(question)
        return " ".join(words)

    def condition(self, task: ImageTask) -> int:
        """The row of the table of tasks."""
        if self.config.specificity == "none":
            return 0
        return GROUPS.index(task.group) if self.config.specificity == "group" else task.task_id

    def objective(self, tasks: Sequence[AnyTask]) -> Objective:
        names = tuple(task.name for task in tasks)
        task_ids = jnp.array([task.task_id for task in tasks])
        config, mixed = self.config, len(tasks) > 1
        model = LitDecoder(config)

        def loss(params: Params, batch: Batch, dropout_key: jax.Array | None) -> Sums:
            logits = model.apply({"params": params}, batch, dropout_key)
            part = jnp.argmax(batch["task_id"][:, None] == task_ids, axis=1)
            sums = losses.by_part(
                *self._rows(logits, batch, config.label_smoothing)[:2],
                batch["_mask"],
                part,
                len(names),
                self._weights(batch).sum(axis=-1, dtype=jnp.float32) if config.per_token else None,
            )
            return sums if mixed else jax.tree.map(lambda x: x[0], sums)

        def count(batch: Batch) -> jax.Array:
            rows = batch["_mask"]
            if config.per_token:
                rows = self._weights(batch) & rows[:, None]
            total = jnp.sum(rows, dtype=jnp.float32)
            return jnp.full(len(names), total) if mixed else total

        return Objective((self, names), names if mixed else (), loss, count, mixed)

    def _weights(self, batch: Batch) -> jax.Array:
        """bool[B, L], labels that count: not the prompt, not padding."""
        labels = batch["tokens"]
        places = jnp.arange(labels.shape[1])
        return (labels != self.config.pad_id) & (places >= batch["prompt_length"][:, None])

    def _rows(
        self, logits: jax.Array, batch: Batch, smoothing: float
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Loss and score of each row, and its number of tokens, [B]."""
        loss, right, tokens = losses.sequence_rows(
            logits, batch["tokens"], self._weights(batch), smoothing
        )
        if self.config.per_token:
            return loss, right, tokens
        each = jnp.maximum(tokens, 1)
        return loss / each, right / each, tokens

    def sizes(self, task: AnyTask) -> dict[str, Any]:
        asks = self.config.question == "encoder"
        return {
            "max_tokens": self.config.decoder.max_tokens,
            "max_question": self.config.max_question if asks else 0,
        }


@functools.lru_cache(maxsize=16)
def _abstract(config: LitDecoderConfig) -> Params:
    return jax.eval_shape(
        functools.partial(lit_decoder.init_params, config), jax.random.key(0)
    )
