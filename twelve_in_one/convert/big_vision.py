"""Vision Transformers of big_vision (`.npz`) to our parameters and back.

Reads today's layout, scanned and unrolled, the old one of the AugReg files, SigLIP's image tower,
whole training states, and bfloat16, which NumPy saves as two bytes without a meaning.
"""

import dataclasses
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError, nearest_names
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.models.vit import ViTConfig, abstract_params, resize_positions

_BLOCK = "Transformer/encoderblock_{}/"
# Theirs below a block or a pooling head, and ours.
_ATTENTION = {
    f"MultiHeadDotProductAttention_0/{name}/{leaf}": ("attention", name, leaf)
    for name in ("query", "key", "value", "out")
    for leaf in ("kernel", "bias")
}
_MLP = {
    f"MlpBlock_0/Dense_{i}/{leaf}": ("mlp", name, leaf)
    for i, name in enumerate(("up", "down"))
    for leaf in ("kernel", "bias")
}


def _norm(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}/{leaf}": (*ours, leaf) for leaf in ("scale", "bias")}


_IN_BLOCK = (
    _ATTENTION | _MLP | _norm("LayerNorm_0", "attention_norm") | _norm("LayerNorm_1", "mlp_norm")
)
_IN_POOL = _ATTENTION | _MLP | _norm("LayerNorm_0", "norm") | {"probe": ("probe",)}
# The AugReg files number modules by their position in a block, whatever their kind.
_OLD_MODULES = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
_OLD_POSITIONS = "Transformer/posembed_input/pos_embedding"


class Loaded(NamedTuple):
    """A model as it was found.

    Attributes:
      config: its sizes, and the pooling that it comes with.
      params: nested dict of float32 arrays, unrolled.
      report: what happened to every entry.
    """

    config: ViTConfig
    params: dict[str, Any]
    report: Report


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The parameters in a file: all of it, or the part below `params/` or `opt/target/`.

    Raises:
      ValueError: not an .npz of plain arrays; names the file.
      OSError: it cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: plain(archive[name]) for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise ValueError(f"{path}: not a readable .npz of plain arrays: {error}") from error
    for prefix in ("params/", "opt/target/"):
        below = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        if below:
            return below
    return arrays


def plain(array: np.ndarray) -> np.ndarray:
    """`array`, as bfloat16 where NumPy only knows two bytes."""
    return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def modern_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of any of big_vision's layouts under the names of today's, unrolled.

    The AugReg files' position table has a first row for the class token: it is added to the token.
    """
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        scanned = re.fullmatch(r"(Transformer/)encoderblock/(.+)", name)
        if scanned:
            for i, layer in enumerate(array):
                result[_BLOCK.format(i) + scanned[2]] = layer
            continue
        parts = [_OLD_MODULES.get(part, part) for part in name.split("/")]
        result["/".join(parts)] = array
    if _OLD_POSITIONS in result:
        table = np.asarray(result.pop(_OLD_POSITIONS), np.float32)
        if "cls" in result:
            result["cls"] = np.asarray(result["cls"], np.float32) + table[:, :1]
            table = table[:, 1:]
        result["pos_embedding"] = table
    return result


def _names(config: ViTConfig) -> dict[str, tuple[str, ...]]:
    """{their name: our path} of all that a model has."""
    names = {f"embedding/{leaf}": ("patch_embedding", leaf) for leaf in ("kernel", "bias")}
    names["pos_embedding"] = ("position",)
    if config.class_token:
        names["cls"] = ("class_token",)
    for i in range(config.num_layers):
        names |= {_BLOCK.format(i) + k: (f"block_{i}", *v) for k, v in _IN_BLOCK.items()}
    names |= _norm("Transformer/encoder_norm", "final_norm")
    if config.pool == "attention":
        names |= {f"MAPHead_0/{k}": ("attention_pool", *v) for k, v in _IN_POOL.items()}
    if config.representation:
        names |= {f"pre_logits/{leaf}": ("representation", leaf) for leaf in ("kernel", "bias")}
    if config.num_classes:
        names |= {f"head/{leaf}": ("classifier", leaf) for leaf in ("kernel", "bias")}
    return names


def config_of(arrays: Mapping[str, np.ndarray], **fields: Any) -> ViTConfig:
    """The config of a model under today's names; `fields` are what the caller knows better.

    Raises:
      ValueError: arrays that tell too little, or fields that do not fit them.
    """
    needed = ("embedding/kernel", "pos_embedding", _BLOCK.format(0) + "MlpBlock_0/Dense_0/kernel")
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"not a ViT of big_vision: there is no {', no '.join(missing)}")
    patch, _, _, width = arrays["embedding/kernel"].shape
    query = arrays[_BLOCK.format(0) + "MultiHeadDotProductAttention_0/query/kernel"]
    depth = 1 + max(
        int(match[1]) for name in arrays if (match := re.match(_BLOCK.format(r"(\d+)"), name))
    )
    patches = arrays["pos_embedding"].shape[-2]
    side = round(patches**0.5)
    if side * side != patches and "image_size" not in fields:
        raise ValueError(f"{patches} positions are no square: say image_size=(rows, columns)")
    pool = "attention" if "MAPHead_0/probe" in arrays else "class" if "cls" in arrays else "mean"
    found = dict(
        image_size=(side * patch, side * patch),
        patch_size=patch,
        pool=pool,
        representation="pre_logits/kernel" in arrays,
        num_classes=arrays["head/kernel"].shape[-1] if "head/kernel" in arrays else 0,
    )
    found |= fields
    found.setdefault("class_token", found["pool"] == "class")
    return ViTConfig(width, depth, query.shape[1], arrays[needed[2]].shape[-1], **found)


def from_big_vision(
    arrays: Mapping[str, np.ndarray],
    *,
    prefix: str = "",
    allow_unexpected: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
    **fields: Any,
) -> Loaded:
    """Our parameters from big_vision's.

    Args:
      arrays: from `read_npz`.
      prefix: of the entries to take, "img/" for SigLIP's image tower; others are not looked at.
      allow_unexpected: regular expressions of entries that need not be known.
      image_size: rows and columns of pixels that the model will see; the position table is resized
        to them. None takes the size that it was trained for, which must be square.
      **fields: fields of `ViTConfig` that the arrays do not tell, or that are wanted otherwise (a
        `pool` other than the one that comes with the file).

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: not a ViT.
    """
    taken = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    found = modern_names(taken)
    notes = []
    if image_size is not None and "pos_embedding" in found and "embedding/kernel" in found:
        patch, table = found["embedding/kernel"].shape[0], np.asarray(found["pos_embedding"])
        old, new = table.shape[-2], tuple(size // patch for size in image_size)
        if old != new[0] * new[1]:
            side = round(old**0.5)
            if side * side != old:
                raise ValueError(f"{old} positions are no square: they cannot be resized to {new}")
            resized = resize_positions(table.reshape(old, -1), (side, side), new)
            found["pos_embedding"] = resized[None]
            notes.append(f"positions resized from {side} x {side} to {new[0]} x {new[1]} patches")
    if image_size is not None:
        fields["image_size"] = image_size
    config = config_of(found, **fields)
    names = _names(config)
    unrolled = dataclasses.replace(config, scan_layers=False)
    shapes = flatten(nn.unbox(abstract_params(unrolled)))
    loaded, missing, wrong, params = [], [], [], {}
    for name, path in names.items():
        shape = shapes[path].shape
        if name not in found:
            missing.append(name)
            continue
        array = np.asarray(found[name])
        # Position table, class token and probe have a leading 1 there.
        if array.shape not in (shape, (1, *shape)):
            wrong.append((name, str(array.shape), str(shape)))
            continue
        params[path] = array.astype(np.float32).reshape(shape)
        loaded.append(name)
    unknown = [name for name in found if name not in names]
    # What other poolings or classes read is known, though this model has no use for it.
    optional = r"cls|head/.*|pre_logits/.*|MAPHead_0/.*"
    patterns = [re.compile(p) for p in (*allow_unexpected, optional)]
    unexpected = [n for n in unknown if not any(p.fullmatch(n) for p in patterns)]
    report = Report(
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong),
        unused=tuple(n for n in unknown if n not in unexpected),
        notes=tuple(notes),
        nearest=nearest_names(missing, unexpected) | nearest_names(unexpected, names),
    )
    if not report.ok:
        raise StateDictError(report)
    return Loaded(config, unflatten(params), report)


def to_big_vision(config: ViTConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our unrolled parameters under big_vision's names, tables with a leading 1.

    Raises:
      ValueError: a model that big_vision's ViT cannot hold (registers, a norm before the blocks).
    """
    if config.num_registers or config.pre_norm or not config.patch_bias:
        raise ValueError("big_vision's ViT has no registers, no norm before its blocks and a bias")
    flat = flatten(params)
    result = {name: np.asarray(flat[path]) for name, path in _names(config).items()}
    for name in ("pos_embedding", "cls", "MAPHead_0/probe"):
        if name in result:
            result[name] = result[name][None]
    return result
