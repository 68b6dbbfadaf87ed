"""Where the parameters of region detectors are in released files: names, sizes and layouts.

"fpn" is the layout of maskrcnn-benchmark for a pyramid, "c4" that of the ports of bottom-up
attention. Frozen batch norms are multiplied into the convolutions, in float64.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.convert.entries import Path
from twelve_in_one.models.detection import c4, fpn
from twelve_in_one.models.detection.c4 import C4Config
from twelve_in_one.models.detection.fpn import FpnConfig
from twelve_in_one.models.detection.resnet import ResNetConfig

# An entry that tells the layout of a file.
KINDS = {"rpn.head.conv.weight": "fpn", "proposal_generator.rpn_head.conv.weight": "c4"}
# Regular expressions of entries that may be there and are not used.
UNNEEDED = {
    "fpn": (r"rpn\.anchor_generator\.cell_anchors\.\d",),
    "c4": (
        r"proposal_generator\.anchor_generator\.cell_anchors\.0",
        # Attributes of objects, which no model here reads.
        r"roi_heads\.box_predictor\.(cls_embedding|fc_attr|attr_score)\.(weight|bias)",
        r".*\.num_batches_tracked",
        r"pixel_(mean|std)",
    ),
}

_NORM = ("weight", "bias", "running_mean", "running_var")

Array = np.ndarray
Make = Callable[[list[Array], tuple[int, ...]], Array]


class Entry(NamedTuple):
    """The entries that a parameter is made of, and how, of float32 arrays and a shape.

    What it makes may be of another shape; if the arrays do not fit, it raises a ValueError.
    """

    names: tuple[str, ...]
    make: Make


def _shape(tensors: Mapping[str, Any], name: str, rank: int) -> tuple[int, ...] | None:
    shape = tuple(tensors[name].shape) if name in tensors else ()
    return shape if len(shape) == rank and all(shape) else None


def _body_config(
    tensors: Mapping[str, Any], stages: Sequence[str], default: ResNetConfig, dtype: str
) -> ResNetConfig:
    """The sizes of a body as far as its entries say them; the report says what is missing."""
    stem = _shape(tensors, _stem(stages[0]), 4)
    inner = _shape(tensors, f"{stages[0]}.0.conv2.weight", 4)
    outer = _shape(tensors, f"{stages[0]}.0.conv3.weight", 4)
    counts = []
    for stage in stages:
        pattern = re.compile(re.escape(stage) + r"\.(\d{1,3})\..*")
        places = [int(found[1]) for name in tensors if (found := pattern.fullmatch(name))]
        counts.append(max(places, default=0) + 1)
    if stem is None or inner is None or outer is None:
        return dataclasses.replace(default, dtype=dtype)
    return dataclasses.replace(
        default,
        blocks=tuple(counts),
        stem_dim=stem[0],
        inner_dim=inner[0],
        dim=outer[0],
        groups=inner[0] // inner[1] if inner[0] % inner[1] == 0 else 1,
        dtype=dtype,
    )


def _stem(first_stage: str) -> str:
    return first_stage.rpartition(".")[0] + ".stem.conv1.weight"


_FPN_STAGES = tuple(f"backbone.body.layer{i}" for i in range(1, 5))
_C4_STAGES = (*(f"backbone.res{i}" for i in (2, 3, 4)), "roi_heads.res5")


def config_of(kind: str, tensors: Mapping[str, Any], dtype: str) -> FpnConfig | C4Config:
    """The sizes of a network as far as the shapes of its entries say them; others are usual ones.

    Args:
      kind: "fpn" or "c4".
      tensors: anything with shapes, by name.
      dtype: compute dtype.
    """
    return (_fpn_config if kind == "fpn" else _c4_config)(tensors, dtype)


def _fpn_config(tensors: Mapping[str, Any], dtype: str) -> FpnConfig:
    default = fpn.X152
    pyramid = _shape(tensors, "backbone.fpn.fpn_layer1.weight", 4)
    hidden = _shape(tensors, "roi_heads.box.feature_extractor.fc7.weight", 2)
    classes = _shape(tensors, "roi_heads.box.predictor.cls_score.weight", 2)
    return FpnConfig(
        _body_config(tensors, _FPN_STAGES, default.body, dtype),
        pyramid[0] if pyramid else default.pyramid_dim,
        hidden[0] if hidden else default.hidden_dim,
        max(classes[0] - 1, 1) if classes else default.num_classes,
    )


def _c4_config(tensors: Mapping[str, Any], dtype: str) -> C4Config:
    default = c4.R101
    rpn = _shape(tensors, "proposal_generator.rpn_head.conv.weight", 4)
    classes = _shape(tensors, "roi_heads.box_predictor.cls_score.weight", 2)
    return C4Config(
        _body_config(tensors, _C4_STAGES, default.body, dtype),
        rpn[0] if rpn else default.rpn_dim,
        max(classes[0] - 1, 1) if classes else default.num_classes,
    )


def table(
    kind: str, config: FpnConfig | C4Config, shapes: Mapping[Path, tuple[int, ...]]
) -> dict[Path, Entry]:
    """{path of a parameter: its entries}.

    Args:
      kind: "fpn" or "c4".
      config: of that kind.
      shapes: of the parameters.
    """
    plain = _FPN_PLAIN if kind == "fpn" else _C4_PLAIN
    found = {}
    for path in shapes:
        if path[0] in plain:
            name, kernel, bias = plain[path[0]]
            leaf, make = ("weight", kernel) if path[-1] == "kernel" else ("bias", bias)
            found[path] = Entry((f"{name}.{leaf}",), make)
        else:
            found[path] = _folded(kind, config, path)
    return found


def _folded(kind: str, config: FpnConfig | C4Config, path: Path) -> Entry:
    """The entries of a convolution with a batch norm, of one block or of all in a scan."""
    blocks = config.body.blocks
    stages = _FPN_STAGES if kind == "fpn" else _C4_STAGES
    if path[1] == "stem":
        prefixes, module = [stages[0].rpartition(".")[0] + ".stem."], "conv_1"
    else:
        place = (
            len(blocks) - 1 if path[0] == "box_stage" else int(path[1].removeprefix("stage_")) - 1
        )
        block, module = path[-3], path[-2]
        numbers = [0] if block == "block_0" else range(1, blocks[place])
        prefixes = [f"{stages[place]}.{number}." for number in numbers]
    convolution, norm = _MODULES[kind][module]
    used = _NORM if path[-1] == "bias" else ("weight", "running_var")
    names = []
    for prefix in prefixes:
        if path[-1] == "kernel":
            names.append(f"{prefix}{convolution}.weight")
        names += [f"{prefix}{norm}.{name}" for name in used]
    # That of the pyramid has no epsilon.
    epsilon = 0.0 if kind == "fpn" else 1e-5
    fold = _fold_kernel if path[-1] == "kernel" else _fold_bias
    stacked, width = path[-3] == "blocks", len(names) // len(prefixes)

    def make(arrays: list[Array], shape: tuple[int, ...]) -> Array:
        parts = [
            fold(arrays[i : i + width], shape[-1], epsilon) for i in range(0, len(arrays), width)
        ]
        return np.stack(parts) if stacked else parts[0]

    return Entry(tuple(names), make)


# Our module -> their convolution and their batch norm.
_MODULES = {
    "fpn": {
        **{f"conv_{i}": (f"conv{i}", f"bn{i}") for i in (1, 2, 3)},
        "shortcut": ("downsample.0", "downsample.1"),
    },
    "c4": {
        **{f"conv_{i}": (f"conv{i}", f"conv{i}.norm") for i in (1, 2, 3)},
        "shortcut": ("shortcut", "shortcut.norm"),
    },
}


def _scale(weight: Array, variance: Array, width: int, epsilon: float) -> Array:
    if weight.shape != (width,) or variance.shape != (width,):
        raise ValueError(f"sizes for a width of {width}")
    with np.errstate(invalid="ignore", divide="ignore"):  # reported as not finite
        return weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)


def _fold_kernel(arrays: list[Array], width: int, epsilon: float) -> Array:
    kernel, weight, variance = arrays
    if kernel.ndim != 4 or len(kernel) != width:
        raise ValueError(f"a kernel of {kernel.shape}")
    scale = _scale(weight, variance, width, epsilon)
    with np.errstate(invalid="ignore", over="ignore"):
        folded = (kernel * scale[:, None, None, None]).astype(np.float32)
    return folded.transpose(2, 3, 1, 0)


def _fold_bias(arrays: list[Array], width: int, epsilon: float) -> Array:
    weight, bias, mean, variance = arrays
    if bias.shape != (width,) or mean.shape != (width,):
        raise ValueError(f"sizes for a width of {width}")
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = mean.astype(np.float64) * _scale(weight, variance, width, epsilon)
        return (bias.astype(np.float64) - scaled).astype(np.float32)


def _only(arrays: list[Array], rank: int) -> Array:
    (array,) = arrays
    if array.ndim != rank:
        raise ValueError(f"{array.ndim} axes")
    return array


def _kernel(arrays: list[Array], shape: tuple[int, ...]) -> Array:
    return _only(arrays, 4).transpose(2, 3, 1, 0)


def _matrix(arrays: list[Array], shape: tuple[int, ...]) -> Array:
    return _only(arrays, 2).T


def _vector(arrays: list[Array], shape: tuple[int, ...]) -> Array:
    return _only(arrays, 1)


def _pooled_matrix(arrays: list[Array], shape: tuple[int, ...]) -> Array:
    """Of inputs in the order channel, row, column; ours is row, column, channel."""
    matrix = _only(arrays, 2)
    channels = matrix.shape[1] // fpn.BINS**2
    parts = matrix.reshape(len(matrix), channels, fpn.BINS, fpn.BINS)
    return parts.transpose(2, 3, 1, 0).reshape(-1, len(matrix))


def _background_first(make: Make) -> Make:
    """The ports put the background last."""

    def made(arrays: list[Array], shape: tuple[int, ...]) -> Array:
        return np.roll(make(arrays, shape), 1, axis=-1)

    return made


# Our module -> their name, and how kernel and bias are made.
_FPN_PLAIN: Mapping[str, tuple[str, Make, Make]] = {
    **{f"inner_{i}": (f"backbone.fpn.fpn_inner{i + 1}", _kernel, _vector) for i in range(4)},
    **{f"outer_{i}": (f"backbone.fpn.fpn_layer{i + 1}", _kernel, _vector) for i in range(4)},
    "rpn": ("rpn.head.conv", _kernel, _vector),
    "objectness": ("rpn.head.cls_logits", _kernel, _vector),
    "anchor_deltas": ("rpn.head.bbox_pred", _kernel, _vector),
    "hidden_1": ("roi_heads.box.feature_extractor.fc6", _pooled_matrix, _vector),
    "hidden_2": ("roi_heads.box.feature_extractor.fc7", _matrix, _vector),
    "classes": ("roi_heads.box.predictor.cls_score", _matrix, _vector),
    "class_deltas": ("roi_heads.box.predictor.bbox_pred", _matrix, _vector),
}
_C4_PLAIN: Mapping[str, tuple[str, Make, Make]] = {
    "rpn": ("proposal_generator.rpn_head.conv", _kernel, _vector),
    "objectness": ("proposal_generator.rpn_head.objectness_logits", _kernel, _vector),
    "anchor_deltas": ("proposal_generator.rpn_head.anchor_deltas", _kernel, _vector),
    "classes": (
        "roi_heads.box_predictor.cls_score",
        _background_first(_matrix),
        _background_first(_vector),
    ),
    "class_deltas": ("roi_heads.box_predictor.bbox_pred", _matrix, _vector),
}
