"""What systems share that write texts about pictures: targets, writing, ranking.

Letters: B rows, K tokens of a picture, De their width, L tokens of a text, V vocabulary.
"""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.config.settings import ConfigError, OfficialOptions, OptimizerOptions
from twelve_in_one.models import generate, reading, text_list
from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.optim import param_groups
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.systems import text_functions
from twelve_in_one.systems.base import AnyTask, Batch, Exports, Facts, Params, System, Written
from twelve_in_one.tasks import losses
from twelve_in_one.tasks.image_task import GROUPS


@dataclasses.dataclass(frozen=True)
class TextSystem(System):
    """A text decoder that reads the tokens of a picture.

    Its config has `max_prompt`, `label_smoothing`, `per_token`, `beams`, `pad_id`, `eos_id` and
    `start_id`, see `LitDecoderConfig`.
    """

    version = 1
    pixels = True
    image_kinds = dict.fromkeys(GROUPS, "text")
    mixes = True

    # The model.

    @abc.abstractmethod
    def encode(self, params: Params, batch: Batch) -> jax.Array:
        """The tokens [B, K, De] that the decoder reads of a batch's pictures."""

    @abc.abstractmethod
    def score(self, params: Params, tokens: jax.Array, batch: Batch) -> jax.Array:
        """Logits float32[B, L, V] of every label of `batch["tokens"]`, from a picture's tokens."""

    @abc.abstractmethod
    def decoder(self, params: Params) -> tuple[TextDecoderConfig, Params]:
        """The decoder, for `models.generate`, and its parameters."""

    def context(self, params: Params, tokens: jax.Array, batch: Batch) -> reading.Context:
        """What texts are about: the picture's tokens, and prompt and task of the batch."""
        return reading.Context(tokens, self._prompts(batch))

    def _prompts(self, batch: Batch) -> jax.Array:
        """int32[B, max_prompt]."""
        config = self.config
        given = jnp.arange(config.max_prompt)[None] < batch["prompt_length"][:, None]
        return jnp.where(given, batch["tokens"][:, : config.max_prompt], config.pad_id)

    # Settings.

    @classmethod
    def _resolved(cls, fields: Mapping[str, Any], facts: Facts, **more: Any) -> Self:
        """The system with the tokens of the tokenizer, and further fields.

        Raises:
          ConfigError: sizes do not fit.
        """
        pad_id, eos_id, start_id = facts.special_ids
        ids = {"pad_id": pad_id, "eos_id": eos_id, "start_id": start_id}
        try:
            return cls.from_fields({**fields, **ids, **more})
        except ValueError as error:
            raise ConfigError([f"model: {error}"]) from error

    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        return param_groups.kernels_decay(options)

    @property
    def image_size(self) -> int:
        return self.config.encoder.image_size[0]

    @property
    def options(self) -> reading.Options:
        """How texts begin and end."""
        config = self.config
        return reading.Options(config.start_id, config.eos_id, config.pad_id)

    # Targets.

    def targets(self, batch: Batch) -> jax.Array:
        """bool[B, L], labels that count: from the prompt's end to the first end of text.

        Not those that differ from padding: CLIP's is also the number of a word piece.
        """
        labels = batch["tokens"]
        places = jnp.arange(labels.shape[1])[None]
        ends = jnp.cumsum(labels == self.config.eos_id, axis=1)
        before_end = jnp.pad(ends[:, :-1], ((0, 0), (1, 0))) == 0
        return before_end & (places >= batch["prompt_length"][:, None])

    def counted(self, batch: Batch) -> jax.Array:
        """bool array of what the loss is a mean over: texts, or tokens."""
        rows = batch["_mask"]
        return self.targets(batch) & rows[:, None] if self.config.per_token else rows

    def text_rows(
        self, logits: jax.Array, batch: Batch, smoothing: float
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Loss, score and what it counts of each row, [B]."""
        return losses.sequence_rows(
            logits,
            batch["tokens"],
            self.targets(batch),
            label_smoothing=smoothing,
            per_token=self.config.per_token,
        )

    # Texts.

    def write(
        self,
        params: Params,
        tokens: jax.Array,
        batch: Batch,
        allowed: Any = None,
        *,
        beams: int = 1,
    ) -> generate.Texts:
        """Texts about a picture's tokens behind the prompts of a batch; see `generate.greedy`."""
        config, own = self.decoder(params)
        about = self.context(params, tokens, batch)
        if beams > 1:
            return generate.beam_search(config, own, about, self.options, allowed, beams=beams)
        return generate.greedy(config, own, about, self.options, allowed)

    def rank(self, params: Params, tokens: jax.Array, batch: Batch, table: Any) -> jax.Array:
        """float32[B, C], log-probabilities of the texts int32[C, T]; see `text_list.rank`."""
        config, own = self.decoder(params)
        about = self.context(params, tokens, batch)
        return text_list.rank(config, own, about, jnp.asarray(table), self.options)

    def writer(
        self, task: AnyTask, candidates: np.ndarray | None, *, thorough: bool
    ) -> Callable[[Params, Batch], Written]:
        beams = self.config.beams if thorough and task.group == "caption" else 1

        def writer(params: Params, batch: Batch) -> Written:
            tokens = self.encode(params, batch)
            others = tokens[_others(batch["_mask"])]
            found = []
            for seen in (tokens, others):
                logits = self.score(params, seen, batch)
                loss, right, counts = self.text_rows(logits, batch, 0.0)
                part = jnp.zeros(len(loss), jnp.int32)
                found.append(losses.by_part(loss, right, batch["_mask"], part, 1, counts))
            sums = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
            rows = len(tokens)
            ranked = jnp.full(rows, -1, jnp.int32)
            if not thorough:
                texts = self.write(params, tokens, batch, beams=beams)
                blind = other = still = jnp.zeros((rows, 0), jnp.int32)
            else:
                # One after the other, in one program.
                views = [tokens, jnp.zeros_like(tokens), others]
                if self.frames:
                    views.append(self.encode(params, {**batch, "images": _still(batch["images"])}))
                written = jax.lax.map(
                    lambda seen: self.write(params, seen, batch, beams=beams), jnp.stack(views)
                )
                texts = jax.tree.map(lambda x: x[0], written)
                blind, other = written.tokens[1:3]
                still = written.tokens[3] if self.frames else jnp.zeros((rows, 0), jnp.int32)
                if candidates is not None:
                    scores = self.rank(params, tokens, batch, candidates)
                    ranked = jnp.argmax(scores, axis=1).astype(jnp.int32)
            return Written(
                *(sums, texts.tokens, texts.score, texts.finished, ranked, blind, other, still)
            )

        return writer

    def validation_key(self, task: AnyTask) -> Hashable:
        return (self,)

    def functions(self, tasks: Sequence[AnyTask]) -> Exports:
        def encode(params: Params, images: jax.Array) -> jax.Array:
            return self.encode(params, {"images": images})

        return text_functions.of_texts(self, tasks, encode, self.write)


def hide_some(tokens: jax.Array, share: float, key: jax.Array | None) -> jax.Array:
    """Tokens [B, K, De] with those of a share of the rows as zeros; without a key as they are."""
    if not share or key is None:
        return tokens
    hidden = jax.random.bernoulli(key, share, tokens.shape[:1])
    return jnp.where(hidden[:, None, None], 0, tokens)


def _still(clips: jax.Array) -> jax.Array:
    """Clips [B, T, ...] of their middle frame, repeated."""
    frames = clips.shape[1]
    return jnp.repeat(clips[:, frames // 2, None], frames, axis=1)


def _others(mask: jax.Array) -> jax.Array:
    """int32[B], a row of the same batch with another example for each one with an example.

    Half of the examples on: neighbours may be about one picture.
    """
    order = jnp.argsort(~mask, stable=True)  # rows with an example first
    place = jnp.argsort(order)
    count = jnp.maximum(jnp.sum(mask), 1)
    return order[(place + count // 2) % count]
