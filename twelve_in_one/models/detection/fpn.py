"""Faster R-CNN on a feature pyramid (Lin et al. 2017), with the features of 12-in-1.

The feature of a box is the first of its two hidden layers. The released scripts report proposals
as they come from the region proposal network, chosen by the probabilities of their classes.

Shape letters: B photos, Y and X cells, D channels, A anchors of a cell, R boxes, F feature size, P
classes with the background, which is the first.
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
from twelve_in_one.models.detection.proposals import Level, ProposalConfig, Proposals, propose
from twelve_in_one.models.detection.resize import Resizing, on_canvas
from twelve_in_one.models.detection.resnet import ResNet, ResNetConfig, convolution, masked
from twelve_in_one.models.detection.results import fill, to_canvas, with_area
from twelve_in_one.models.detection.roi import CHUNK, Maps, in_chunks, join, roi_align

Array = jax.Array

ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height divided by width
DELTA_WEIGHTS = (10, 10, 5, 5)  # of the box head
STRIDES = (4, 8, 16, 32, 64)
LOWEST, HIGHEST = 2, 5  # levels that describe boxes: strides of 4 to 32
BINS = 7
# What released weights subtract from blue, green and red, and what Caffe's models did before them.
MEAN_BGR = (102.9801, 115.9465, 122.7717)
DIVISOR = 32  # sides that the pyramid needs


@dataclasses.dataclass(frozen=True)
class FpnConfig:
    """Sizes of a detector on a pyramid.

    Attributes:
      body: the body, of four stages.
      pyramid_dim: D of the pyramid.
      hidden_dim: F.
      num_classes: without the background.
    """

    body: ResNetConfig
    pyramid_dim: int = 512
    hidden_dim: int = 2048
    num_classes: int = 1600

    @property
    def dtype(self) -> str:
        """Compute dtype."""
        return self.body.dtype


X152 = FpnConfig(ResNetConfig(blocks=(3, 8, 36, 3), inner_dim=256, groups=32))


def anchors() -> list[np.ndarray]:
    """float32[A, 4] of each level: one size, eight times the stride."""
    return [box_ops.rounded_anchors(s, [8 * s], ANCHOR_RATIOS) for s in STRIDES]


class Head(NamedTuple):
    """What is known of boxes: features [R, F], logits [R, P] and deltas [R, P, 4] of classes."""

    features: Array
    logits: Array
    deltas: Array


class FpnNetwork(nn.Module):
    """The network; its parts are methods, since boxes are chosen between them."""

    config: FpnConfig

    def setup(self) -> None:
        config, dtype = self.config, self.config.dtype
        dim, stages = config.pyramid_dim, range(len(config.body.blocks))
        self.body = ResNet(config.body)
        self.inner = [convolution(dim, 1, dtype=dtype) for _ in stages]
        self.outer = [convolution(dim, 3, dtype=dtype) for _ in stages]
        self.rpn = convolution(dim, 3, dtype=dtype)
        # Logits and boxes are float32 whatever the rest is.
        self.objectness = convolution(len(ANCHOR_RATIOS), 1)
        self.anchor_deltas = convolution(4 * len(ANCHOR_RATIOS), 1)
        self.hidden_1 = nn.Dense(config.hidden_dim, dtype=dtype)
        self.hidden_2 = nn.Dense(config.hidden_dim, dtype=dtype)
        self.classes = nn.Dense(config.num_classes + 1)
        self.class_deltas = nn.Dense(4 * (config.num_classes + 1))

    def pyramid(self, pixels: Array, sizes: Array) -> tuple[list[Array], list[Array]]:
        """The maps of all levels and the cells that count: [B, Y, X, D] and int32[B, 2] each.

        Args:
          pixels: float32[B, Y, X, 3], sides of multiples of DIVISOR.
          sizes: int32[B, 2] of the same multiples.
        """
        stages, sizes = (found[1:] for found in self.body(pixels, sizes))
        maps: list[Array] = []
        above = None
        for i in reversed(range(len(stages))):
            merged = self.inner[i](stages[i])
            if above is not None:
                merged = merged + jnp.repeat(jnp.repeat(above, 2, axis=1), 2, axis=2)
            maps.insert(0, self.outer[i](masked(merged, sizes[i])))
            above = merged
        return [*maps, maps[-1][:, ::2, ::2]], [*sizes, (sizes[-1] + 1) // 2]

    def region_proposals(self, cells: Array, size: Array) -> tuple[Array, Array]:
        """Logits [B, Y, X, A] and deltas [B, Y, X, A, 4] of the anchors of a level."""
        hidden = nn.relu(self.rpn(masked(cells, size))).astype(jnp.float32)
        deltas = self.anchor_deltas(hidden)
        return self.objectness(hidden), deltas.reshape(*deltas.shape[:-1], -1, 4)

    def head(self, pooled: Array) -> Head:
        """What the boxes are, from [R, BINS, BINS, D]."""
        features = nn.relu(self.hidden_1(pooled.reshape(len(pooled), -1)))
        hidden = nn.relu(self.hidden_2(features)).astype(jnp.float32)
        deltas = self.class_deltas(hidden).reshape(len(hidden), -1, 4)
        return Head(features.astype(jnp.float32), self.classes(hidden), deltas)

    def __call__(self, pixels: Array, sizes: Array) -> Any:
        """Runs everything once, to make parameters."""
        maps, map_sizes = self.pyramid(pixels, sizes)
        pooled = jnp.zeros((1, BINS, BINS, self.config.pyramid_dim), self.config.dtype)
        return self.region_proposals(maps[0], map_sizes[0]), self.head(pooled)


def init_params(config: FpnConfig, key: Array) -> Any:
    """Random parameters."""
    pixels, sizes = jnp.zeros((1, DIVISOR, DIVISOR, 3)), jnp.full((1, 2), DIVISOR)
    return FpnNetwork(config).init(key, pixels, sizes)["params"]


@functools.cache
def abstract_params(config: FpnConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def subtract_mean(x: Array) -> Array:
    """RGB [Y, X, 3] of 0 to 255 as blue, green and red around 0."""
    return x[..., ::-1] - jnp.array(MEAN_BGR, jnp.float32)[None, None]


@dataclasses.dataclass(frozen=True)
class FpnDetector:
    """A `Detector` as the extraction script of 12-in-1 uses it.

    Attributes:
      config: of the network.
      name: see `Detector`.
      class_names: of the classes.
      num_regions: R.
      canvases: rows and columns, multiples of DIVISOR.
      resizing: of photos.
      proposals: how they are chosen.
      clip: where they are cut: at the border of the photo, or, as the script does it, at that of
        the photo padded to multiples of DIVISOR, beyond which boxes may then reach.
      threshold: of the suppression within each class.
    """

    config: FpnConfig
    name: str = "x152"
    class_names: tuple[str, ...] = ()
    num_regions: int = 100
    canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))
    resizing: Resizing = Resizing(800, 1333)
    proposals: ProposalConfig = ProposalConfig()
    clip: Literal["photo", "padded"] = "photo"
    threshold: float = 0.5

    @property
    def feature_dim(self) -> int:
        """F."""
        return self.config.hidden_dim

    def preprocess(self, image: np.ndarray) -> Canvases:
        """See `Detector`.

        Raises:
          ValueError: not uint8[H, W, 3], or of no size that fits on a canvas.
        """
        return on_canvas(image, self.canvases, self.resizing, subtract_mean)

    def detect(self, params: Any, canvases: Canvases) -> Detections:
        """See `Detector`; boxes and features are those of proposals."""
        maps, sizes, outputs = self.run(params, canvases)
        borders = canvases.sizes if self.clip == "photo" else padded(canvases.sizes)
        of_photo = functools.partial(self.of_photo, params)
        return jax.vmap(of_photo)(maps, sizes, outputs, borders, canvases.scales)[0]

    def describe(self, params: Any, canvases: Canvases, boxes: Array) -> Array:
        """See `Detector`."""
        apply = functools.partial(FpnNetwork(self.config).apply, {"params": params})
        maps, sizes = apply(canvases.pixels, padded(canvases.sizes), method="pyramid")

        def of_photo(maps: Any, sizes: Any, boxes: Array, canvas: Canvases) -> Array:
            joined = describing(maps, sizes)
            return self.head(params, joined, to_canvas(boxes, canvas)).features

        return jax.vmap(of_photo)(maps, sizes, boxes, canvases)

    def run(self, params: Any, canvases: Canvases) -> tuple[list[Array], list[Array], list[Any]]:
        """Maps, their cells that count, and the region proposal network's outputs, by level."""
        apply = functools.partial(FpnNetwork(self.config).apply, {"params": params})
        maps, sizes = apply(canvases.pixels, padded(canvases.sizes), method="pyramid")
        found = [
            apply(cells, size, method="region_proposals")
            for cells, size in zip(maps, sizes, strict=True)
        ]
        return maps, sizes, found

    def head(self, params: Any, maps: Maps, boxes: Array) -> Head:
        """What boxes float32[R, 4] on the canvas of one photo are."""
        network = FpnNetwork(self.config)
        levels = box_ops.pyramid_level(boxes, LOWEST, HIGHEST, inclusive=True) - LOWEST

        def chunk(part: tuple[Array, Array]) -> Head:
            pooled = roi_align(maps, *part, bins=BINS)
            return network.apply({"params": params}, pooled, method="head")

        return in_chunks(chunk, (boxes, levels), CHUNK)

    def of_photo(
        self, params: Any, maps: Any, sizes: Any, outputs: Any, border: Array, scales: Array
    ) -> tuple[Detections, Proposals]:
        """The regions of one photo, and the proposals that they were chosen from.

        Args:
          params: of the network.
          maps: see `run`.
          sizes: see `run`.
          outputs: see `run`.
          border: int32[2], rows and columns of the canvas at which boxes are cut.
          scales: float32[2], pixels of the canvas per pixel of the photo.
        """
        levels = [
            Level(logits, deltas, size, base, stride)
            for (logits, deltas), size, base, stride in zip(
                outputs, sizes, anchors(), STRIDES, strict=True
            )
        ]
        found = propose(self.proposals, levels, border, scales[0])
        head = self.head(params, describing(maps, sizes), found.boxes)
        boxes, probs = found.boxes / scales[0], jax.nn.softmax(head.logits)
        _, chosen = self.choose(boxes, probs, found.valid)
        return fill(self.num_regions, chosen, boxes, head.features, probs), found

    def choose(self, boxes: Array, probs: Array, valid: Array) -> tuple[Array, tuple[Array, Array]]:
        """The confidence of boxes float32[R, 4] of one photo, and which are chosen.

        Args:
          boxes: in pixels of the photo.
          probs: float32[R, P].
          valid: bool[R], which there are.

        Returns:
          float32[R], see `nms.class_confidence`; and int32[K] and bool[K], see `most_confident`.
        """
        confidence = nms.class_confidence(
            boxes, probs[:, 1:], valid, self.threshold, self.num_regions, inclusive=True
        )
        return confidence, nms.most_confident(with_area(boxes, confidence), self.num_regions)


def describing(maps: list[Array], sizes: list[Array]) -> Maps:
    """The maps of one photo that describe boxes."""
    count = HIGHEST - LOWEST + 1
    return join(maps[:count], sizes[:count], STRIDES[:count])


def padded(sizes: Array) -> Array:
    """Sizes up to the next multiples of DIVISOR."""
    return -(-sizes // DIVISOR) * DIVISOR
