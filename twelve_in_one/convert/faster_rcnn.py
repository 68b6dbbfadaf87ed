"""Released weights of the region detectors: 12-in-1's on a pyramid, and bottom-up attention.

Carriers: files of maskrcnn-benchmark (`.pth`, names of the pyramid's), of Hugging Face or
detectron2 with the names of one map's, pickled dictionaries of arrays (`.pkl`) with the same, and
Caffe's own (`.caffemodel`). Nothing of them is executed. Sizes are read off the entries, so smaller
models of the same layouts work alike.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert import caffe_detector, detector_layouts
from twelve_in_one.convert.detector_layouts import KINDS, UNNEEDED
from twelve_in_one.convert.entries import check_finite, match
from twelve_in_one.convert.files import read_state_dict
from twelve_in_one.models.detection import c4, fpn
from twelve_in_one.models.detection.c4 import BestOfClasses, C4Config, C4Detector
from twelve_in_one.models.detection.fpn import FpnConfig, FpnDetector
from twelve_in_one.models.detection.proposals import ProposalConfig
from twelve_in_one.models.detection.resize import Resizing

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

Array = np.ndarray


class Loaded(NamedTuple):
    """A detector with its parameters, and the outcome for every entry of the file."""

    detector: FpnDetector | C4Detector
    params: dict[str, Any]
    report: Report


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
    kind = next((kind for name, kind in KINDS.items() if name in tensors), None)
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
        _check_anchors(tensors, fpn.anchors())
    config = detector_layouts.config_of(kind, tensors, dtype)
    abstract = fpn.abstract_params if kind == "fpn" else c4.abstract_params
    shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract(config))).items()}
    table = detector_layouts.table(kind, config, shapes)
    sources = {path: entry.names for path, entry in table.items()}
    params, report = match(
        sources,
        tensors,
        shapes,
        lambda path, arrays, shape: _made(table[path].make(arrays, shape), shape),
        unneeded=UNNEEDED[kind],
        layout=" here",
    )
    if not report.ok:
        raise StateDictError(report)
    check_finite(params, sources)
    return config, unflatten(params), report


def _made(value: Array, shape: tuple[int, ...]) -> Array:
    if value.shape != shape:
        raise ValueError(f"{value.shape} instead of {shape}")
    return np.ascontiguousarray(value, np.float32)


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
