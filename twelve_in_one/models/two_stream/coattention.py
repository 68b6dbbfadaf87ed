"""The connection layer in which the two streams read each other (ViLBERT section 3.1).

Each stream's queries attend to the other stream's keys and values; the result is projected back,
added to the stream's own input and normalised, then a feed-forward block per stream follows. There
is no self-attention inside.
"""

import flax.linen as nn
import jax

from twelve_in_one.models.layers import (
    Attention,
    FeedForward,
    constrain,
    dropout,
    layer_norm,
    split_key,
)
from twelve_in_one.models.two_stream.config import TwoStreamConfig

Array = jax.Array


class CoAttentionLayer(nn.Module):
    """One co-attention ("connection") layer."""

    config: TwoStreamConfig

    @nn.compact
    def __call__(
        self,
        text: Array,
        visual: Array,
        text_mask: Array,
        region_mask: Array,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Array, Array, Array]:
        """Runs the layer.

        Args:
          text: [B, S, D].
          visual: [B, R, V].
          text_mask: bool[B, S].
          region_mask: bool[B, R].
          dropout_key: key of this layer's dropout, or None.

        Returns:
          text [B, S, D], visual [B, R, V], and two attention maps: text reading regions
          float32[B, N, S, R] and regions reading text float32[B, N, R, S].
        """
        config, numerics = self.config, self.config.numerics
        keys = split_key(dropout_key, 6)

        def attention(out_dim: int, rate: float, q_axis: str, kv_axis: str, name: str) -> Attention:
            return Attention(
                num_heads=config.coattention_heads,
                qkv_dim=config.coattention_dim,
                out_dim=out_dim,
                dropout_rate=rate,
                numerics=numerics,
                q_axis=q_axis,
                kv_axis=kv_axis,
                name=name,
            )

        # The probabilities' dropout rate is that of the stream being read.
        text_rate, visual_rate = config.text.dropout_rate, config.visual.dropout_rate
        text_reads, text_map = attention(
            config.text.hidden_dim,
            config.visual.attention_dropout_rate,
            "text_embed",
            "visual_embed",
            "text_reads_visual",
        )(text, visual, region_mask[:, None, None, :], keys[0])
        visual_reads, visual_map = attention(
            config.visual.hidden_dim,
            config.text.attention_dropout_rate,
            "visual_embed",
            "text_embed",
            "visual_reads_text",
        )(visual, text, text_mask[:, None, None, :], keys[1])

        text = layer_norm("text_embed", numerics, name="text_norm")(
            text + dropout(text_reads, text_rate, keys[2])
        )
        visual = layer_norm("visual_embed", numerics, name="visual_norm")(
            visual + dropout(visual_reads, visual_rate, keys[3])
        )
        text = constrain(text, "act_batch", "act_length", "act_embed")
        visual = constrain(visual, "act_batch", "act_length", "act_embed")
        text = FeedForward(config.text, numerics, "text_embed", name="text_feed_forward")(
            text, keys[4]
        )
        visual = FeedForward(config.visual, numerics, "visual_embed", name="visual_feed_forward")(
            visual, keys[5]
        )
        return text, visual, text_map, visual_map
