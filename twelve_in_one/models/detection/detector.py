"""The interface of a detector: photos in, boxes with features out, all shapes fixed.

A photo is laid on a canvas, one of a few sizes for which a program is compiled; what it does not
cover is empty and changes nothing. Boxes are corners x1, y1, x2, y2 in pixels of the photo.

Shape letters: B photos, Y and X pixels of a canvas, H and W those of a photo, R regions of a photo,
N given boxes, F feature size, C classes, P classes with the background.
"""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array


class Canvases(NamedTuple):
    """Photos as a network sees them. Batches of one canvas size are joined along the first axis.

    Attributes:
      pixels: float32[B, Y, X, 3], resized and normalised as the network wants it; 0 where there is
        no photo.
      sizes: int32[B, 2], rows and columns that the photo covers, from the upper left corner on.
      scales: float32[B, 2], pixels of the canvas per pixel of the photo, down and across.
      photo_sizes: int32[B, 2], H and W.
    """

    pixels: Array
    sizes: Array
    scales: Array
    photo_sizes: Array


class Detections(NamedTuple):
    """Regions of photos. Rows are filled from the first one on; the rest is 0.

    Attributes:
      boxes: float32[B, R, 4].
      features: float32[B, R, F], as `Detector.describe` makes them; a detector may describe
        another box than the one that it reports, and says so.
      scores: float32[B, R], 0 to 1: how sure the detector is of the class.
      classes: int32[B, R], indices of `Detector.class_names`.
      valid: bool[B, R], which rows are filled.
      class_probs: float32[B, R, P], distributions over the classes and the background, in the
        network's order; None where a detector gives no distribution.
    """

    boxes: Array
    features: Array
    scores: Array
    classes: Array
    valid: Array
    class_probs: Array | None = None


class Detector(Protocol):
    """What a network finds in photos. A frozen dataclass of settings, without the parameters."""

    @property
    def name(self) -> str:
        """The origin of the features, with kind, version, settings and fingerprint of the weights.

        It is recorded with everything that is trained on them: two detectors of one name make the
        same regions of the same photo.
        """

    @property
    def feature_dim(self) -> int:
        """F."""

    @property
    def num_regions(self) -> int:
        """R, most regions of a photo."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the C classes; decimal numbers where a checkpoint comes without names."""

    def preprocess(self, image: np.ndarray) -> Canvases:
        """A photo, uint8[H, W, 3] in sRGB, on the smallest canvas that it fits on: B is 1."""

    def detect(self, params: Any, canvases: Canvases) -> Detections:
        """The regions of photos; pure, for `jax.jit` with the parameters as an argument."""

    def describe(self, params: Any, canvases: Canvases, boxes: Array) -> Array:
        """Features float32[B, N, F] of boxes float32[B, N, 4]; pure as `detect`."""
