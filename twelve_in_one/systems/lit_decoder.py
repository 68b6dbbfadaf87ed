"""LiT-decoder as a system: one text decoder learns all tasks from one mixture."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax

from twelve_in_one.models import image_encoders, lit_decoder, reading
from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.models.lit_decoder import LitDecoder, LitDecoderConfig
from twelve_in_one.systems import fields, objectives
from twelve_in_one.systems.base import AnyTask, Batch, Facts, Inputs, Objective, Params
from twelve_in_one.systems.text_system import TextSystem
from twelve_in_one.tasks.image_task import GROUPS, ImageTask

SYSTEM = "lit_decoder"
_GROUP_PROMPTS = {"classify": "classify:", "caption": "caption:", "vqa": "answer:", "ocr": "read:"}


@dataclasses.dataclass(frozen=True)
class LitDecoderSystem(TextSystem):
    """The decoder on its encoder, with its config."""

    config: LitDecoderConfig

    name = SYSTEM
    config_type = LitDecoderConfig
    may_be_zero = (
        "num_registers",
        "num_classes",
        "window",
        "cropped_positions",
        "pad_id",
        "eos_id",
        "start_id",
    )
    inputs = Inputs(words="decoder/", task_ids="task_table")

    @classmethod
    def from_fields(cls, fields_: Mapping[str, Any]) -> Self:
        return cls(fields.build(LitDecoderConfig, fields_))

    @classmethod
    def resolve(cls, fields_: Mapping[str, Any], facts: Facts) -> Self:
        width = image_encoders.token_width(cls.from_fields(fields_).config.encoder)
        decoder = {**fields_["decoder"], "vocab_size": facts.vocab_size, "encoder_dim": width}
        conditions = len(GROUPS) if fields_["specificity"] == "group" else facts.num_tasks
        return cls._resolved(fields_, facts, decoder=decoder, num_tasks=conditions)

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("encoder/.*",) if self.config.freeze_encoder else ()

    def init(self, key: jax.Array) -> Params:
        return nn.unbox(lit_decoder.init_params(self.config, key))

    def abstract(self) -> Params:
        return _abstract(self.config)

    @property
    def pixel_range(self) -> tuple[float, float]:
        return image_encoders.pixel_range(self.config.encoder)

    @property
    def token_encoder(self) -> Any:
        return self.config.encoder if self.config.freeze_encoder else None

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
        model, smoothing = LitDecoder(self.config), self.config.label_smoothing

        def rows(params: Params, batch: Batch, dropout_key: jax.Array | None, part: Any) -> Any:
            logits = model.apply({"params": params}, batch, dropout_key)
            return self.text_rows(logits, batch, smoothing)

        return objectives.of_rows(self, tasks, rows, self.counted)

    @property
    def options(self) -> reading.Options:
        prefix_lm = self.config.question == "prefix_lm"
        return dataclasses.replace(super().options, prefix_lm=prefix_lm)

    def encode(self, params: Params, batch: Batch) -> jax.Array:
        return LitDecoder(self.config).apply({"params": params}, batch, method="encode")

    def score(self, params: Params, tokens: jax.Array, batch: Batch) -> jax.Array:
        return LitDecoder(self.config).apply({"params": params}, tokens, batch, method="score")

    def decoder(self, params: Params) -> tuple[TextDecoderConfig, Params]:
        return self.config.decoder, params["decoder"]

    def context(self, params: Params, tokens: jax.Array, batch: Batch) -> reading.Context:
        model = LitDecoder(self.config)
        seen = model.apply({"params": params}, tokens, batch, method="context")
        return reading.Context(seen.tokens, self._prompts(batch), seen.mask, seen.prepended)

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
