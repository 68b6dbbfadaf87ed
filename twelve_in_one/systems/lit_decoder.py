"""LiT-decoder as a system: one text decoder learns all tasks from one mixture.

Letters: B rows, L tokens of a text, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.config.settings import ConfigError, OfficialOptions, OptimizerOptions
from twelve_in_one.models import generate, lit_decoder, reading, text_list
from twelve_in_one.models.lit_decoder import LitDecoder, LitDecoderConfig
from twelve_in_one.optim import param_groups
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.systems import fields, text_functions
from twelve_in_one.systems.base import (
    AnyTask,
    Batch,
    Exports,
    Facts,
    Inputs,
    Objective,
    Params,
    System,
    Written,
)
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

    def prompt(self, task: ImageTask) -> str:
        config = self.config
        if config.conditioning != "prompt" or config.specificity == "none":
            return ""
        if config.specificity == "group":
            return _GROUP_PROMPTS[task.group]
        return task.prompt or f"{task.name}:"

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
            part = jnp.argmax(batch["task_id"][:, None] == task_ids[None], axis=1)
            loss, score, counts = self._rows(logits, batch, config.label_smoothing)
            sums = losses.by_part(loss, score, batch["_mask"], part, len(names), counts)
            return sums if mixed else jax.tree.map(lambda x: x[0], sums)

        def count(batch: Batch) -> jax.Array:
            rows = batch["_mask"]
            if config.per_token:
                rows = self._weights(batch) & rows[:, None]
            total = jnp.sum(rows, dtype=jnp.float32)
            return jnp.full(len(names), total) if mixed else total

        return Objective((self, names), names if mixed else (), loss, count, mixed)

    def _weights(self, batch: Batch) -> jax.Array:
        """bool[B, L], labels that count: from the prompt's end to the first end of text.

        Not those that differ from padding: CLIP's is also the number of a word piece.
        """
        labels = batch["tokens"]
        places = jnp.arange(labels.shape[1])[None]
        ends = jnp.cumsum(labels == self.config.eos_id, axis=1)
        before_end = jnp.pad(ends[:, :-1], ((0, 0), (1, 0))) == 0
        return before_end & (places >= batch["prompt_length"][:, None])

    def _rows(
        self, logits: jax.Array, batch: Batch, smoothing: float
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Loss, score and what it counts of each row, [B]."""
        return losses.sequence_rows(
            logits,
            batch["tokens"],
            self._weights(batch),
            label_smoothing=smoothing,
            per_token=self.config.per_token,
        )

    @property
    def options(self) -> reading.Options:
        """How texts begin and end."""
        config = self.config
        prefix_lm = config.question == "prefix_lm"
        return reading.Options(config.start_id, config.eos_id, config.pad_id, prefix_lm)

    def context(self, params: Params, tokens: jax.Array, batch: Batch) -> reading.Context:
        """What texts are about: the image's tokens [B, K, De], and prompt and task of the batch."""
        config = self.config
        seen = LitDecoder(config).apply({"params": params}, tokens, batch, method="context")
        given = jnp.arange(config.max_prompt)[None] < batch["prompt_length"][:, None]
        prompt = jnp.where(given, batch["tokens"][:, : config.max_prompt], config.pad_id)
        return reading.Context(seen.tokens, prompt, seen.mask, seen.prepended)

    def writer(
        self, task: AnyTask, candidates: np.ndarray | None, *, thorough: bool
    ) -> Callable[[Params, Batch], Written]:
        config, model, options = self.config, LitDecoder(self.config), self.options
        beams = config.beams if thorough and task.group == "caption" else 1

        def write(params: Params, tokens: jax.Array, batch: Batch) -> generate.Texts:
            about = self.context(params, tokens, batch)
            if beams > 1:
                return generate.beam_search(
                    config.decoder, params["decoder"], about, options, beams=beams
                )
            return generate.greedy(config.decoder, params["decoder"], about, options)

        def writer(params: Params, batch: Batch) -> Written:
            tokens = model.apply({"params": params}, batch["images"], method="encode")
            found = []
            # With its own picture, and with the next row's.
            for seen in (tokens, jnp.roll(tokens, 1, axis=0)):
                logits = model.apply({"params": params}, seen, batch, method="score")
                loss, right, counts = self._rows(logits, batch, 0.0)
                part = jnp.zeros(len(loss), jnp.int32)
                found.append(losses.by_part(loss, right, batch["_mask"], part, 1, counts))
            sums = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
            texts = write(params, tokens, batch)
            rows = len(tokens)
            ranked, blind = jnp.full(rows, -1, jnp.int32), jnp.zeros((rows, 0), jnp.int32)
            if thorough:
                blind = write(params, jnp.zeros_like(tokens), batch).tokens
                if candidates is not None:
                    scores = text_list.rank(
                        config.decoder,
                        params["decoder"],
                        self.context(params, tokens, batch),
                        jnp.asarray(candidates),
                        options,
                    )
                    ranked = jnp.argmax(scores, axis=1).astype(jnp.int32)
            return Written(sums, texts.tokens, texts.score, texts.finished, ranked, blind)

        return writer

    def functions(self, tasks: Sequence[AnyTask]) -> Exports:
        model, config = LitDecoder(self.config), self.config.decoder

        def encode(params: Params, images: jax.Array) -> jax.Array:
            return model.apply({"params": params}, images, method="encode")

        def write(params: Params, tokens: jax.Array, batch: Batch) -> generate.Texts:
            about = self.context(params, tokens, batch)
            return generate.greedy(config, params["decoder"], about, self.options)

        return text_functions.of_texts(self, tasks, encode, write)

    def validation_key(self, task: AnyTask) -> Hashable:
        return (self,)

    def sizes(self, task: AnyTask) -> dict[str, Any]:
        asks = self.config.question == "encoder"
        return {
            "max_tokens": self.config.decoder.max_tokens,
            "max_prompt": self.config.max_prompt,
            "max_question": self.config.max_question if asks else 0,
            "condition": self.condition(task),
        }


@functools.lru_cache(maxsize=16)
def _abstract(config: LitDecoderConfig) -> Params:
    return jax.eval_shape(functools.partial(lit_decoder.init_params, config), jax.random.key(0))
