"""Vision Transformers of big_vision (`.npz`) to our parameters and back.

Reads the current layout, scanned and unrolled, the old ones of the AugReg files and of text towers
with two position tables, whole training states, and bfloat16, which NumPy saves as untyped byte
pairs. `two_tower.py` reads files of two towers (SigLIP), with the names from here.
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

from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert.entries import Path as ParamPath
from twelve_in_one.convert.entries import match
from twelve_in_one.models.two_tower import TextTowerConfig
from twelve_in_one.models.vit import ViTConfig, abstract_params, resize_positions

_BLOCK = "encoderblock_{}/"
_VIT_BLOCKS, _TEXT_BLOCKS = "Transformer/", "Encoder_0/"
# Their names below a block or a pooling head, and ours.
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
_OLD_TEXT_POSITIONS = "Encoder_0/pos_embedding"
# Entries for other poolings or classes are known, though a model may not use them.
OPTIONAL = r"cls|head/.*|pre_logits/.*|MAPHead_0/.*"


class Loaded(NamedTuple):
    """A loaded model.

    Attributes:
      config: its sizes and its original pooling; of a `ViT` or a `TwoTower`.
      params: nested dict of float32 arrays, unrolled.
      report: the outcome for every entry.
    """

    config: Any
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
    """`array`, as bfloat16 if NumPy only knows two untyped bytes."""
    return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def modern_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of any of big_vision's layouts under the current names, unrolled.

    The AugReg files' position table has a first row for the class token: it is added to the token.
    Old text towers add two position tables: their sum is one.
    """
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        scanned = re.fullmatch(r"(Transformer/|Encoder_0/)encoderblock/(.+)", name)
        if scanned:
            for i, layer in enumerate(array):
                result[scanned[1] + _BLOCK.format(i) + scanned[2]] = layer
            continue
        parts = [_OLD_MODULES.get(part, part) for part in name.split("/")]
        result["/".join(parts)] = array
    if _OLD_POSITIONS in result:
        table = np.asarray(result.pop(_OLD_POSITIONS), np.float32)
        if "cls" in result:
            result["cls"] = np.asarray(result["cls"], np.float32) + table[:, :1]
            table = table[:, 1:]
        result["pos_embedding"] = table
    if _OLD_TEXT_POSITIONS in result and "pos_embedding" in result:
        table = np.asarray(result.pop(_OLD_TEXT_POSITIONS), np.float32)
        result["pos_embedding"] = np.asarray(result["pos_embedding"], np.float32) + table
    return result


def _block_names(above: str, num_layers: int) -> dict[str, ParamPath]:
    return {
        above + _BLOCK.format(i) + theirs: (f"block_{i}", *ours)
        for i in range(num_layers)
        for theirs, ours in _IN_BLOCK.items()
    } | _norm(f"{above}encoder_norm", "final_norm")


def _linear(theirs: str, ours: str) -> dict[str, ParamPath]:
    return {f"{theirs}/{leaf}": (ours, leaf) for leaf in ("kernel", "bias")}


def names(config: ViTConfig) -> dict[str, ParamPath]:
    """{their name: our path} of all parameters of a model."""
    found: dict[str, ParamPath] = _linear("embedding", "patch_embedding")
    found["pos_embedding"] = ("position",)
    if config.class_token:
        found["cls"] = ("class_token",)
    found |= _block_names(_VIT_BLOCKS, config.num_layers)
    if config.pool == "attention":
        found |= {f"MAPHead_0/{k}": ("attention_pool", *v) for k, v in _IN_POOL.items()}
    if config.representation:
        found |= _linear("pre_logits", "representation")
    if config.num_classes:
        found |= _linear("head", "classifier")
    return found


def text_names(config: TextTowerConfig) -> dict[str, ParamPath]:
    """{their name: our path} of all parameters of a text tower."""
    found: dict[str, ParamPath] = {"Embed_0/embedding": ("token", "embedding")}
    found["pos_embedding"] = ("position",)
    found |= _block_names(_TEXT_BLOCKS, config.num_layers)
    if config.pool == "attention":
        found |= {f"MAPHead_0/{k}": ("attention_pool", *v) for k, v in _IN_POOL.items()}
    if config.out_dim:
        found |= _linear("head", "projection")
    return found


def config_of(arrays: Mapping[str, np.ndarray], **fields: Any) -> ViTConfig:
    """The config of a model under the current names; `fields` override it.

    Raises:
      ValueError: insufficient arrays, or fields that do not fit them.
    """
    _need(arrays, "ViT", "embedding/kernel", "pos_embedding")
    sizes = _sizes(arrays, "ViT", _VIT_BLOCKS)
    patch, _, _, width = arrays["embedding/kernel"].shape
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
    return ViTConfig(width, *sizes, **found)


def text_config_of(arrays: Mapping[str, np.ndarray], **fields: Any) -> TextTowerConfig:
    """The config of a text tower under the current names; `fields` override it.

    Raises:
      ValueError: insufficient arrays, or fields that do not fit them.
    """
    _need(arrays, "text tower", "Embed_0/embedding", "pos_embedding")
    sizes = _sizes(arrays, "text tower", _TEXT_BLOCKS)
    vocab_size, width = arrays["Embed_0/embedding"].shape
    found = dict(
        vocab_size=vocab_size,
        max_tokens=arrays["pos_embedding"].shape[-2],
        pool="attention" if "MAPHead_0/probe" in arrays else "last",
        out_dim=arrays["head/kernel"].shape[-1] if "head/kernel" in arrays else 0,
    )
    return TextTowerConfig(width, *sizes, **(found | fields))


def _need(arrays: Mapping[str, np.ndarray], what: str, *needed: str) -> None:
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"not a {what} of big_vision: there is no {', no '.join(missing)}")


def _sizes(arrays: Mapping[str, np.ndarray], what: str, above: str) -> tuple[int, int, int]:
    """Layers, heads and feed-forward width of the blocks below `above`."""
    first = above + _BLOCK.format(0)
    query, up = f"{first}MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel"
    _need(arrays, what, query, first + up)
    numbered = re.compile(re.escape(above) + _BLOCK.format(r"(\d+)"))
    depth = 1 + max(int(found[1]) for name in arrays if (found := numbered.match(name)))
    return depth, arrays[query].shape[1], arrays[first + up].shape[-1]


def resized(
    found: Mapping[str, np.ndarray], image_size: tuple[int, int] | None
) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Arrays under the current names, positions resized for pictures of `image_size`; a note.

    Raises:
      ValueError: the positions' grid is neither square nor that of `image_size`.
    """
    if image_size is None or not {"pos_embedding", "embedding/kernel"} <= set(found):
        return found, ()
    patch, table = found["embedding/kernel"].shape[0], np.asarray(found["pos_embedding"])
    old, new = table.shape[-2], tuple(size // patch for size in image_size)
    side = round(old**0.5)
    if old == new[0] * new[1]:
        odd = side * side == old and new[0] != new[1]
        return found, (f"positions taken for {new[0]} x {new[1]} patches",) if odd else ()
    if side * side != old:
        raise ValueError(f"{old} positions are no square: they cannot be resized to {new}")
    table = resize_positions(table.reshape(old, -1), (side, side), new)
    note = f"positions resized from {side} x {side} to {new[0]} x {new[1]} patches"
    return {**found, "pos_embedding": table[None]}, (note,)


def to_ours(path: ParamPath, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """One parameter; tables, class token, probe and scalars have a leading 1 in big_vision.

    Raises:
      ValueError: an array of another shape.
    """
    if arrays[0].shape not in (shape, (1, *shape)):
        raise ValueError(arrays[0].shape)
    return arrays[0].reshape(shape)


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
      prefix: of the entries to take, "img/" for SigLIP's image tower; others are ignored.
      allow_unexpected: regular expressions of entries that need not be known.
      image_size: rows and columns of pixels for the model; the position table is resized to them.
        None takes the size that it was trained for, which must be square.
      **fields: fields of `ViTConfig` that the arrays do not determine, or that override them (a
        `pool` other than the one of the file).

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: not a ViT.
    """
    taken = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    found, notes = resized(modern_names(taken), image_size)
    if image_size is not None:
        fields["image_size"] = image_size
    config = config_of(found, **fields)
    unrolled = dataclasses.replace(config, scan_layers=False)
    shapes = {k: v.shape for k, v in flatten(nn.unbox(abstract_params(unrolled))).items()}
    params, report = match(
        {path: (name,) for name, path in names(config).items()},
        found,
        shapes,
        to_ours,
        unneeded=(*allow_unexpected, OPTIONAL),
    )
    report = dataclasses.replace(report, notes=notes)
    if not report.ok:
        raise StateDictError(report)
    return Loaded(config, unflatten(params), report)


def to_big_vision(config: ViTConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our unrolled parameters under big_vision's names, tables with a leading 1.

    Raises:
      ValueError: a model that big_vision's ViT cannot hold (registers, a norm before the blocks).
    """
    check_form(config)
    return with_leading_ones(names(config), params)


def check_form(config: ViTConfig) -> None:
    """Raises a ValueError for a model that big_vision's ViT cannot hold."""
    if config.num_registers or config.pre_norm or not config.patch_bias:
        raise ValueError("big_vision's ViT has no registers, no norm before its blocks and a bias")
    if config.stem != "patches":
        raise ValueError("big_vision's ViT begins with patches, this one with convolutions")


def with_leading_ones(
    table: Mapping[str, ParamPath], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Parameters under their names; tables, class tokens, probes, scalars with a leading 1."""
    flat = flatten(params)
    lead = {"position", "class_token", "probe"}
    arrays = {name: (path, np.asarray(flat[path])) for name, path in table.items()}
    return {
        name: array[None] if path[-1] in lead or not array.ndim else array
        for name, (path, array) in arrays.items()
    }
