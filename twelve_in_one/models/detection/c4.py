"""Faster R-CNN on one map of a ResNet-101: bottom-up attention (Anderson et al. 2018).

Its last stage runs on each box by itself, and the mean of it is the box's feature. Two
conventions of boxes: that of the Caffe code, of which LXMERT's features are, and that of the ports
to PyTorch.

Shape letters: B photos, Y and X cells, D channels, A anchors of a cell, R boxes, F feature size, C
classes, P classes with the background, which is the first here.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.detection import boxes as box_ops
from twelve_in_one.models.detection import nms
from twelve_in_one.models.detection.detector import Canvases, Detections
from twelve_in_one.models.detection.fpn import DELTA_WEIGHTS, subtract_mean
from twelve_in_one.models.detection.proposals import Level, ProposalConfig, Proposals, propose
from twelve_in_one.models.detection.resize import Resizing, on_canvas
from twelve_in_one.models.detection.resnet import ResNet, ResNetConfig, Stage, convolution, masked
from twelve_in_one.models.detection.results import axis_scales, fill, to_canvas, with_area
from twelve_in_one.models.detection.roi import CHUNK, in_chunks, roi_pool

Array = jax.Array

ANCHOR_SIZES, ANCHOR_RATIOS = (64, 128, 256, 512), (0.5, 1.0, 2.0)
NUM_ANCHORS = len(ANCHOR_SIZES) * len(ANCHOR_RATIOS)
STRIDE = 16
BINS = 14
_SMALLEST = 32  # canvas on which parameters are made


@dataclasses.dataclass(frozen=True)
class C4Config:
    """Sizes of a detector on one map.

    Attributes:
      body: the body; its last stage is that of the boxes.
      rpn_dim: width of the region proposal network.
      num_classes: C.
    """

    body: ResNetConfig
    rpn_dim: int = 512
    num_classes: int = 1600

    @property
    def feature_dim(self) -> int:
        """F."""
        return self.body.stage_dim(len(self.body.blocks) - 1)


R101 = C4Config(ResNetConfig(blocks=(3, 4, 23, 3), stride_in_1x1=True, open_pool=True))


class Head(NamedTuple):
    """What is known of boxes: features [R, F], logits [R, P] and deltas [R, C, 4] of classes."""

    features: Array
    logits: Array
    deltas: Array


class C4Network(nn.Module):
    """The network; its parts are methods, since boxes are chosen between them."""

    config: C4Config

    def setup(self) -> None:
        config, body = self.config, self.config.body
        last = len(body.blocks) - 1
        self.body = ResNet(dataclasses.replace(body, blocks=body.blocks[:-1]))
        self.rpn = convolution(config.rpn_dim, 3, dtype=body.dtype)
        # Logits and boxes are float32 whatever the rest is.
        self.objectness = convolution(NUM_ANCHORS, 1)
        self.anchor_deltas = convolution(4 * NUM_ANCHORS, 1)
        self.box_stage = Stage(body, body.blocks[-1], last, stride=1, dilation=2)
        self.classes = nn.Dense(config.num_classes + 1)
        self.class_deltas = nn.Dense(4 * config.num_classes)

    def map(self, pixels: Array, sizes: Array) -> tuple[Array, Array]:
        """The map [B, Y, X, D] and the cells that count, int32[B, 2].

        Args:
          pixels: float32[B, Y', X', 3].
          sizes: int32[B, 2], rows and columns that count.
        """
        maps, all_sizes = self.body(pixels, sizes)
        return maps[-1], all_sizes[-1]

    def region_proposals(self, cells: Array, sizes: Array) -> tuple[Array, Array]:
        """Logits [B, Y, X, A] and deltas [B, Y, X, A, 4] of the anchors."""
        hidden = nn.relu(self.rpn(masked(cells, sizes))).astype(jnp.float32)
        deltas = self.anchor_deltas(hidden)
        return self.objectness(hidden), deltas.reshape(*deltas.shape[:-1], -1, 4)

    def head(self, pooled: Array) -> Head:
        """What the boxes are, from [R, BINS, BINS, D]."""
        cells = self.box_stage(pooled, None).astype(jnp.float32)
        features = jnp.mean(cells, axis=(1, 2))
        deltas = self.class_deltas(features).reshape(len(features), -1, 4)
        return Head(features, self.classes(features), deltas)

    def __call__(self, pixels: Array, sizes: Array) -> Any:
        """Runs everything once, to make parameters."""
        cells, sizes = self.map(pixels, sizes)
        pooled = jnp.zeros((1, 1, 1, cells.shape[-1]), cells.dtype)
        return self.region_proposals(cells, sizes), self.head(pooled)


def init_params(config: C4Config, key: Array) -> Any:
    """Random parameters."""
    pixels, sizes = jnp.zeros((1, _SMALLEST, _SMALLEST, 3)), jnp.full((1, 2), _SMALLEST)
    return C4Network(config).init(key, pixels, sizes)["params"]


@functools.cache
def abstract_params(config: C4Config) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class BestOfClasses:
    """How Caffe's script and LXMERT's choose: suppression within each class, on proposals.

    Attributes:
      fewest: boxes of a photo.
      most: boxes of a photo.
      least: confidence that is enough, between these two numbers.
      threshold: of intersection over union.
    """

    fewest: int = 36
    most: int = 36
    least: float = 0.2
    threshold: float = 0.3


@dataclasses.dataclass(frozen=True)
class Sweep:
    """How the ports choose: each proposal's best class moves it, and one suppression for all.

    Attributes:
      most: boxes of a photo.
      thresholds: of intersection over union, of which the lowest that leaves enough boxes counts.
    """

    most: int = 36
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclasses.dataclass(frozen=True)
class C4Detector:
    """A `Detector` as the scripts of bottom-up attention use it.

    Attributes:
      config: of the network.
      name: see `Detector`.
      class_names: of the classes.
      choice: of boxes. After a `Sweep`, boxes are moved by the network, but described where they
        were proposed.
      anchors: "caffe" or "exact", those of the ports.
      canvases: rows and columns.
      resizing: of photos.
      proposals: how they are chosen, and the convention of boxes.
    """

    config: C4Config
    name: str = "c4"
    class_names: tuple[str, ...] = ()
    choice: BestOfClasses | Sweep = Sweep()
    anchors: Literal["caffe", "exact"] = "exact"
    canvases: tuple[tuple[int, int], ...] = ((600, 1000), (1000, 600), (600, 800), (800, 600))
    resizing: Resizing = Resizing(600, 1000, "up", "antialiased", steps_by_scale=False)
    proposals: ProposalConfig = ProposalConfig(after=300, total=300, inclusive=False)

    @property
    def feature_dim(self) -> int:
        """F."""
        return self.config.feature_dim

    @property
    def num_regions(self) -> int:
        """R."""
        return self.choice.most

    def preprocess(self, image: np.ndarray) -> Canvases:
        """See `Detector`.

        Raises:
          ValueError: not uint8[H, W, 3], or of no size that fits on a canvas.
        """
        return on_canvas(image, self.canvases, self.resizing, subtract_mean)

    def detect(self, params: Any, canvases: Canvases) -> Detections:
        """See `Detector`."""
        cells, sizes = self._apply(params, canvases.pixels, canvases.sizes, method="map")
        outputs = self._apply(params, cells, sizes, method="region_proposals")
        of_photo = functools.partial(self._of_photo, params)
        return jax.vmap(of_photo)(cells, sizes, outputs, canvases)

    def describe(self, params: Any, canvases: Canvases, boxes: Array) -> Array:
        """See `Detector`."""
        cells, sizes = self._apply(params, canvases.pixels, canvases.sizes, method="map")

        def of_photo(cells: Array, size: Array, boxes: Array, canvas: Canvases) -> Array:
            return self.head(params, cells, size, to_canvas(boxes, canvas)).features

        return jax.vmap(of_photo)(cells, sizes, boxes, canvases)

    def propose(self, outputs: Any, size: Array, canvas: Canvases) -> Proposals:
        """The best boxes of one photo, from the region proposal network's outputs for it."""
        base = base_anchors(self.anchors)
        level = Level(*outputs, size, base, STRIDE)
        return propose(self.proposals, [level], canvas.sizes, jnp.max(canvas.scales))

    def head(self, params: Any, cells: Array, size: Array, boxes: Array) -> Head:
        """What boxes float32[R, 4] on the canvas of one photo are."""

        def chunk(part: tuple[Array]) -> Head:
            pooled = roi_pool(cells, size, STRIDE, part[0], bins=BINS)
            return self._apply(params, pooled, method="head")

        return in_chunks(chunk, (boxes,), CHUNK)

    def _apply(self, params: Any, *inputs: Array, method: str) -> Any:
        return C4Network(self.config).apply({"params": params}, *inputs, method=method)

    def _of_photo(
        self, params: Any, cells: Array, size: Array, outputs: Any, canvas: Canvases
    ) -> Detections:
        found = self.propose(outputs, size, canvas)
        head = self.head(params, cells, size, found.boxes)
        probs = jax.nn.softmax(head.logits)
        inclusive, scale = self.proposals.inclusive, axis_scales(canvas)
        if isinstance(self.choice, Sweep):
            best = jnp.argmax(probs[:, 1:], axis=1)
            deltas = jnp.take_along_axis(head.deltas, best[:, None, None], axis=1)[:, 0]
            moved = box_ops.decode(found.boxes, deltas, DELTA_WEIGHTS, inclusive=inclusive)
            boxes = box_ops.clip(moved, canvas.sizes, inclusive=inclusive)
            scores = jnp.where(found.valid, jnp.max(probs[:, 1:], axis=1), -1.0)
            scores = with_area(boxes, scores)
            chosen = nms.sweep(
                boxes,
                scores,
                scores >= 0,
                self.choice.thresholds,
                self.choice.most,
                inclusive=inclusive,
            )
            return fill(self.num_regions, chosen, boxes / scale, head.features, probs)
        boxes, choice = found.boxes / scale, self.choice
        confidence = nms.class_confidence(
            boxes,
            probs[:, 1:],
            found.valid,
            choice.threshold,
            choice.most + 1,  # to know whether there are more than enough
            inclusive=inclusive,
        )
        confidence = with_area(boxes, confidence)
        chosen = nms.confident_boxes(confidence, choice.least, choice.fewest, choice.most)
        return fill(self.num_regions, chosen, boxes, head.features, probs)


def base_anchors(kind: str) -> np.ndarray:
    """float32[A, 4] of the first cell, in the order of the network's outputs."""
    if kind == "caffe":
        return box_ops.rounded_anchors(STRIDE, ANCHOR_SIZES, ANCHOR_RATIOS)
    return box_ops.exact_anchors(ANCHOR_SIZES, ANCHOR_RATIOS)
