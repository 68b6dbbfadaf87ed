"""Output heads: they turn pooled vectors and hidden states into scores.

| head | input | output | used by (of the twelve) |
|---|---|---|---|
| vqa | fused | [B, 3129] | VQAv2, Visual Genome QA |
| gqa | fused | [B, 1533] | GQA |
| image_text_match | fused | [B] | COCO and Flickr30k retrieval |
| region_score | visual states | [B, R] | RefCOCO, RefCOCO+, RefCOCOg, Visual7W, GuessWhat |
| image_pair | two fused, concatenated | [B/2, 2] | NLVR2 |
| three_way | fused | [B, 3] | SNLI-VE |
| token_score | text states | [B, S] | (declared in the released code, used by no task) |
| masked_language | text states | [B, S, vocabulary] | pretraining |
| masked_region | visual states | [B, R, classes] | pretraining |
| alignment | fused | [B, 2], 0 = aligned | pretraining |
| `config.own_heads` | fused, or two, concatenated | [B, L], [B/2, L] | the user's own datasets |
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import activation, dense, dropout, fold_key, layer_norm
from twelve_in_one.models.two_stream.config import Numerics, TwoStreamConfig

Array = jax.Array


class TrunkOutput(NamedTuple):
    """The inputs of the heads.

    Attributes:
      text: [B, S, D] final text states; position 0 is CLS, position 1 the task slot, if any.
      visual: [B, R, V] final region states; region 0 is the whole image.
      text_pooled: [B, C].
      visual_pooled: [B, C].
      fused: [B, C] product or sum of the pooled vectors, before dropout.
    """

    text: Array
    visual: Array
    text_pooled: Array
    visual_pooled: Array
    fused: Array


class Classifier(nn.Module):
    """Linear -> GELU -> layer norm -> linear (the released code's `SimpleClassifier`).

    Its declared dropout of 0.5 is never applied in the released code, so there is none here.

    Attributes:
      hidden_dim: width between the two maps.
      num_labels: L.
      numerics: of the model.
      bias: initial bias of the last map.
    """

    hidden_dim: int
    num_labels: int
    numerics: Numerics
    bias: float = 0.0

    @nn.compact
    def __call__(self, fused: Array) -> Array:
        """Maps [B, C] to logits [B, num_labels]."""
        numerics = self.numerics
        x = dense(self.hidden_dim, ("fused_embed", "mlp"), numerics, name="hidden")(fused)
        x = layer_norm("mlp", numerics, name="norm")(activation("gelu")(x))
        axes = ("classifier_embed", "labels")
        return dense(self.num_labels, axes, numerics, name="logits", bias=self.bias)(x)


class Transform(nn.Module):
    """Linear -> activation -> layer norm, before a masked-modelling decoder.

    Attributes:
      hidden_dim: width of the stream whose states are decoded.
      activation: in the released code the text stream's, for masked regions too.
      numerics: of the model.
      axis: logical name of that width.
    """

    hidden_dim: int
    activation: str
    numerics: Numerics
    axis: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, L, hidden_dim] to [B, L, hidden_dim]."""
        # The output axis has its own name: one array must not use a mesh axis twice.
        x = dense(self.hidden_dim, (self.axis, "mlp"), self.numerics, name="dense")(x)
        return layer_norm("mlp", self.numerics, name="norm")(activation(self.activation)(x))


class Heads(nn.Module):
    """All heads of `config.heads` and `config.own_heads`."""

    config: TwoStreamConfig

    @nn.compact
    def __call__(
        self,
        trunk: TrunkOutput,
        names: tuple[str, ...],
        vocabulary_logits: Callable[[Array], Array],
        dropout_key: Array | None = None,
    ) -> dict[str, Array]:
        """Computes only the heads in `names`.

        Args:
          trunk: the trunk's output for B rows.
          names: heads to compute, a subset of `config.all_heads`.
          vocabulary_logits: scores states against the word table (tied weights).
          dropout_key: dropout on the fused vector and on the region and token states, or None.

        Returns:
          {name: logits}, shapes in the module docstring. Scores of padded regions and tokens
          are not masked: losses and metrics apply the mask.

        Raises:
          ValueError: a name that is not in `config.all_heads`; a head of pairs with an odd B.
        """
        config, numerics = self.config, self.config.numerics
        unknown = [name for name in names if name not in config.all_heads]
        if unknown:
            raise ValueError(f"heads {unknown} are not in this model, which has {config.all_heads}")
        rate = config.head_dropout_rate
        fused_for_tasks = dropout(trunk.fused, rate, fold_key(dropout_key, 0))
        rows, width = trunk.fused.shape

        def linear(features: int, axis: str, name: str) -> nn.DenseGeneral:
            return dense(features, (axis, "labels"), numerics, name=name)

        def classify(x: Array, num_labels: int, name: str, bias: float = 0.0) -> Array:
            return Classifier(2 * width, num_labels, numerics, bias, name=name)(x)

        def answer(num_labels: int, name: str) -> Array:
            return classify(fused_for_tasks, num_labels, name, config.answer_bias)

        def states(x: Array, key_id: int) -> Array:
            return dropout(x, rate, fold_key(dropout_key, key_id))

        def pair(num_labels: int, name: str) -> Array:
            if rows % 2:
                raise ValueError(
                    f"{name} reads rows 2j and 2j + 1 as left and right image, got {rows} rows"
                )
            # [2P, C] -> [P, 2C]
            return classify(fused_for_tasks.reshape(rows // 2, 2 * width), num_labels, name)

        def masked_language() -> Array:
            x = Transform(
                config.text.hidden_dim,
                config.text.activation,
                numerics,
                "text_embed",
                name="masked_language",
            )(trunk.text)
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("vocab",))
            bias = self.param("masked_language_bias", zeros, (config.vocab_size,), jnp.float32)
            return vocabulary_logits(x) + bias.astype(x.dtype)[None, None]

        def masked_region() -> Array:
            x = Transform(
                config.visual.hidden_dim,
                config.text.activation,  # not the visual one: see `Transform`
                numerics,
                "visual_embed",
                name="masked_region",
            )(trunk.visual)
            return linear(config.masked_region_dim, "classifier_embed", "masked_region_logits")(x)

        def alignment() -> Array:
            # Its own dropout draw, separate from the task heads'.
            fused = dropout(trunk.fused, rate, fold_key(dropout_key, 1))
            return linear(2, "fused_embed", "alignment")(fused)

        def region_score() -> Array:
            return linear(1, "visual_embed", "region_score")(states(trunk.visual, 2))[..., 0]

        def token_score() -> Array:
            return linear(1, "text_embed", "token_score")(states(trunk.text, 3))[..., 0]

        compute = {
            "vqa": lambda: answer(config.num_vqa_answers, "vqa"),
            "gqa": lambda: answer(config.num_gqa_answers, "gqa"),
            "image_pair": lambda: pair(2, "image_pair"),
            "image_text_match": lambda: linear(1, "fused_embed", "image_text_match")(
                fused_for_tasks
            )[..., 0],
            "three_way": lambda: linear(3, "fused_embed", "three_way")(fused_for_tasks),
            "region_score": region_score,
            "token_score": token_score,
            "masked_language": masked_language,
            "masked_region": masked_region,
            "alignment": alignment,
        }
        for name, num_labels, images in config.own_heads:
            one = functools.partial(classify, fused_for_tasks)
            compute[name] = functools.partial(one if images == 1 else pair, num_labels, name)
        return {name: compute[name]() for name in names}
