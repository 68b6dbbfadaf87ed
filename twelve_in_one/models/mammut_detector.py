"""MaMMUT as an open-vocabulary detector: its encoder's map, its text pass, and a detector's heads.

The parameters of MaMMUT keep their names, so that a trained one is where a detector begins. Names
become vectors by the contrastive pass, which is not trained here.

Letters: B photos, S side of the canvas, Y and X cells, G true boxes, C classes, T sentences for a
class, L tokens, E size of vectors, K detections.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.detection import region_heads, scores
from twelve_in_one.models.detection.jitter import Objects, jitter
from twelve_in_one.models.detection.open_vocabulary import Detector, DetectorConfig, Learnt
from twelve_in_one.models.detection.roi import roi_mean
from twelve_in_one.models.detection.scores import Found
from twelve_in_one.models.layers import fold_key
from twelve_in_one.models.mammut import Mammut, MammutConfig
from twelve_in_one.models.two_tower import unit_vectors

Array = jax.Array
_TEXTS = 256  # whose vectors are computed at a time
_REGION_BINS = 14


@dataclasses.dataclass(frozen=True)
class MammutDetectorConfig(MammutConfig):
    """The model.

    Attributes:
      detector: of boxes.
      num_classes: C, of training; 0 takes those of the data.
      novel: numbers of the classes that training has no boxes of, which are scored as such.
    """

    detector: DetectorConfig = DetectorConfig()
    num_classes: int = 0
    novel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        encoder = self.encoder
        if encoder.class_token or encoder.num_registers:
            raise ValueError("MammutDetectorConfig: encoder: its tokens should be a map of patches")
        if encoder.patch_size % 4 or any(side % 2 for side in encoder.grid):
            raise ValueError(
                f"MammutDetectorConfig: the pyramid needs patches of a multiple of 4 pixels and an "
                f"even grid, got {encoder.patch_size} and {encoder.grid}"
            )
        if any(not 0 <= number < max(self.num_classes, 1) for number in self.novel):
            raise ValueError(f"MammutDetectorConfig: novel: there are {self.num_classes} classes")


class Classes(NamedTuple):
    """What is looked for.

    Attributes:
      vectors: unit vectors float32[C, E].
      novel: bool[C], which were not learnt.
      real: bool[C]; others are padding.
    """

    vectors: Array
    novel: Array
    real: Array


class MammutDetector(Mammut):
    """MaMMUT with the heads of a detector."""

    config: MammutDetectorConfig

    def setup(self) -> None:
        super().setup()
        config = self.config
        size = config.encoder.patch_size, config.embed_dim, config.encoder.dtype
        self.detector = Detector(config.detector, *size)
        start = nn.initializers.normal(1.0)
        self.vocabulary = self.param("vocabulary", start, (config.num_classes, config.embed_dim))
        self.background = self.param("background", start, (config.embed_dim,))
        self.temperature = self.param("temperature", nn.initializers.ones_init(), ())

    def __call__(self, images: Array, tokens: Array) -> Any:
        """Runs all layers once, to make parameters."""
        cells, regions = self.cells(images)
        bridge = self.config.decoder.encoder_dim
        texts = self.decoder(tokens, jnp.zeros((len(tokens), 1, bridge)))
        return self.detector(cells), regions, texts, self.embed_text(tokens), self.scale()

    def cells(self, images: Array, dropout_key: Array | None = None) -> tuple[Array, Array]:
        """The encoder's map [B, Y, X, W], and it in the space of texts [B, Y, X, E].

        Args:
          images: float[B, S, S, 3] in [-1, 1].
          dropout_key: or None.
        """
        config = self.config
        tokens, _ = self.encoder(self._pixels(images), dropout_key)
        embed = self.image_map if config.image_projection else self.bridge
        shape = (len(images), *config.encoder.grid, -1)
        return tokens.reshape(shape), embed(tokens).reshape(shape)

    def learn(self, batch: Mapping[str, Array], key: Array | None) -> Learnt:
        """Outputs and targets of a batch; see `tasks/image_task.py` for its arrays."""
        config = self.config.detector
        if key is None:
            key = jax.random.key(0)
        real = (batch["classes"] >= 0) & batch["_mask"][:, None]
        objects = Objects(
            _only_photo(batch["images"], batch["size"]),
            batch["size"],
            batch["boxes"],
            batch["boxes"],
            batch["masks"],
            real,
        )
        if config.jitter or config.flip:
            objects = jitter(objects, fold_key(key, 0), config.jitter or (1.0, 1.0), config.flip)
        cells, _ = self.cells(objects.images, fold_key(key, 1))
        novel = jnp.zeros(self.config.num_classes, bool)
        novel = novel.at[jnp.array(self.config.novel, jnp.int32)].set(True)

        def classify(vectors: Array) -> Array:
            # Classes that are not learnt must not be learnt not to be there either.
            hidden = jnp.concatenate([jnp.zeros(1, bool), novel])
            return jnp.where(hidden[None, None], -1e9, self._logits(vectors, self.vocabulary))

        labels = jnp.maximum(batch["classes"], 0)
        keys = jax.random.split(fold_key(key, 2), len(labels))
        return self.detector.learn(cells, objects, labels, classify, keys)

    def detect(self, images: Array, size: Array, classes: Classes | None) -> tuple[Found, Array]:
        """Detections [B, K] of photos, and the proposals that they are chosen from [B, R, 4].

        Args:
          images: float[B, S, S, 3] in [-1, 1], 0 beyond the photo.
          size: float32[B, 2], rows and columns of the canvas that the photo covers.
          classes: to look for; None for those of training.
        """
        model, config = self.config, self.config.detector
        cells, regions = self.cells(_only_photo(images, size))
        found, _ = self.detector.detect(cells, size)
        learnt = config.classifier == "learned"
        if classes is None:
            novel = jnp.zeros(model.num_classes, bool)
            novel = novel.at[jnp.array(model.novel, jnp.int32)].set(True)
            classes = Classes(self.vocabulary, novel, jnp.ones(model.num_classes, bool))
        there = jnp.concatenate([jnp.ones(1, bool), classes.real])
        logits = jnp.where(there[None, None], self._logits(found.vectors, classes.vectors), -1e9)
        own = self._region_logits(regions, found.boxes, size, classes.vectors)
        own = jnp.where(classes.real[None, None], own, -1e9)
        exponents = dict(
            base_exponent=1.0 if learnt else config.base_exponent,
            novel_exponent=1.0 if learnt else config.novel_exponent,
            objectness_exponent=config.objectness_exponent,
        )

        def one(boxes: Array, valid: Array, *of_boxes: Array) -> Found:
            logits, own, objectness = of_boxes
            combined = scores.combine(logits, own, classes.novel, objectness, **exponents)
            combined = jnp.where(classes.real[None], combined, -1.0)
            return scores.best(
                boxes,
                combined,
                valid,
                before=config.before_suppression,
                count=config.detections,
                threshold=config.suppression,
            )

        detections = jax.vmap(one)(found.boxes, found.valid, logits, own, found.objectness)
        return detections, found.proposals

    def _logits(self, vectors: Array, classes: Array) -> Array:
        temperature = jnp.maximum(self.temperature, 1e-2)
        return region_heads.class_logits(vectors, self.background, classes, temperature)

    def _region_logits(self, regions: Array, boxes: Array, size: Array, texts: Array) -> Array:
        """float32[B, R, C] by what the encoder's own map shows in boxes."""
        config, patch = self.config.detector, self.config.encoder.patch_size
        low, high = boxes[..., :2], boxes[..., 2:]
        middle, half = (low + high) / 2, config.region_shrink * (high - low) / 2
        shrunk = jnp.concatenate([middle - half, middle + half], axis=-1)

        def one(cells: Array, boxes: Array, size: Array) -> Array:
            there = jnp.ceil(size / patch).astype(jnp.int32)
            return roi_mean(cells, there, patch, boxes, bins=_REGION_BINS)

        found = unit_vectors(jax.vmap(one)(regions, shrunk, size))
        cosines = found @ region_heads.unit(texts).T
        temperature = config.region_temperature
        return cosines / temperature if temperature else cosines * self.scale()

    def class_vectors(self, tokens: Array) -> Array:
        """Unit vectors float32[C, E] of classes: means over sentences int32[C, T, L].

        A sentence of an end of text alone is that of the background.
        """
        flat = tokens.reshape(-1, tokens.shape[-1])
        found = jax.lax.map(
            lambda row: self.embed_text(row[None])[0], flat, batch_size=min(_TEXTS, len(flat))
        )
        return unit_vectors(jnp.mean(found.reshape(*tokens.shape[:2], -1), axis=1))


def _only_photo(images: Array, size: Array) -> Array:
    """Pictures [B, S, S, 3] with zeros where there is no photo."""
    rows, columns = (jnp.arange(side) for side in images.shape[1:3])
    there = (rows[None, :, None] < size[:, :1, None]) & (columns[None, None] < size[:, 1:, None])
    return jnp.where(there[..., None], images, 0.0)


def init_params(config: MammutDetectorConfig, key: Array) -> Any:
    """Random parameters with their logical axis names; those of the detector have none, and are
    whole on every device: they are a small part.
    """
    images = jnp.zeros((1, *config.encoder.image_size, 3), config.encoder.dtype)
    made = MammutDetector(config).init(key, images, jnp.zeros((1, 2), jnp.int32))["params"]

    def named(leaf: Any) -> nn.LogicallyPartitioned:
        if isinstance(leaf, nn.LogicallyPartitioned):
            return leaf
        return nn.LogicallyPartitioned(leaf, (None,) * leaf.ndim)

    return jax.tree.map(named, made, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


@functools.lru_cache(maxsize=16)
def abstract_params(config: MammutDetectorConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
