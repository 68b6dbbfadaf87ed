"""Caffe's weights of bottom-up attention under the names of the ports, one array at a time.

The ports count the background last and give one number per anchor; Caffe counts it first, and gives
the background and the foreground of each anchor. Anchors and boxes stay Caffe's own.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from twelve_in_one.convert.files import LazyArray
from twelve_in_one.data.formats import caffe_file
from twelve_in_one.data.formats.caffe_file import Blob

SUFFIX = ".caffemodel"
# The letters and numbers of blocks: a, b, c, or a, b1, b2, ...
_LAYER = re.compile(r"(res|bn|scale)(\d)(a|b\d*|[c-z])_branch(1|2[abc])")
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_STEM = {"conv1": "res", "bn_conv1": "bn", "scale_conv1": "scale"}
_RPN, _BOX = "proposal_generator.rpn_head.", "roi_heads.box_predictor."
_PLAIN = {
    "rpn_conv/3x3": f"{_RPN}conv",
    "rpn_cls_score": f"{_RPN}objectness_logits",
    "rpn_bbox_pred": f"{_RPN}anchor_deltas",
    **{name: _BOX + name for name in ("cls_score", "bbox_pred", "cls_embedding", "fc_attr")},
    "attr_score": f"{_BOX}attr_score",
}

Read = Callable[[], np.ndarray]


def read(path: Path) -> dict[str, LazyArray]:
    """The entries of a file; layers that it knows nothing of keep their names.

    Raises:
      ValueError: see `caffe_file.load`; or a layer with another number of arrays.
      OSError: it cannot be read.
    """
    found: dict[str, LazyArray] = {}
    for layer, blobs in caffe_file.load(path).items():
        kind, name = _place(layer)
        if kind == "bn":
            mean, variance, factor = _exactly(path, layer, blobs, 3)
            for leaf, blob in (("running_mean", mean), ("running_var", variance)):
                read = functools.partial(_divided, blob, factor)
                found[f"{name}.norm.{leaf}"] = _lazy(blob.shape, read)
        elif kind == "scale":
            for leaf, blob in zip(("weight", "bias"), _exactly(path, layer, blobs, 2), strict=True):
                found[f"{name}.norm.{leaf}"] = _lazy(blob.shape, blob.read)
        elif kind == "res":
            (blob,) = _exactly(path, layer, blobs, 1)
            found[f"{name}.weight"] = _lazy(blob.shape, blob.read)
        else:
            for leaf, blob in zip(("weight", "bias"), blobs, strict=False):
                found[f"{name}.{leaf}"] = _ported(layer, blob)
    return found


def _place(layer: str) -> tuple[str, str]:
    """Kind of a layer ("" if it has no norm), and its name among the ports."""
    if layer in _STEM:
        return _STEM[layer], "backbone.stem.conv1"
    if match := _LAYER.fullmatch(layer):
        kind, stage, block, branch = match.groups()
        number = int(block[1:]) if block[1:] else ord(block) - ord("a")
        where = "roi_heads.res5" if stage == "5" else f"backbone.res{stage}"
        return kind, f"{where}.{number}.{_BRANCHES[branch]}"
    return "", _PLAIN.get(layer, layer)


def _exactly(path: Path, layer: str, blobs: tuple[Blob, ...], count: int) -> tuple[Blob, ...]:
    if len(blobs) != count:
        raise ValueError(f"{path}: layer {layer!r} has {len(blobs)} arrays, not {count}")
    return blobs


def _lazy(shape: tuple[int, ...], read: Read) -> LazyArray:
    return LazyArray(shape, np.dtype(np.float32), read)


def _divided(blob: Blob, factor: Blob) -> np.ndarray:
    """Statistics are stored as sums, with the number of terms; of none they are 0."""
    terms = float(factor.read().sum())
    return blob.read() * np.float32(1 / terms if terms else 0.0)


def _ported(layer: str, blob: Blob) -> LazyArray:
    size = blob.shape[0] if blob.shape else 0
    if layer == "rpn_cls_score" and size % 2 == 0:
        return _lazy((size // 2, *blob.shape[1:]), functools.partial(_difference, blob))
    if layer == "bbox_pred" and size > 4:
        return _lazy((size - 4, *blob.shape[1:]), functools.partial(_foreground, blob))
    if layer == "cls_score":
        return _lazy(blob.shape, functools.partial(_background_last, blob))
    return _lazy(blob.shape, blob.read)


def _difference(blob: Blob) -> np.ndarray:
    background, foreground = np.split(blob.read(), 2)
    return foreground - background


def _foreground(blob: Blob) -> np.ndarray:
    return blob.read()[4:]


def _background_last(blob: Blob) -> np.ndarray:
    return np.roll(blob.read(), -1, axis=0)
