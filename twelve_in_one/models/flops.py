"""Multiply-add work of models, counted from their sizes, or from a function's traced operations."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params

from twelve_in_one.models import conv_stem
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.tubes import tube_grid
from twelve_in_one.models.two_stream.config import StreamConfig, TwoStreamConfig
from twelve_in_one.models.vit import ViTConfig


def _self_attention_layer(stream: StreamConfig, length: int) -> int:
    """One row through one layer: four projections, scores and values, feed-forward."""
    projections = 4 * length * stream.hidden_dim**2
    attention = 2 * length**2 * stream.hidden_dim
    return 2 * (projections + attention + 2 * length * stream.hidden_dim * stream.mlp_dim)


def _connection(config: TwoStreamConfig, text_length: int, num_regions: int) -> int:
    width, total = config.coattention_dim, 0
    for stream, length in ((config.text, text_length), (config.visual, num_regions)):
        total += 4 * length * stream.hidden_dim * width  # query, key, value, output
        total += 2 * length * stream.hidden_dim * stream.mlp_dim
    return 2 * (total + 2 * 2 * text_length * num_regions * width)


def _head(config: TwoStreamConfig, head: str, text_length: int, num_regions: int) -> int:
    fused, text, visual = config.coattention_dim, config.text.hidden_dim, config.visual.hidden_dim
    per_row = {
        "vqa": 2 * fused * (fused + config.num_vqa_answers),
        "gqa": 2 * fused * (fused + config.num_gqa_answers),
        "image_pair": (2 * fused) * (2 * fused + 2) // 2,  # one classifier for two rows
        "image_text_match": fused,
        "three_way": 3 * fused,
        "region_score": num_regions * visual,
        "token_score": text_length * text,
        "masked_language": text_length * text * (text + config.vocab_size),
        "masked_region": num_regions * visual * (visual + config.masked_region_dim),
        "alignment": 2 * fused,
    }
    return 2 * per_row[head]


def forward_flops(
    config: TwoStreamConfig, num_tokens: int, num_regions: int, heads: Sequence[str]
) -> int:
    """FLOPs of the matrix products of one forward row; a training step takes about 3 times that.

    Args:
      config: the model.
      num_tokens: T, without the task slot.
      num_regions: R.
      heads: heads to compute.

    Raises:
      ValueError: a model that reads pictures, for which there is `traced_flops`.
    """
    if config.grid is not None:
        raise ValueError("a model with a grid: count its operations with traced_flops")
    length = num_tokens + (1 if config.num_tasks else 0)
    total = config.text.num_layers * _self_attention_layer(config.text, length)
    total += config.visual.num_layers * _self_attention_layer(config.visual, num_regions)
    if config.with_coattention:
        total += config.num_connections * _connection(config, length, num_regions)
    visual = config.visual.hidden_dim
    total += 2 * num_regions * visual * (config.region_feature_dim + 5)
    total += 2 * config.coattention_dim * (config.text.hidden_dim + visual)
    if config.dynamic_attention:
        total += config.visual.num_layers * 2 * 2 * config.text.hidden_dim * visual
    return total + sum(_head(config, head, length, num_regions) for head in heads)


def vit_forward_flops(config: ViTConfig) -> int:
    """FLOPs of the products of the forward of one image, or clip, through a ViT, with embedding."""
    width, patches = config.hidden_dim, config.grid[0] * config.grid[1]
    length, clip = config.num_tokens, config.clip
    macs = patches * 3 * config.patch_size**2 * width
    if config.stem == "convolutions":
        macs = patches * width**2 + conv_stem.macs(width, config.image_size, config.patch_size)
    if clip.frames:
        macs *= clip.patch_frames
        for tube in clip.tubes:
            places = math.prod(tube_grid(tube, (clip.frames, *config.image_size)))
            macs += places * math.prod(tube[:3]) * 3 * width
    for layer in range(config.num_layers):
        windowed = config.window and layer not in config.global_layers
        read = config.window**2 if windowed else length
        macs += length * width * (4 * width + 2 * read + 2 * config.mlp_dim)
    if config.pool == "attention":
        # Keys and values of all tokens; query, output and feed-forward block of the probe.
        macs += 2 * length * width**2 + 2 * length * width + 2 * width * (width + config.mlp_dim)
    rows = length if config.pool == "none" else 1
    macs += rows * width * (width * config.representation + config.num_classes)
    return 2 * macs


def decoder_forward_flops(
    config: TextDecoderConfig, num_tokens: int, num_encoded: int, *, logits: bool = True
) -> int:
    """FLOPs of the products of one whole text through a text decoder.

    Args:
      config: the decoder.
      num_tokens: of the text, padding included.
      num_encoded: tokens of the encoder; 0 skips the cross-attention.
      logits: include those of every token.
    """
    width, length, crossed = config.hidden_dim, num_tokens, len(config.cross_layers)
    macs = config.num_layers * length * width * (4 * width + 2 * length)
    mlps = config.num_layers - (crossed if config.cross_mlp == "own" else 0)
    if num_encoded:
        reading = length * width * (2 * width + 2 * num_encoded)
        macs += crossed * (reading + encoder_key_macs(config, num_encoded))
        mlps += 0 if config.cross_mlp == "shared" else crossed
    macs += mlps * 2 * length * width * config.mlp_dim
    return 2 * (macs + (length * width * config.vocab_size if logits else 0))


def encoder_key_macs(config: TextDecoderConfig, num_encoded: int) -> int:
    """Multiply-adds of one block's keys and values of an image's tokens."""
    return 2 * num_encoded * config.encoder_dim * config.hidden_dim


def traced_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of the products and convolutions of a function; nothing is computed.

    Args:
      function: of arrays.
      *arguments: arrays, or their shapes and dtypes.
    """
    return sum(product_flops(jax.make_jaxpr(function)(*arguments).jaxpr).values())


def product_flops(jaxpr: Jaxpr) -> Mapping[str, int]:
    """Name of the operands' dtype -> FLOPs of products and convolutions, over all devices.

    Counted as traced: what XLA would drop or repeat is not in it, what is rematerialised is. Of
    alternatives the dearest counts, of loops whose rounds depend on data one round.
    """
    total: collections.Counter[str] = collections.Counter()
    for step in jaxpr.eqns:
        kind, sizes = step.primitive.name, step.params
        if kind == "dot_general":
            left, (contracted, _) = step.invars[0].aval, sizes["dimension_numbers"][0]
            inner = math.prod(left.shape[axis] for axis in contracted)
            total[str(left.dtype)] += 2 * math.prod(step.outvars[0].aval.shape) * inner
        elif kind == "conv_general_dilated":
            kernel = step.invars[1].aval
            inner = math.prod(kernel.shape) // kernel.shape[sizes["dimension_numbers"].rhs_spec[0]]
            total[str(kernel.dtype)] += 2 * math.prod(step.outvars[0].aval.shape) * inner
        else:
            parts = [product_flops(inner) for inner in jaxprs_in_params(sizes)]
            if kind == "cond":
                parts = [max(parts, key=lambda flops: sum(flops.values()))]
            rounds = sizes["length"] if kind == "scan" else 1
            if kind == "shard_map":  # the body is that of one device
                rounds = math.prod(sizes["mesh"].shape.values())
            for part in parts:
                total.update({dtype: rounds * flops for dtype, flops in part.items()})
    return total
