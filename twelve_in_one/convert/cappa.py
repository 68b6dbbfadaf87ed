"""CapPa's captioners as big_vision saves them (`.npz`): a ViT and a text decoder.

Reads unrolled and scanned files; scanned ones stack the encoder's blocks on axis 0 and the
decoder's on axis 1. A file without `encoder/` is a decoder alone.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert import big_vision, entries
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.models import text_decoder, vit
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig

_ENCODER, _BLOCK = "encoder/", "decoder/EncDecBlock{}/"
_POSITIONS, _TOKENS = "pos_embedding_decoder", "decoder/EmbedTargets/embedding"
_LOGITS = "decoder/LogitsDense/kernel"
_NORMS = {
    "LayerNorm1": "self_attention_norm",
    "LayerNorm2": "cross_attention_norm",
    "LayerNorm3": "mlp_norm",
}
_ATTENTIONS = {"SelfAttn": "self_attention", "CrossAttn": "cross_attention"}
_MLP = {"MLP/Dense_0": "up", "MLP/Dense_1": "down"}


class CaptionerConfig(NamedTuple):
    """An encoder, or None for a decoder alone, and its decoder."""

    encoder: ViTConfig | None
    decoder: TextDecoderConfig


def unscanned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The decoder's parameters with one entry per block; others as they are."""
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if below := re.fullmatch(_BLOCK.format("") + "(.+)", name):
            for i, layer in enumerate(np.moveaxis(array, 1, 0)):
                result[_BLOCK.format(i) + below[1]] = layer
        else:
            result[name] = array
    return result


def names(config: TextDecoderConfig) -> dict[str, entries.Path]:
    """{their name: our path} of all parameters of a decoder.

    Raises:
      ValueError: a decoder that CapPa's cannot hold.
    """
    if config.cross_every != 1 or config.norm_encoder or config.tied_logits:
        raise ValueError(
            "CapPa's decoder has cross-attention in every block, to tokens as they are, and logits "
            "with parameters of their own"
        )
    leaves = ("kernel", "bias")
    found: dict[str, entries.Path] = {_POSITIONS: ("position",), _TOKENS: ("token", "embedding")}
    for i in range(config.num_layers):
        above, block = _BLOCK.format(i), f"block_{i}"
        for theirs, ours in _NORMS.items():
            for leaf in ("scale", "bias")[: 1 + config.block_biases]:
                found[f"{above}{theirs}/{leaf}"] = (block, ours, leaf)
        for theirs, ours in _ATTENTIONS.items():
            for part in ("query", "key", "value", "out"):
                for leaf in leaves[: 1 + config.attention_biases]:
                    found[f"{above}{theirs}/{part}/{leaf}"] = (block, ours, part, leaf)
        for theirs, ours in _MLP.items():
            for leaf in leaves[: 1 + config.block_biases]:
                found[f"{above}{theirs}/{leaf}"] = (block, "mlp", ours, leaf)
    found |= {f"decoder/LayerNorm/{leaf}": ("final_norm", leaf) for leaf in ("scale", "bias")}
    return found | {f"decoder/LogitsDense/{leaf}": ("logits", leaf) for leaf in leaves}


def config_of(arrays: Mapping[str, np.ndarray], **fields: Any) -> TextDecoderConfig:
    """The config of an unscanned decoder; `fields` override it.

    Raises:
      ValueError: insufficient arrays, or fields that do not fit them.
    """
    first = _BLOCK.format(0)
    query, key = first + "SelfAttn/query/kernel", first + "CrossAttn/key/kernel"
    up = first + "MLP/Dense_0/kernel"
    needed = (_POSITIONS, _TOKENS, _LOGITS, query, key, up)
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"not a captioner of big_vision: there is no {', no '.join(missing)}")
    numbered = re.compile(_BLOCK.format(r"(\d+)"))
    depth = 1 + max(int(found[1]) for name in arrays if (found := numbered.match(name)))
    width, heads, _ = arrays[query].shape
    found = dict(
        vocab_size=arrays[_LOGITS].shape[-1],
        max_tokens=arrays[_POSITIONS].shape[-2],
        encoder_dim=arrays[key].shape[0],
        block_biases=first + "LayerNorm1/bias" in arrays,
        attention_biases=query.replace("kernel", "bias") in arrays,
    )
    return TextDecoderConfig(width, depth, heads, arrays[up].shape[-1], **(found | fields))


def from_big_vision(
    arrays: Mapping[str, np.ndarray],
    *,
    image_size: tuple[int, int] | None = None,
    allow_unexpected: tuple[str, ...] = (),
    encoder: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
) -> Loaded:
    """Our parameters, "encoder" (if there is one) and "decoder", from big_vision's.

    Args:
      arrays: from `big_vision.read_npz`.
      image_size: rows and columns of pixels for the encoder; its positions are resized to them.
        None takes the size that it was trained for, which must be square.
      allow_unexpected: regular expressions of entries that need not be known.
      encoder: fields of `ViTConfig` that the arrays do not determine, or that override them.
      decoder: the same for `TextDecoderConfig`.

    Returns:
      A model with a `CaptionerConfig`. A row of the token table beyond the vocabulary, the mask of
      parallel prediction, is left out; the report notes it.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: no captioner.
    """
    found = unscanned({k: v for k, v in arrays.items() if not k.startswith(_ENCODER)})
    config = CaptionerConfig(None, config_of(found, **(decoder or {})))
    notes: tuple[str, ...] = ()
    surplus = found[_TOKENS].shape[0] - config.decoder.vocab_size
    if surplus > 0:
        found[_TOKENS] = found[_TOKENS][: config.decoder.vocab_size]
        notes += (f"left out {surplus} rows of {_TOKENS} beyond the vocabulary (the mask)",)
    below = {k.removeprefix(_ENCODER): v for k, v in arrays.items() if k.startswith(_ENCODER)}
    if below:
        below, resized = big_vision.resized(big_vision.modern_names(below), image_size)
        sizes = {} if image_size is None else {"image_size": image_size}
        config = config._replace(
            encoder=big_vision.config_of(below, **(sizes | dict(encoder or {})))
        )
        found |= {_ENCODER + k: v for k, v in below.items()}
        notes += resized
    shapes = {k: v.shape for k, v in flatten(nn.unbox(_abstract(config))).items()}
    params, report = entries.match(
        {path: (name,) for name, path in _names(config).items()},
        found,
        shapes,
        big_vision.to_ours,
        unneeded=(*allow_unexpected, f"{_ENCODER}(?:{big_vision.OPTIONAL})"),
    )
    report = dataclasses.replace(report, notes=notes)
    if not report.ok:
        raise StateDictError(report)
    return Loaded(config, unflatten(params), report)


def to_big_vision(config: CaptionerConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our unrolled parameters under big_vision's names, unscanned.

    Raises:
      ValueError: an encoder or a decoder that big_vision's cannot hold.
    """
    if config.encoder is not None:
        big_vision.check_form(config.encoder)
    return big_vision.with_leading_ones(_names(config), params)


def _names(config: CaptionerConfig) -> dict[str, entries.Path]:
    found = {name: ("decoder", *path) for name, path in names(config.decoder).items()}
    if config.encoder is not None:
        encoder = big_vision.names(config.encoder)
        found |= {_ENCODER + name: ("encoder", *path) for name, path in encoder.items()}
    return found


def _abstract(config: CaptionerConfig) -> dict[str, Any]:
    decoder = dataclasses.replace(config.decoder, scan_layers=False)
    shapes = {"decoder": text_decoder.abstract_params(decoder)}
    if config.encoder is not None:
        encoder = dataclasses.replace(config.encoder, scan_layers=False)
        shapes["encoder"] = vit.abstract_params(encoder)
    return shapes
