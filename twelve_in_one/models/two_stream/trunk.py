"""The two-stream model of 12-in-1: embeddings, encoder, poolers (`TwoStreamTrunk`), and heads.

Takes tokens, regions and boxes, and pictures if it has a grid; returns logits of the requested
heads, and every named intermediate in `aux`. The trunk can be used alone as a backbone.

Shape letters: see `config.py`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.image_encoders import image_encoder
from twelve_in_one.models.layers import (
    dense,
    dropout,
    fold_key,
    layer_norm,
    split_key,
    table_init,
)
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.encoder import Encoder
from twelve_in_one.models.two_stream.grid import GridRows, feature_map, grid_rows
from twelve_in_one.models.two_stream.heads import Heads, TrunkOutput
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array
Aux = dict[str, Array]

_EMBEDDING_KEY, _ENCODER_KEY, _HEAD_KEY, _IMAGE_KEY = range(4)


class TextEmbedding(nn.Module):
    """Word + position + token-type embedding, with the task vector placed after CLS.

    The task vector gets neither a position nor a token type, and the words keep the positions they
    have without it (released code; paper section 3.2).
    """

    config: TwoStreamConfig

    def setup(self) -> None:
        config, numerics = self.config, self.config.numerics

        def table(rows: int, axis: str) -> nn.Embed:
            init = table_init(numerics, axis, "text_embed")
            dim = config.text.hidden_dim
            return nn.Embed(rows, dim, dtype=numerics.dtype, embedding_init=init)

        self.word = table(config.vocab_size, "vocab")
        self.position = table(config.max_positions, "positions")
        self.token_type = table(config.num_token_types, "token_types")
        if config.num_tasks:
            self.task = table(config.num_tasks, "tasks")
        self.norm = layer_norm("text_embed", numerics)

    def __call__(
        self, tokens: Array, token_types: Array | None, task_id: Array | None, key: Array | None
    ) -> Array:
        """Maps int32[B, T] tokens to [B, S, D]; see `TwoStreamTrunk` for the arguments."""
        length = tokens.shape[1]
        offset = self.config.position_offset
        if length + offset > self.config.max_positions:
            raise ValueError(
                f"{length} tokens need {length + offset} positions, the table has "
                f"{self.config.max_positions}: truncate the text or raise max_positions"
            )
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        positions = jnp.arange(offset, offset + length, dtype=jnp.int32)
        x = self.word(tokens) + self.position(positions)[None] + self.token_type(types)
        if self.config.num_tasks:
            if task_id is None:
                raise ValueError("this model has task tokens: pass task_id (int32[] or int32[B])")
            task = self.task(jnp.broadcast_to(jnp.asarray(task_id), tokens.shape[:1]))[:, None]
            # [B, 1, D], [B, 1, D], [B, T - 1, D] -> [B, S, D]
            x = jnp.concatenate([x[:, :1], task, x[:, 1:]], axis=1)
        x = dropout(self.norm(x), self.config.text.dropout_rate, key)
        return constrain(x, "act_batch", "act_length", "act_embed")

    def vocabulary_logits(self, x: Array) -> Array:
        """Scores [..., D] states against the word table: [..., vocabulary]."""
        return self.word.attend(x)


class RegionEmbedding(nn.Module):
    """LN(linear(feature) + linear(box)), without position or activation.

    With a grid, linear(LN(what the map shows there)) is a third term; `feature` then exists only if
    stored features are read.
    """

    config: TwoStreamConfig

    @nn.compact
    def __call__(
        self, regions: Array, boxes: Array, key: Array | None, shown: Array | None = None
    ) -> Array:
        """Maps [B, R, F] features, [B, R, 5] boxes and maybe [B, R, W] of a map to [B, R, V]."""
        config, numerics = self.config, self.config.numerics
        dim, axes = config.visual.hidden_dim, ("region_feature", "visual_embed")
        terms = []
        if config.grid is None or config.grid.region_features:
            terms.append(dense(dim, axes, numerics, name="feature")(regions))
        terms.append(dense(dim, ("box", "visual_embed"), numerics, name="box")(boxes))
        if shown is not None:
            shown = layer_norm("region_feature", numerics, name="pixel_norm")(shown)
            terms.append(dense(dim, axes, numerics, name="pixels")(shown))
        x = layer_norm("visual_embed", numerics, name="norm")(functools.reduce(jnp.add, terms))
        # The rate of the text stream, as in the released code.
        x = dropout(x, config.text.dropout_rate, key)
        return constrain(x, "act_batch", "act_length", "act_embed")


class TwoStreamTrunk(nn.Module):
    """Embeddings, encoder and poolers."""

    config: TwoStreamConfig

    def setup(self) -> None:
        config, numerics = self.config, self.config.numerics
        self.text_embedding = TextEmbedding(config)
        self.visual_embedding = RegionEmbedding(config)
        self.encoder = Encoder(config)
        self.text_pooler = dense(config.coattention_dim, ("text_embed", "pooled"), numerics)
        self.visual_pooler = dense(config.coattention_dim, ("visual_embed", "pooled"), numerics)

    def __call__(
        self,
        tokens: Array,
        token_mask: Array,
        regions: Array,
        boxes: Array,
        region_mask: Array,
        task_id: Array | None = None,
        *,
        grid: GridRows | None = None,
        token_types: Array | None = None,
        dropout_key: Array | None = None,
        all_pairs: bool = False,
        return_attention: bool = False,
    ) -> tuple[TrunkOutput, Aux]:
        """Runs both streams.

        Args:
          tokens: int32[B, T] word pieces, right-padded. Ids must be below `vocab_size`: an id out
            of range gives NaN on the device, so check on the host.
          token_mask: bool[B, T], True for real tokens.
          regions: float[B, R, F] features; region 0 is the mean of the image's regions.
          boxes: float[B, R, 5] x1/W, y1/H, x2/W, y2/H, area share.
          region_mask: bool[B, R], True for real regions.
          task_id: int32[] or int32[B], row of the task table; required iff the model has one.
          grid: what pixels show, iff the model has a grid. Its cells are visual rows after the
            regions, which only other rows see: the output is that of the regions.
          token_types: int32[B, T]; zeros if None.
          dropout_key: a `jax.random.key` turns dropout on; None means evaluation.
          all_pairs: the retrieval fast path. Text and images then have separate rows, M captions
            and N images, and the output has M * N rows, caption-major. Layers before the
            first connection run once per caption and once per image.
          return_attention: also put all attention maps into `aux`.

        Returns:
          A `TrunkOutput` and `aux`, the named intermediates: "text_embedding" [B, S, D],
          "visual_embedding" [B, R, V], "text_layer_i", "visual_layer_i", "connection_i_text",
          "connection_i_visual", and the entries of `TrunkOutput`. With a grid, these but the last
          have R + G rows where R is written. With `return_attention` (query, then key, after
          batch and head): "attention/text_layer_i" [B, N, S, S], "attention/visual_layer_i"
          [B, N, R, R], "attention/connection_i_text_reads_visual" [B, N, S, R],
          "attention/connection_i_visual_reads_text" [B, N, R, S].

        Raises:
          ValueError: shapes that do not fit each other or the config.
        """
        self._check_shapes(tokens, token_mask, regions, boxes, region_mask, all_pairs)
        if (grid is None) != (self.config.grid is None):
            raise ValueError("grid: for models with one, and those need it")
        keys = split_key(fold_key(dropout_key, _EMBEDDING_KEY), 2)
        dtype, count = jnp.dtype(self.config.dtype), regions.shape[1]
        text = self.text_embedding(tokens, token_types, task_id, keys[0])
        shown = None
        if grid is not None:
            regions = jnp.pad(regions, ((0, 0), (0, grid.cells.shape[1]), (0, 0)))
            boxes = jnp.concatenate([boxes, grid.boxes], axis=1)
            region_mask = jnp.concatenate([region_mask.astype(bool), grid.mask], axis=1)
            shown = jnp.concatenate([grid.regions, grid.cells], axis=1).astype(dtype)
        visual = self.visual_embedding(regions.astype(dtype), boxes.astype(dtype), keys[1], shown)
        text_mask, region_mask = token_mask.astype(bool), region_mask.astype(bool)
        if self.config.num_tasks:
            text_mask = jnp.concatenate([jnp.ones_like(text_mask[:, :1]), text_mask], axis=1)

        aux = {"text_embedding": text, "visual_embedding": visual}
        text, visual, encoder_aux = self.encoder(
            text,
            visual,
            text_mask,
            region_mask,
            fold_key(dropout_key, _ENCODER_KEY),
            all_pairs=all_pairs,
            return_attention=return_attention,
        )
        output = self.pool(text, visual if grid is None else visual[:, :count])
        return output, aux | encoder_aux | output._asdict()

    def pool(self, text: Array, visual: Array) -> TrunkOutput:
        """Pools position 0 of both streams: ReLU(linear), then product or sum.

        Args:
          text: [B, S, D].
          visual: [B, R, V].
        """
        text_pooled = jax.nn.relu(self.text_pooler(text[:, 0]))
        visual_pooled = jax.nn.relu(self.visual_pooler(visual[:, 0]))
        if self.config.fusion == "mul":
            fused = text_pooled * visual_pooled
        else:
            fused = text_pooled + visual_pooled
        return TrunkOutput(text, visual, text_pooled, visual_pooled, fused)

    def vocabulary_logits(self, x: Array) -> Array:
        """Scores [..., D] states against the word table: [..., vocabulary]."""
        return self.text_embedding.vocabulary_logits(x)

    def _check_shapes(
        self,
        tokens: Array,
        token_mask: Array,
        regions: Array,
        boxes: Array,
        region_mask: Array,
        all_pairs: bool,
    ) -> None:
        if tokens.ndim != 2 or regions.ndim != 3:
            raise ValueError(
                f"tokens must be [B, T] and regions [B, R, F], got {tokens.shape}, {regions.shape}"
            )
        rows, count = regions.shape[:2]
        expected = {
            "token_mask": (token_mask, tokens.shape),
            "regions": (regions, (rows, count, self.config.region_feature_dim)),
            "boxes": (boxes, (rows, count, 5)),
            "region_mask": (region_mask, (rows, count)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        if tokens.shape[0] != rows and not all_pairs:
            raise ValueError(
                f"{tokens.shape[0]} rows of tokens but {rows} rows of regions; "
                "pass all_pairs=True to score every caption against every image"
            )


class TwoStreamModel(nn.Module):
    """The trunk and the heads of `config.all_heads`; a call computes only the heads it names."""

    config: TwoStreamConfig

    def setup(self) -> None:
        self.trunk = TwoStreamTrunk(self.config)
        self.heads = Heads(self.config)
        if self.config.grid is not None:
            self.encoder = image_encoder(self.config.grid.encoder)

    def __call__(
        self,
        tokens: Array,
        token_mask: Array,
        regions: Array,
        boxes: Array,
        region_mask: Array,
        task_id: Array | None = None,
        *,
        heads: Sequence[str],
        images: Array | None = None,
        picture_size: Array | None = None,
        token_types: Array | None = None,
        dropout_key: Array | None = None,
        all_pairs: bool = False,
        return_attention: bool = False,
    ) -> tuple[dict[str, Array], Aux]:
        """Runs the trunk and the heads named by `heads`.

        Other arguments are those of `TwoStreamTrunk`; `heads.py` lists the heads' shapes.

        Args:
          heads: to compute.
          images: float[B, S, S, 3] in the encoder's range of values, iff the model has a grid.
          picture_size: int32[B, 2], see `grid.grid_rows`; with `images`.

        Returns:
          {head: logits} and `aux`, see `TwoStreamTrunk`.

        Raises:
          ValueError: an unknown head, an odd number of rows for "image_pair", bad shapes, or
            pictures missing or given in vain.
        """
        grid = self._grid(images, picture_size, boxes, fold_key(dropout_key, _IMAGE_KEY))
        output, aux = self.trunk(
            tokens,
            token_mask,
            regions,
            boxes,
            region_mask,
            task_id,
            grid=grid,
            token_types=token_types,
            dropout_key=dropout_key,
            all_pairs=all_pairs,
            return_attention=return_attention,
        )
        key = fold_key(dropout_key, _HEAD_KEY)
        return self.heads(output, tuple(heads), self.trunk.vocabulary_logits, key), aux

    def _grid(
        self, images: Array | None, sizes: Array | None, boxes: Array, key: Array | None
    ) -> GridRows | None:
        config = self.config.grid
        if config is None:
            if images is not None:
                raise ValueError("this model reads regions only: leave out images")
            return None
        if images is None or sizes is None:
            raise ValueError("this model reads pictures: pass images and picture_size")
        if images.shape[0] != boxes.shape[0]:
            raise ValueError(f"{images.shape[0]} images for {boxes.shape[0]} rows of regions")
        tokens, _ = self.encoder(images, key)
        return grid_rows(config, feature_map(config.encoder, tokens), sizes, boxes)

    def pool(self, text: Array, visual: Array) -> TrunkOutput:
        """Pools given states; see `TwoStreamTrunk.pool`."""
        return self.trunk.pool(text, visual)


def _init(config: TwoStreamConfig, key: Array) -> Any:
    """Parameters with their logical axis names, from the smallest batch that reaches every one."""
    rows = 2  # the image-pair head needs an even number
    regions = jnp.zeros((rows, 1, config.region_feature_dim), jnp.float32)
    pictures = {}
    if config.grid is not None:
        side = config.grid.side
        pictures["images"] = jnp.zeros((rows, side, side, 3), jnp.float32)
        pictures["picture_size"] = jnp.full((rows, 2), side, jnp.int32)
    return TwoStreamModel(config).init(
        key,
        jnp.zeros((rows, 2), jnp.int32),
        jnp.ones((rows, 2), bool),
        regions,
        jnp.zeros((rows, 1, 5), jnp.float32),
        jnp.ones((rows, 1), bool),
        jnp.zeros((), jnp.int32),
        heads=config.all_heads,
        **pictures,
    )["params"]


def init_params(config: TwoStreamConfig, key: Array) -> Any:
    """Random parameters, a plain nested dict of float32 arrays: N(0, 0.02), biases 0, norms 1.

    The layout depends on `config.scan_layers`; `encoder.stack_layers` maps one to the other. To
    create large parameters sharded, call it under `jax.jit` with `out_shardings`.
    """
    return nn.unbox(_init(config, key))


@functools.lru_cache(maxsize=16)  # tracing the model takes half a second
def abstract_params(config: TwoStreamConfig) -> Any:
    """Shapes and logical axis names of all parameters, without allocating any.

    Returns:
      A nested dict of `nn.LogicallyPartitioned` around `jax.ShapeDtypeStruct`, cached;
      `nn.unbox` gives a copy without the names.
    """
    return jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))


def count_parameters(config: TwoStreamConfig) -> int:
    """Number of parameters of our model; unlike the released one it has no unused layers."""
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(abstract_params(config))))
