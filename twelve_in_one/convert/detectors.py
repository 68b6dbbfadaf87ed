"""Detectors by name, with their weights, as extractors of regions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from twelve_in_one.config.paths import expand
from twelve_in_one.convert import faster_rcnn, small_detector
from twelve_in_one.extras import require

if TYPE_CHECKING:
    from twelve_in_one.data.regions.detected import DetectorExtractor

SMALL, PIXELS = "small", "pixels"
HELP = (
    f"KIND:FILE of released weights, with KIND one of {faster_rcnn.USES_HELP}; small or "
    "small:PATH (the npm package @vladmandic/human, as its .tgz or a folder); or pixels (rules, "
    "without weights)"
)


def spec_of(name: str) -> str:
    """The specification of a detector by the name of its regions; "" if it is none of these."""
    kinds = sorted(faster_rcnn.USES, key=len, reverse=True)
    kind = next((kind for kind in (SMALL, *kinds) if f"{name}-".startswith(f"{kind}-")), "")
    return kind if kind in (SMALL, "") else f"{kind}:FILE"


def is_detector(spec: str) -> bool:
    """Returns whether `open_detector` takes a specification, as far as its kind tells."""
    kind = spec.partition(":")[0]
    return kind == SMALL or kind in faster_rcnn.USES


def open_detector(
    spec: str,
    *,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
    batch_size: int = 1,
) -> "DetectorExtractor":
    """The detector of a specification, on its devices.

    Args:
      spec: "x152:FILE", "c4:FILE", "small", "small:PATH", ...; see `HELP`.
      dtype: of convolutions and products; boxes are always float32.
      devices: to use; all of this process if None.
      batch_size: see `DetectorExtractor`.

    Raises:
      ValueError: no such kind, or weights that do not fit; names the file.
      OSError, ImportError: a file, or a package with weights, is not there.
    """
    require("reading pictures", "data")
    from twelve_in_one.data.regions.detected import DetectorExtractor  # needs pillow and scipy

    kind, _, path = spec.partition(":")
    if kind == SMALL:
        loaded: Any = small_detector.read(Path(expand(path)) if path else None, dtype=dtype)
    elif kind in faster_rcnn.USES and path:
        loaded = faster_rcnn.read(expand(path), kind, dtype=dtype)
    else:
        raise ValueError(f"detector {spec!r} should be {HELP}")
    options = dict(devices=devices, batch_size=batch_size)
    return DetectorExtractor(loaded.detector, loaded.params, **options)
