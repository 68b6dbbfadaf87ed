"""Released weights of the region detectors: 12-in-1's on a pyramid, and bottom-up attention.

Carriers: files of maskrcnn-benchmark (`.pth`, names of the pyramid's), of Hugging Face or
detectron2 with the names of one map's, pickled dictionaries of arrays (`.pkl`) with the same, and
Caffe's own (`.caffemodel`). Nothing of them is executed. Frozen batch norms are multiplied into the
convolutions, in float64. Sizes are read off the entries, so smaller models of the same layouts work
alike.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert import caffe_detector
from twelve_in_one.convert.entries import Path, match
from twelve_in_one.convert.files import read_state_dict
from twelve_in_one.models.detection import c4, fpn
from twelve_in_one.models.detection.c4 import BestOfClasses, C4Config, C4Detector
from twelve_in_one.models.detection.fpn import FpnConfig, FpnDetector
from twelve_in_one.models.detection.proposals import ProposalConfig
from twelve_in_one.models.detection.resize import Resizing
from twelve_in_one.models.detection.resnet import ResNetConfig

VERSION = 1  # of the code that makes regions of photos
# What LXMERT's features and those of 10 to 100 boxes were made with.
_CAFFE = dict(
    anchors="caffe",
    resizing=Resizing(600, 1000),
    proposals=ProposalConfig(after=300, total=300, min_side=16.0),
)
# Names of the ways to use weights: the kind of the network, and settings of the detector.
USES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "x152": ("fpn", {}),
    "x152-script": ("fpn", dict(clip="padded")),
    "c4": ("c4", {}),
    "c4-36": ("c4", dict(choice=BestOfClasses())),
    "c4-10-100": ("c4", dict(choice=BestOfClasses(fewest=10, most=100))),
    "caffe-36": ("c4", dict(choice=BestOfClasses(), **_CAFFE)),
    "caffe-10-100": ("c4", dict(choice=BestOfClasses(fewest=10, most=100), **_CAFFE)),
}
USES_HELP = (
    "x152 (12-in-1's 100 boxes; x152-script cuts them as its script does), c4 (36 boxes, as the "
    "PyTorch ports of bottom-up attention choose them), c4-36 and c4-10-100 (as LXMERT's and "
    "Caffe's scripts choose them), caffe-36 and caffe-10-100 (the same for a .caffemodel, with its "
    "own anchors and boxes)"
)
CLASS_FILE = "objects_vocab.txt"  # beside the weights, a name per line

_NORM = ("weight", "bias", "running_mean", "running_var")
_KINDS = {"rpn.head.conv.weight": "fpn", "proposal_generator.rpn_head.conv.weight": "c4"}
_UNNEEDED = {
    "fpn": (r"rpn\.anchor_generator\.cell_anchors\.\d",),
    "c4": (
        r"proposal_generator\.anchor_generator\.cell_anchors\.0",
        # Attributes of objects, which no model here reads.
        r"roi_heads\.box_predictor\.(cls_embedding|fc_attr|attr_score)\.(weight|bias)",
        r".*\.num_batches_tracked",
        r"pixel_(mean|std)",
    ),
}

Array = np.ndarray
Make = Callable[[list[Array], tuple[int, ...]], Array]


class Loaded(NamedTuple):
    """A detector with its parameters, and the outcome for every entry of the file."""

    detector: FpnDetector | C4Detector
    params: dict[str, Any]
    report: Report


class _Entry(NamedTuple):
    """The entries that a parameter is made of, and how."""

    names: tuple[str, ...]
    make: Make


def read(
    path: str | os.PathLike[str],
    use: str,
    *,
    class_names: Sequence[str] | None = None,
    dtype: str = "float32",
) -> Loaded:
    """A detector from a file of weights.

    Args:
      path: .pth, .bin, .safetensors, .pkl or .caffemodel.
      use: one of USES.
      class_names: of the classes without the background; None for those in CLASS_FILE
        beside the weights, or for numbers if it is not there.
      dtype: of convolutions and products; boxes are always float32.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: no such use, a file that cannot be read or is of the other kind, anchors other
        than those of the code, numbers that are not finite, or class names of another number;
        names the file.
      OSError: it cannot be read.
    """
    if use not in USES:
        raise ValueError(f"no detector {use!r}: one of {', '.join(USES)}")
    path = FilePath(path)
    needed, settings = USES[use]
    caffe = path.suffix == caffe_detector.SUFFIX
    if caffe != (settings.get("anchors") == "caffe"):
        fitting = [name for name in USES if name.startswith("caffe-")]
        raise ValueError(
            f"{path}: a {caffe_detector.SUFFIX} is used as {' or '.join(fitting)}, and these need "
            f"one; {use} is something else"
        )
    tensors = _without_prefix(caffe_detector.read(path) if caffe else read_state_dict(path))
    kind = next((kind for name, kind in _KINDS.items() if name in tensors), None)
    if kind != needed:
        found = {None: "no known detector", "fpn": "a pyramid's detector", "c4": "one on one map"}
        raise ValueError(
            f"{path} holds {found[kind]}, {use} needs {found[needed]}; it has {len(tensors)} "
            f"entries, the first are {', '.join(list(tensors)[:3])}"
        )
    try:
        config, params, report = from_state_dict(kind, tensors, dtype=dtype)
        if kind == "c4":
            _check_anchors(tensors, [c4.base_anchors(settings.get("anchors", "exact"))])
    except StateDictError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    names = _class_names(path, class_names, config.num_classes)
    make = FpnDetector if kind == "fpn" else C4Detector
    detector = make(config, class_names=names, **settings)
    name = f"{use}-{VERSION}-{detector.num_regions}-{fingerprint(params)}"
    if dtype != "float32":
        name += f"-{dtype}"
    return Loaded(dataclasses.replace(detector, name=name), params, report)


def from_state_dict(
    kind: str, tensors: Mapping[str, Any], *, dtype: str = "float32"
) -> tuple[FpnConfig | C4Config, dict[str, Any], Report]:
    """Config, parameters and report of a state dict.

    Args:
      kind: "fpn" or "c4".
      tensors: {name without "module.": array}.
      dtype: compute dtype of the config.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: anchors of a pyramid other than those of the code, or numbers that are not finite.
    """
    if kind == "fpn":
        config, abstract = _fpn_config(tensors, dtype), fpn.abstract_params
        _check_anchors(tensors, fpn.anchors())
    else:
        config, abstract = _c4_config(tensors, dtype), c4.abstract_params
    shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract(config))).items()}
    table = _table(kind, config, shapes)
    params, report = match(
        {path: entry.names for path, entry in table.items()},
        tensors,
        shapes,
        lambda path, arrays, shape: _made(table[path].make(arrays, shape), shape),
        unneeded=_UNNEEDED[kind],
        layout=" here",
    )
    if not report.ok:
        raise StateDictError(report)
    for path, value in params.items():
        if not np.isfinite(value).all():
            names = ", ".join(table[path].names[:4])
            raise ValueError(f"numbers that are not finite, or variances below 0, in {names}")
    return config, unflatten(params), report


def fingerprint(params: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that tell weights apart, whatever file they came in."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten(params).items()):
        digest.update("/".join(path).encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:8]


def _without_prefix(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Names without the "module." of data-parallel training.

    Raises:
      ValueError: two names that become one.
    """
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        short = name.removeprefix("module.")
        if short in found:
            raise ValueError(f"entries {short!r} and {'module.' + short!r} are both there")
        found[short] = value
    return found


def _class_names(path: FilePath, given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    beside = path.parent / CLASS_FILE
    if given is None and not beside.is_file():
        return tuple(map(str, range(count)))
    where = "class_names" if given is not None else str(beside)
    try:
        names = beside.read_text(encoding="utf-8").splitlines() if given is None else given
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: cannot be read: {error}") from error
    if len(names) != count:
        raise ValueError(f"{where}: {len(names)} names, the detector in {path} knows {count}")
    return tuple(name.split(",")[0].strip() for name in names)


def _check_anchors(tensors: Mapping[str, Any], expected: Sequence[Array]) -> None:
    """Compares stored anchors with those of the code, which a file need not have."""
    pattern = re.compile(r".*anchor_generator\.cell_anchors\.(\d+)")
    for name, value in tensors.items():
        if found := pattern.fullmatch(name):
            stored, level = np.asarray(value), int(found[1])
            if level >= len(expected) or not np.array_equal(
                stored.astype(np.float32), expected[level]
            ):
                raise ValueError(
                    f"{name} holds other anchors than this detector's, {_numbers(expected, level)} "
                    f"first: {stored.reshape(-1)[:4].tolist()}"
                )


def _numbers(expected: Sequence[Array], level: int) -> str:
    return str(expected[level][0].tolist()) if level < len(expected) else "of no such level"


# Sizes.


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


# Tables of entries.


def _table(
    kind: str, config: FpnConfig | C4Config, shapes: Mapping[Path, tuple[int, ...]]
) -> dict[Path, _Entry]:
    """{path of a parameter: its entries}."""
    plain = _FPN_PLAIN if kind == "fpn" else _C4_PLAIN
    table = {}
    for path in shapes:
        if path[0] in plain:
            name, kernel, bias = plain[path[0]]
            leaf, make = ("weight", kernel) if path[-1] == "kernel" else ("bias", bias)
            table[path] = _Entry((f"{name}.{leaf}",), make)
        else:
            table[path] = _folded(kind, config, path)
    return table


def _folded(kind: str, config: FpnConfig | C4Config, path: Path) -> _Entry:
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

    return _Entry(tuple(names), make)


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


def _made(value: Array, shape: tuple[int, ...]) -> Array:
    if value.shape != shape:
        raise ValueError(f"{value.shape} instead of {shape}")
    return np.ascontiguousarray(value, np.float32)


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
