"""Runs the layers of both streams in the order given by the connections.

Unrolled, every layer has its own parameters: `text_layer_i`, `visual_layer_i`, `connection_i`.
Scanned, each repeated stretch of the order (`order.Segment`) is one `lax.scan` over parameters
stacked along a leading axis, in `segment_k`. Both give the same numbers; `stack_layers` and
`unstack_layers` map parameters (or anything of their structure) between the two.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.layers import TransformerLayer, fold_key
from twelve_in_one.models.two_stream.coattention import CoAttentionLayer
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.order import Segment, segments

Array = jax.Array

# Folded into the dropout key before the layer id, so that each layer draws its own masks.
_KIND_KEYS = {"text": 0, "visual": 1, "connection": 2}
_LAYER_NAMES = {"text": "text_layer", "visual": "visual_layer", "connection": "connection"}


def layer_name(kind: str, layer_id: int) -> str:
    """Name of a layer among the unrolled parameters, e.g. "text_layer_3"."""
    return f"{_LAYER_NAMES[kind]}_{layer_id}"


def _remat(module: type[nn.Module], policy: str, *, in_scan: bool) -> type[nn.Module]:
    if policy == "none":
        return module
    save = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    # Inside a scan the loop itself keeps the compiler from merging the two passes.
    return nn.remat(module, policy=save, prevent_cse=not in_scan)


def _run_layers(
    config: TwoStreamConfig,
    layers: list[tuple[str, int, int | Array]],
    streams: tuple[Array, Array],
    masks: tuple[Array, Array],
    dropout_key: Array | None,
    *,
    return_attention: bool,
    in_scan: bool,
) -> tuple[tuple[Array, Array], dict[str, Array]]:
    """Runs layers one after the other inside the compact module that calls it.

    Args:
      layers: (kind, id that names the parameters, id that seeds the dropout) each.
    """
    (text, visual), (text_mask, region_mask), aux = streams, masks, {}
    layer = _remat(TransformerLayer, config.remat, in_scan=in_scan)
    connection = _remat(CoAttentionLayer, config.remat, in_scan=in_scan)
    for kind, name_id, layer_id in layers:
        name = layer_name(kind, name_id)
        key = fold_key(dropout_key, _KIND_KEYS[kind], layer_id)
        if kind == "text":
            module = layer(config.text, config.numerics, "text_embed", name=name)
            text, attention = module(text, text_mask, key)
            aux[name], maps = text, {name: attention}
        elif kind == "visual":
            gated = config.dynamic_attention
            gate_input = _masked_mean(text, text_mask) if gated else None
            module = layer(config.visual, config.numerics, "visual_embed", gated, name=name)
            visual, attention = module(visual, region_mask, key, gate_input)
            aux[name], maps = visual, {name: attention}
        else:
            text, visual, text_map, visual_map = connection(config, name=name)(
                text, visual, text_mask, region_mask, key
            )
            aux[f"{name}_text"], aux[f"{name}_visual"] = text, visual
            maps = {f"{name}_text_reads_visual": text_map, f"{name}_visual_reads_text": visual_map}
        if return_attention:
            aux |= {f"attention/{map_name}": value for map_name, value in maps.items()}
    return (text, visual), aux


def _masked_mean(x: Array, mask: Array) -> Array:
    """Mean of [B, S, D] over the positions where `mask` bool[B, S] is True: [B, D]."""
    weights = mask.astype(x.dtype)
    return jnp.einsum("bs,bsd->bd", weights, x) / jnp.sum(weights, axis=1)[:, None]


def _all_pairs(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    """[M, ...] of text and [N, ...] of images to [M * N, ...] each, text the slow axis."""
    text, visual = pair
    tiled = jnp.tile(visual, (text.shape[0],) + (1,) * (visual.ndim - 1))
    return jnp.repeat(text, visual.shape[0], axis=0), tiled


class Block(nn.Module):
    """One repeat of a segment, the body of a scan. Names its parameters after repeat 0."""

    config: TwoStreamConfig
    segment: Segment
    return_attention: bool

    @nn.compact
    def __call__(
        self,
        streams: tuple[Array, Array],
        repeat: Array,
        masks: tuple[Array, Array],
        dropout_key: Array | None,
    ) -> tuple[tuple[Array, Array], dict[str, Array]]:
        """Maps (text [B, S, D], visual [B, R, V]) to the same, and names the intermediates."""
        pattern = self.segment.pattern
        layers = [
            (kind, first_id, first_id + repeat * pattern.count(kind))
            for kind, first_id in self.segment.layers(0)
        ]
        return _run_layers(
            self.config,
            layers,
            streams,
            masks,
            dropout_key,
            return_attention=self.return_attention,
            in_scan=True,
        )


class Encoder(nn.Module):
    """All layers of both streams."""

    config: TwoStreamConfig

    @nn.compact
    def __call__(
        self,
        text: Array,
        visual: Array,
        text_mask: Array,
        region_mask: Array,
        dropout_key: Array | None = None,
        *,
        all_pairs: bool = False,
        return_attention: bool = False,
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Runs the encoder.

        Args:
          text: [B, S, D]; with `all_pairs` [M, S, D].
          visual: [B, R, V]; with `all_pairs` [N, R, V].
          text_mask: bool[B, S].
          region_mask: bool[B, R].
          dropout_key: key of all layers' dropout, or None.
          all_pairs: just before the first connection, form all M * N pairs, caption-major.
          return_attention: add attention maps to the intermediates.

        Returns:
          text, visual and the named intermediates; see `TwoStreamTrunk`.
        """
        config = self.config
        streams, masks, aux = (text, visual), (text_mask, region_mask), {}
        unpaired_layers = config.text_connections[0] + config.visual_connections[0]
        layers_run = 0
        for k, segment in enumerate(segments(config)):
            if all_pairs and layers_run == unpaired_layers:
                streams, masks = _all_pairs(streams), _all_pairs(masks)
            if config.scan_layers and segment.repeats > 1:
                scan = nn.scan(
                    Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=(0, nn.broadcast, nn.broadcast),
                    length=segment.repeats,
                    metadata_params={nn.PARTITION_NAME: "layers"},
                )
                block = scan(config, segment, return_attention, name=segment_name(k))
                repeats = jnp.arange(segment.repeats, dtype=jnp.int32)
                streams, stacked = block(streams, repeats, masks, dropout_key)
                aux |= _unstack_aux(stacked, segment)
            else:
                layers = [
                    (kind, i, i) for r in range(segment.repeats) for kind, i in segment.layers(r)
                ]
                streams, block_aux = _run_layers(
                    config,
                    layers,
                    streams,
                    masks,
                    dropout_key,
                    return_attention=return_attention,
                    in_scan=False,
                )
                aux |= block_aux
            layers_run += segment.repeats * len(segment.pattern)
            streams = _stop_frozen(config, segment, streams)
        return *streams, aux


def _stop_frozen(
    config: TwoStreamConfig, segment: Segment, streams: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Stops the gradient of a stream after its last frozen layer, which ends a segment."""
    text, visual = streams
    last = set(segment.layers(segment.repeats - 1))
    if ("text", config.text.num_frozen_layers - 1) in last:
        text = jax.lax.stop_gradient(text)
    if ("visual", config.visual.num_frozen_layers - 1) in last:
        visual = jax.lax.stop_gradient(visual)
    return text, visual


def segment_name(k: int) -> str:
    """Name of segment number `k` among the scanned parameters."""
    return f"segment_{k}"


def _unstack_aux(stacked: Mapping[str, Array], segment: Segment) -> dict[str, Array]:
    """Intermediates stacked over repeats, renamed after their layers."""
    aux = {}
    for r in range(segment.repeats):
        for (kind, first_id), (_, layer_id) in zip(
            segment.layers(0), segment.layers(r), strict=True
        ):
            first, ours = layer_name(kind, first_id), layer_name(kind, layer_id)
            for name, values in stacked.items():
                prefix, base = (
                    ("attention/", name[10:]) if name[:10] == "attention/" else ("", name)
                )
                if base == first or base.startswith(first + "_"):
                    aux[prefix + ours + base[len(first) :]] = values[r]
    return aux


def stack_layers(config: TwoStreamConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model in the scanned layout.

    Args:
      config: the model's config; its `scan_layers` is not read.
      params: parameters of a `TwoStreamModel`, or a tree of that structure (gradients, moments).

    Returns:
      The same of a scanned model: repeated layers stacked along a new leading axis.
    """
    encoder, result = params["trunk"]["encoder"], {}
    for k, segment in enumerate(segments(config)):
        if segment.repeats == 1:
            result |= {
                layer_name(*layer): encoder[layer_name(*layer)] for layer in segment.layers(0)
            }
            continue
        repeats = [segment.layers(r) for r in range(segment.repeats)]
        result[segment_name(k)] = {
            layer_name(*first): jax.tree.map(
                lambda *leaves: jnp.stack(leaves),
                *(encoder[layer_name(*repeat[i])] for repeat in repeats),
            )
            for i, first in enumerate(segment.layers(0))
        }
    return _replace_encoder(params, result)


def unstack_layers(config: TwoStreamConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    encoder, result = params["trunk"]["encoder"], {}
    for k, segment in enumerate(segments(config)):
        for r in range(segment.repeats):
            for first, layer in zip(segment.layers(0), segment.layers(r), strict=True):
                if segment.repeats == 1:
                    result[layer_name(*layer)] = encoder[layer_name(*layer)]
                else:
                    stacked = encoder[segment_name(k)][layer_name(*first)]
                    result[layer_name(*layer)] = jax.tree.map(lambda leaf, r=r: leaf[r], stacked)
    return _replace_encoder(params, result)


def _replace_encoder(params: Mapping[str, Any], encoder: dict[str, Any]) -> dict[str, Any]:
    return {**params, "trunk": {**params["trunk"], "encoder": encoder}}
