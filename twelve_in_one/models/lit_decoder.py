"""LiT-decoder: a text decoder on the tokens of an image encoder, and what tells it the task.

Beyer et al. 2023, "A Study of Autoregressive Decoders for Multi-Tasking in Computer Vision". What
the study varies is config: where the question goes, and whether the task is named by words of the
prompt, by an embedding before the text, or by a token beside the image's.

Letters: B rows, K encoder tokens, De their width, D the decoder's, L tokens of a text, Q of a
question, V vocabulary, T tasks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import dense, fold_key, layer_norm
from twelve_in_one.models.pre_norm import run_blocks
from twelve_in_one.models.text_decoder import TextDecoder, TextDecoderConfig, shift_right
from twelve_in_one.models.vit import ViT, ViTConfig

Conditioning = Literal["none", "prompt", "embedding", "token"]
Specificity = Literal["none", "group", "dataset"]
Question = Literal["prefix", "prefix_lm", "encoder"]


@dataclasses.dataclass(frozen=True)
class LitDecoderConfig:
    """Sizes, numerics and the knobs of the study.

    Attributes:
      encoder: the Vision Transformer, whose tokens after the last norm the decoder reads.
      decoder: the text decoder; the tokenizer sets `vocab_size`, the encoder `encoder_dim`.
      freeze_encoder: never train the encoder's parameters.
      conditioning: what tells the decoder its task: "prompt", words before the text; "embedding",
        a learned embedding before it; "token", a learned token beside the image's; or "none".
      specificity: what this names: the "dataset", only its "group", or "none".
      question: where questions go: "prefix", the prompt, read causally; "prefix_lm", the prompt,
        read in both directions; "encoder", blocks of their own, whose outputs join the image's
        tokens.
      question_layers: blocks of "encoder".
      max_question: Q, longest question of "encoder".
      max_prompt: longest prompt.
      label_smoothing: share of the target spread over all other tokens.
      per_token: the loss is a mean over tokens, so that long texts weigh more, rather than over
        texts.
      hidden_images: share of the training rows without their image, from which the decoder learns
        what words alone say; needed to score that.
      beams: of captions; all other texts are written greedily.
      pad_id: of the tokenizer, like the two below.
      eos_id: end of text.
      start_id: what the decoder reads first.
      num_tasks: T, set by the run.
    """

    encoder: ViTConfig
    decoder: TextDecoderConfig
    freeze_encoder: bool = True
    conditioning: Conditioning = "prompt"
    specificity: Specificity = "dataset"
    question: Question = "prefix"
    question_layers: int = 2
    max_question: int = 32
    max_prompt: int = 32
    label_smoothing: float = 0.1
    per_token: bool = False
    hidden_images: float = 0.0
    beams: int = 4
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0
    num_tasks: int = 1

    def __post_init__(self) -> None:
        errors = []
        if self.encoder.image_size[0] != self.encoder.image_size[1]:
            errors.append(f"encoder.image_size {self.encoder.image_size} should be a square")
        if self.encoder.num_classes:
            errors.append("encoder.num_classes should be 0: the decoder reads tokens")
        for name, known in (
            ("conditioning", ("none", "prompt", "embedding", "token")),
            ("specificity", ("none", "group", "dataset")),
            ("question", ("prefix", "prefix_lm", "encoder")),
        ):
            if getattr(self, name) not in known:
                errors.append(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("label_smoothing", "hidden_images"):
            if not 0 <= getattr(self, name) < 1:
                errors.append(f"{name} {getattr(self, name)} should be in [0, 1)")
        if errors:
            raise ValueError("LitDecoderConfig: " + "; ".join(errors))


class Context(NamedTuple):
    """What the decoder reads besides its own text.

    Attributes:
      tokens: [B, K, De] of the image, the question and the task.
      mask: bool[B, K], False for padding; None if there is none.
      prepended: [B, 1, D], the task before the text, or None.
    """

    tokens: jax.Array
    mask: jax.Array | None
    prepended: jax.Array | None


class LitDecoder(nn.Module):
    """Encoder, decoder, and what tells the task."""

    config: LitDecoderConfig

    def setup(self) -> None:
        config = self.config
        self.encoder = ViT(config.encoder)
        self.decoder = TextDecoder(config.decoder)
        width, wide = config.decoder.hidden_dim, config.encoder.hidden_dim
        if config.conditioning in ("embedding", "token"):
            before = config.conditioning == "embedding"
            size, axis = (width, "text_embed") if before else (wide, "visual_embed")
            init = nn.with_logical_partitioning(nn.initializers.normal(size**-0.5), (None, axis))
            self.task_table = self.param("task_table", init, (config.num_tasks, size))
        if config.question == "encoder":
            self.question_encoder = _QuestionEncoder(config)

    def __call__(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None = None) -> Any:
        """Logits float32[B, L, V] of every label of `batch["tokens"]`, as training sees them."""
        tokens = self.encode(batch["images"], fold_key(dropout_key, 0))
        if self.config.hidden_images and dropout_key is not None:
            key = jax.random.fold_in(dropout_key, 1)
            hidden = jax.random.bernoulli(key, self.config.hidden_images, tokens.shape[:1])
            tokens = jnp.where(hidden[:, None, None], 0, tokens)
        return self.score(tokens, batch, fold_key(dropout_key, 2))

    def encode(self, images: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Tokens [B, K, De] of images float[B, S, S, 3] in [-1, 1]; a frozen encoder drops none."""
        key = None if self.config.freeze_encoder else dropout_key
        tokens, _ = self.encoder(images, key)
        return tokens

    def score(
        self,
        tokens: jax.Array,
        batch: Mapping[str, jax.Array],
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The same from the image's tokens, e.g. those of another image, or zeros."""
        config = self.config
        context = self.context(tokens, batch)
        prefix = batch["prompt_length"] if config.question == "prefix_lm" else None
        logits, _ = self.decoder(
            shift_right(batch["tokens"], config.start_id),
            context.tokens,
            encoder_mask=context.mask,
            prepended=context.prepended,
            prefix_length=prefix,
            dropout_key=dropout_key,
        )
        return logits.astype(jnp.float32)

    def context(self, tokens: jax.Array, batch: Mapping[str, jax.Array]) -> Context:
        """What the decoder reads, from the image's tokens and the question and task of a batch."""
        config = self.config
        mask = prepended = None
        if config.question == "encoder":
            real = batch["question"] != config.pad_id
            mask = jnp.concatenate([jnp.ones(tokens.shape[:2], bool), real], axis=1)
            question = self.question_encoder(batch["question"])
            tokens = jnp.concatenate([tokens, question.astype(tokens.dtype)], axis=1)
        if config.conditioning in ("embedding", "token"):
            task = self.task_table[batch["condition"]][:, None]
            if config.conditioning == "embedding":
                prepended = task
            else:
                tokens = jnp.concatenate([task.astype(tokens.dtype), tokens], axis=1)
                if mask is not None:
                    mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return Context(tokens, mask, prepended)


class _QuestionEncoder(nn.Module):
    """Tokens of a question as further tokens of the image: embeddings and a few blocks."""

    config: LitDecoderConfig

    @nn.compact
    def __call__(self, question: jax.Array) -> jax.Array:
        """[B, Q, De] of int32[B, Q]."""
        config = self.config
        blocks = dataclasses.replace(
            config.encoder,
            hidden_dim=config.decoder.hidden_dim,
            num_layers=config.question_layers,
            num_heads=config.decoder.num_heads,
            mlp_dim=config.decoder.mlp_dim,
            scan_layers=False,
            window=0,
        )
        width, numerics = blocks.hidden_dim, blocks.numerics
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "text_embed"))
        x = nn.Embed(config.decoder.vocab_size, width, embedding_init=init, name="token")(question)
        axes = ("positions", "text_embed")
        table = self.param(
            "position",
            nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), axes),
            (config.max_question, width),
        )
        x, _ = run_blocks(blocks, x + table[None], None)
        x = layer_norm("visual_embed", numerics, name="final_norm")(x)
        # Both widths would be split over the same devices.
        axes = ("text_embed", "pooled")
        return dense(config.encoder.hidden_dim, axes, numerics, name="to_encoder")(x)


def init_params(config: LitDecoderConfig, key: jax.Array) -> Any:
    """Random parameters with their logical axis names."""
    row = jnp.zeros((1, 2), jnp.int32)
    batch = {
        "images": jnp.zeros((1, *config.encoder.image_size, 3), config.encoder.dtype),
        "tokens": row,
        "prompt_length": jnp.zeros(1, jnp.int32),
        "condition": jnp.zeros(1, jnp.int32),
        "question": jnp.zeros((1, config.max_question), jnp.int32),
    }
    return LitDecoder(config).init(key, batch)["params"]
