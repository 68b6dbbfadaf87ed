"""A detector on a Vision Transformer whose classes are texts (Kuo et al. 2023, MaMMUT and F-VLM).

The pyramid, the proposals and the heads know no classes: a box becomes a vector, which is compared
with those of texts. So any list of names can be looked for.

Letters: B photos, S side of the canvas, N anchors, R proposals, G true boxes, K samples, D channels
of the pyramid, E size of texts' vectors, C classes, M side of a mask.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from twelve_in_one.models.detection import boxes as box_ops
from twelve_in_one.models.detection import class_free_proposals, matching, pyramid, region_heads
from twelve_in_one.models.detection.class_free_proposals import Anchors, ProposalHead, Proposals
from twelve_in_one.models.detection.jitter import Objects, mask_targets
from twelve_in_one.models.detection.matching import Match
from twelve_in_one.models.detection.region_heads import BoxHead, MaskHead
from twelve_in_one.models.detection.roi import join, roi_align

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Sizes and options; the defaults are the published line, and where MaMMUT is silent, RO-ViT's.

    Attributes:
      pyramid_dim: D.
      extra_level: P6.
      proposals: "centerness", which knows no background, or "plain", Faster R-CNN's.
      proposal_layers: convolutions before the proposals.
      anchor_scale: cells that an anchor is wide.
      anchor_samples: anchors of a photo that learn.
      anchor_share: of these, positive at most.
      anchor_overlaps: an anchor is negative below the first and positive from the second on; () is
        0.1 and 0.3 for "centerness" and 0.3 and 0.7 for "plain".
      train_before: proposals of a level before suppression, in training.
      train_proposals: R after it.
      train_threshold: of that suppression; 1 for none.
      test_before: the same when detecting, like the two below.
      test_proposals: see above.
      test_threshold: see above.
      box_samples: K.
      box_share: of these, positive at most.
      box_overlap: positive from here on, negative below.
      box_layers: convolutions of the box head.
      hidden_dim: of the box head.
      normalised: see `region_heads.BoxHead`.
      mask_samples: positive boxes that learn masks; 0 for a detector without masks.
      mask_layers: convolutions of the mask head.
      classifier: "text", compared with vectors of names that are not trained; or "learned", where
        every class has a trained vector, and classes without a box in training are never found.
      background: its vector is that of the "empty" text, or "learned".
      background_weight: of background boxes in the loss of classes.
      base_exponent: see `scores.combine`, also for the two below.
      novel_exponent: see above.
      objectness_exponent: see above.
      region_temperature: divisor of the cosines of regions and texts; 0 takes the model's own.
      region_shrink: regions are scaled by this about their centres before they are compared.
      detections: of a photo, at most.
      before_suppression: pairs of box and class.
      suppression: threshold of intersection over union within a class.
      jitter: smallest and largest random scale of a training picture; () for none.
      flip: mirror half of them.
      delta: of the Huber losses of boxes, of the box head and of "plain" proposals.
      loss_weights: of proposals' scores, proposals' boxes, classes, boxes, masks.
    """

    pyramid_dim: int = 256
    extra_level: bool = False
    proposals: Literal["centerness", "plain"] = "centerness"
    proposal_layers: int = 2
    anchor_scale: float = 8.0
    anchor_samples: int = 256
    anchor_share: float = 0.5
    anchor_overlaps: tuple[float, ...] = ()
    train_before: int = 2000
    train_proposals: int = 1000
    train_threshold: float = 0.7
    test_before: int = 1000
    test_proposals: int = 1000
    test_threshold: float = 1.0
    box_samples: int = 512
    box_share: float = 0.25
    box_overlap: float = 0.5
    box_layers: int = 4
    hidden_dim: int = 1024
    normalised: bool = True
    mask_samples: int = 128
    mask_layers: int = 4
    classifier: Literal["text", "learned"] = "text"
    background: Literal["empty", "learned"] = "empty"
    background_weight: float = 0.9
    base_exponent: float = 0.65
    novel_exponent: float = 0.3
    objectness_exponent: float = 3.0
    region_temperature: float = 0.01
    region_shrink: float = 1.0
    detections: int = 300
    before_suppression: int = 1000
    suppression: float = 0.5
    jitter: tuple[float, ...] = (0.1, 2.0)
    flip: bool = True
    delta: tuple[float, ...] = (1.0, 1 / 9)
    loss_weights: tuple[float, ...] = (1.0, 8.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        errors = []
        for name, known in (
            ("proposals", class_free_proposals.KINDS),
            ("classifier", ("text", "learned")),
            ("background", ("empty", "learned")),
        ):
            if getattr(self, name) not in known:
                errors.append(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        if self.pyramid_dim % 4 or self.pyramid_dim < 4:
            errors.append(f"pyramid_dim {self.pyramid_dim} should be a multiple of 4")
        sizes = (
            "proposal_layers", "anchor_samples", "train_before", "train_proposals", "test_before",
            "test_proposals", "box_samples", "hidden_dim", "detections", "before_suppression",
        )  # fmt: skip
        errors += [f"{name} should be positive" for name in sizes if getattr(self, name) < 1]
        for name, count in (("jitter", 2), ("anchor_overlaps", 2)):
            values = getattr(self, name)
            if values and not (len(values) == count and 0 < values[0] <= values[1]):
                errors.append(f"{name} {values} should be two ascending positive numbers, or ()")
        if len(self.delta) != 2 or len(self.loss_weights) != 5 or min(self.loss_weights) < 0:
            errors.append(
                "delta should be two numbers, and loss_weights five that are not negative"
            )
        for name in ("anchor_share", "box_share", "base_exponent", "novel_exponent"):
            if not 0 <= getattr(self, name) <= 1:
                errors.append(f"{name} {getattr(self, name)} should be from 0 to 1")
        if self.region_temperature < 0 or not 0 < self.region_shrink <= 1:
            errors.append("region_temperature should not be negative, region_shrink in (0, 1]")
        if errors:
            raise ValueError("DetectorConfig: " + "; ".join(errors))

    @property
    def overlaps(self) -> tuple[float, ...]:
        """Of anchors: below which they are negative, and from which on they are positive."""
        return (
            self.anchor_overlaps or {"centerness": (0.1, 0.3), "plain": (0.3, 0.7)}[self.proposals]
        )


class Learnt(NamedTuple):
    """Outputs and targets of a training batch; masks say what counts.

    Attributes:
      anchor_logits: float32[B, N].
      anchor_targets: float32[B, N], centerness, or 1 for positive anchors.
      anchor_counted: bool[B, N], of the scores.
      anchor_boxes: float32[B, N, 4], boxes, or deltas of the plain kind.
      anchor_truth: float32[B, N, 4], what they should be.
      anchor_positive: bool[B, N], which boxes count.
      recall: float32[B], share of the true boxes that some proposal overlaps by half.
      classes: float32[B, K, 1 + C], logits.
      labels: int32[B, K], 0 for background.
      counted: bool[B, K], which samples there are.
      deltas: float32[B, K, 4].
      delta_targets: float32[B, K, 4].
      positive: bool[B, K], which of them count.
      masks: float32[B, K', M, M], logits of the first positive boxes; K' is 0 without masks.
      mask_targets: bool[B, K', M, M].
      mask_counted: bool[B, K'].
    """

    anchor_logits: Array
    anchor_targets: Array
    anchor_counted: Array
    anchor_boxes: Array
    anchor_truth: Array
    anchor_positive: Array
    recall: Array
    classes: Array
    labels: Array
    counted: Array
    deltas: Array
    delta_targets: Array
    positive: Array
    masks: Array
    mask_targets: Array
    mask_counted: Array


class Boxed(NamedTuple):
    """What the heads say of proposals.

    Attributes:
      boxes: float32[B, R, 4], moved by the box head.
      objectness: float32[B, R], 0 to 1.
      vectors: float32[B, R, E].
      valid: bool[B, R].
      proposals: float32[B, R, 4], before that.
    """

    boxes: Array
    objectness: Array
    vectors: Array
    valid: Array
    proposals: Array


class Detector(nn.Module):
    """Pyramid, proposals and heads.

    Attributes:
      config: see `DetectorConfig`.
      patch: pixels per cell of the map that they begin with.
      embed_dim: E.
      dtype: of the computation; boxes and scores are float32.
    """

    config: DetectorConfig
    patch: int
    embed_dim: int
    dtype: str = "float32"

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        dim = config.pyramid_dim
        self.pyramid = pyramid.SimplePyramid(dim, config.extra_level, dtype)
        self.proposal_head = ProposalHead(config.proposals, dim, config.proposal_layers, dtype)
        self.box_head = BoxHead(
            dim, config.box_layers, config.hidden_dim, self.embed_dim, config.normalised, dtype
        )
        if config.mask_samples:
            self.mask_head = MaskHead(dim, config.mask_layers, dtype)

    def __call__(self, cells: Array) -> Any:
        """Runs all layers once, to make parameters."""
        maps = self.pyramid(cells)
        pooled = [
            jnp.zeros((1, bins, bins, self.config.pyramid_dim), self.dtype)
            for bins in (region_heads.BOX_BINS, region_heads.MASK_BINS)
        ]
        masks = self.mask_head(pooled[1]) if self.config.mask_samples else None
        return self.proposal_head(maps), self.box_head(pooled[0]), masks

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of the levels."""
        return pyramid.strides(self.patch, self.config.extra_level)

    def anchors(self, cells: Array) -> Anchors:
        """Those of a canvas with this map [B, Y, X, W]."""
        canvas = cells.shape[1] * self.patch, cells.shape[2] * self.patch
        config = self.config
        return class_free_proposals.anchors(
            config.proposals, canvas, self.strides, config.anchor_scale
        )

    def detect(self, cells: Array, size: Array) -> tuple[Boxed, list[Array]]:
        """What is in photos, and the pyramid's maps.

        Args:
          cells: [B, Y, X, W], map of the encoder.
          size: float32[B, 2], rows and columns of the canvas that the photo covers.
        """
        maps = self.pyramid(cells)
        found = self._proposals(self.anchors(cells), self.proposal_head(maps), size, training=False)
        deltas, vectors = self._heads(maps, found.boxes, size)
        boxes = box_ops.decode(found.boxes, deltas, region_heads.DELTA_WEIGHTS, inclusive=False)
        boxes = jnp.clip(boxes, 0.0, jnp.tile(size[:, ::-1], 2)[:, None])
        valid = found.valid & jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        return Boxed(boxes, found.scores, vectors, valid, found.boxes), maps

    def masks(self, maps: Sequence[Array], boxes: Array, size: Array) -> Array:
        """Logits float32[B, R, M, M] of masks in boxes float32[B, R, 4], from `detect`'s maps."""
        pooled = self._pooled(maps, boxes, size, region_heads.MASK_BINS)
        found = self.mask_head(pooled)
        return found.reshape(*boxes.shape[:2], *found.shape[1:])

    def learn(
        self,
        cells: Array,
        objects: Objects,
        labels: Array,
        classify: Callable[[Array], Array],
        keys: Array,
    ) -> Learnt:
        """Outputs and targets.

        Args:
          cells: see `detect`.
          objects: of the photos; `images` is not read.
          labels: int32[B, G], classes from 0 on.
          classify: vectors [B, K, E] -> logits [B, K, 1 + C].
          keys: one for each photo.
        """
        config, maps = self.config, self.pyramid(cells)
        found, (logits, outputs) = self.anchors(cells), self.proposal_head(maps)
        below, above = config.overlaps

        def of_anchors(key: Array, truth: Array, real: Array, size: Array) -> tuple[Array, ...]:
            boxes = jnp.asarray(found.boxes)
            matched = matching.match(boxes, truth, real, above=above, below=below, best=True)
            inside = jnp.all(found.centers < size[None, ::-1], axis=1)
            matched = matched._replace(
                positive=matched.positive & inside, negative=matched.negative & inside
            )
            positive, negative = matching.sample(
                key, matched, config.anchor_samples, config.anchor_share
            )
            own = truth[matched.truth]
            target = positive.astype(jnp.float32)
            if config.proposals == "centerness":
                target = jnp.where(
                    positive, matching.centerness(jnp.asarray(found.centers), own), 0.0
                )
            else:
                own = class_free_proposals.deltas_of(found, own)
            return target, positive | negative, own, positive

        pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        anchor = jax.vmap(of_anchors)(pairs[:, 0], objects.boxes, objects.real, objects.size)
        proposals = self._proposals(found, (logits, outputs), objects.size, training=True)
        proposals = jax.lax.stop_gradient(proposals)
        choose = jax.vmap(self._choose)
        chosen, positive, counted, truth, recall = choose(
            pairs[:, 1], proposals, objects.boxes, objects.real
        )
        deltas, vectors = self._heads(maps, chosen, objects.size)
        own = jnp.take_along_axis(objects.boxes, truth[..., None], axis=1)
        # What is no positive box gets a target that is finite, and does not count.
        own = jnp.where(positive[..., None], own, chosen)
        sides = jnp.maximum(chosen[..., 2:] - chosen[..., :2], 1e-3)
        safe = jnp.concatenate([chosen[..., :2], chosen[..., :2] + sides], axis=-1)
        wanted = jnp.concatenate(
            [own[..., :2], jnp.maximum(own[..., 2:], own[..., :2] + 1e-3)], axis=-1
        )
        targets = box_ops.encode(safe, wanted, region_heads.DELTA_WEIGHTS, inclusive=False)
        names = jnp.where(positive, jnp.take_along_axis(labels, truth, axis=1) + 1, 0)
        shown = outputs
        if config.proposals == "centerness":
            shown = class_free_proposals.boxes_of("centerness", found, outputs)
        masks = self._learn_masks(maps, objects, chosen, truth, positive)
        return Learnt(
            logits, *anchor[:2], shown, *anchor[2:], recall,
            classify(vectors), names, counted, deltas, targets, positive, *masks,
        )  # fmt: skip

    def _learn_masks(
        self, maps: Sequence[Array], objects: Objects, boxes: Array, truth: Array, positive: Array
    ) -> tuple[Array, Array, Array]:
        count = min(self.config.mask_samples, boxes.shape[1])
        side = region_heads.MASK_SIDE
        if not count or not objects.masks.shape[-1]:
            nothing = jnp.zeros((len(boxes), 0, side, side))
            return nothing, nothing.astype(bool), jnp.zeros((len(boxes), 0), bool)
        boxes, truth, positive = (x[:, :count] for x in (boxes, truth, positive))
        targets = jax.vmap(lambda *x: mask_targets(*x, side))(
            objects.masks, objects.frames, boxes, truth
        )
        return self.masks(maps, boxes, objects.size), targets, positive

    def _proposals(
        self, found: Anchors, outputs: tuple[Array, Array], size: Array, *, training: bool
    ) -> Proposals:
        config = self.config
        logits, raw = outputs
        boxes = class_free_proposals.boxes_of(config.proposals, found, raw)
        before, total, threshold = (
            (config.train_before, config.train_proposals, config.train_threshold)
            if training
            else (config.test_before, config.test_proposals, config.test_threshold)
        )

        def one(logits: Array, boxes: Array, size: Array) -> Proposals:
            return class_free_proposals.propose(
                found, logits, boxes, size, before=before, total=total, threshold=threshold
            )

        return jax.vmap(one)(logits, boxes, size)

    def _choose(
        self, key: Array, proposals: Proposals, truth: Array, real: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Boxes [K, 4] of one photo to learn from, positive ones first; see `Learnt`.

        Proposals and the true boxes themselves.
        """
        config = self.config
        boxes = jnp.concatenate([proposals.boxes, truth])
        there = jnp.concatenate([proposals.valid, real])
        limit = config.box_overlap
        matched = matching.match(boxes, truth, real, above=limit, below=limit, best=False)
        matched = Match(
            matched.truth, matched.overlap, matched.positive & there, matched.negative & there
        )
        positive, negative = matching.sample(key, matched, config.box_samples, config.box_share)
        rank = jnp.where(positive, 0, jnp.where(negative, 1, 2))
        order = jnp.argsort(rank, stable=True)[: config.box_samples]
        overlaps = box_ops.iou(truth, proposals.boxes, inclusive=False) >= 0.5
        hit = jnp.any(overlaps & proposals.valid[None], axis=1) & real
        recall = jnp.sum(hit) / jnp.maximum(jnp.sum(real), 1)
        chosen = (positive | negative)[order]
        return boxes[order], positive[order], chosen, matched.truth[order], recall

    def _heads(self, maps: Sequence[Array], boxes: Array, size: Array) -> tuple[Array, Array]:
        deltas, vectors = self.box_head(self._pooled(maps, boxes, size, region_heads.BOX_BINS))
        return tuple(x.reshape(*boxes.shape[:2], -1) for x in (deltas, vectors))

    def _pooled(self, maps: Sequence[Array], boxes: Array, size: Array, bins: int) -> Array:
        """[B * R, bins, bins, D], each box from the level that fits its size."""
        strides = self.strides[:4]

        def one(maps: Sequence[Array], boxes: Array, size: Array) -> Array:
            sizes = [jnp.ceil(size / stride).astype(jnp.int32) for stride in strides]
            # The rule is for maps of 16 pixels a cell.
            levels = box_ops.pyramid_level(boxes * (16 / self.patch), 2, 5, inclusive=False) - 2
            return roi_align(join(maps, sizes, strides), boxes, levels, bins=bins, aligned=True)

        found = jax.vmap(one)(list(maps[:4]), boxes, size)
        return found.reshape(-1, *found.shape[2:])
