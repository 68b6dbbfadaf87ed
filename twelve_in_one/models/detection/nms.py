"""Non-maximum suppression of fixed shapes, and the choices of boxes that extraction scripts make.

All of it is exact. Shape letters: N boxes, C classes, T tile, K boxes kept.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from twelve_in_one.models.detection.boxes import iou

Array = jax.Array
_TILE = 256
_PAIRS = 1024  # of box and class that are decided at a time


@functools.partial(jax.jit, static_argnames=("inclusive", "strict"))
def keep(
    boxes: Array,
    valid: Array,
    threshold: float | Array,
    *,
    inclusive: bool,
    strict: bool = True,
    groups: Array | None = None,
) -> Array:
    """Which boxes stay when each that stays removes later ones that overlap it too much.

    Args:
      boxes: float32[N, 4], best first.
      valid: bool[N]; others neither stay nor remove.
      threshold: of intersection over union.
      inclusive: the convention of the boxes.
      strict: remove above the threshold only, or at it, too.
      groups: int32[N]; boxes of one group alone remove each other. None for one group of all.

    Returns:
      bool[N].
    """
    operands = (boxes, valid, jnp.asarray(threshold, jnp.float32))
    operands += () if groups is None else (groups,)
    options = dict(inclusive=inclusive, strict=strict)
    # One box after another is fastest on a CPU and slowest everywhere else.
    return jax.lax.platform_dependent(
        *operands,
        cpu=functools.partial(keep_one_by_one, **options),
        default=functools.partial(keep_by_tiles, **options),
    )


def _overlap(a: Array, b: Array, threshold: Array, *, inclusive: bool, strict: bool) -> Array:
    """bool[M, N]."""
    found = iou(a, b, inclusive=inclusive)
    return found > threshold if strict else found >= threshold


def keep_one_by_one(
    boxes: Array,
    valid: Array,
    threshold: Array,
    groups: Array | None = None,
    *,
    inclusive: bool,
    strict: bool = True,
) -> Array:
    """`keep`, in N steps of N comparisons."""
    overlap = functools.partial(_overlap, inclusive=inclusive, strict=strict)
    places = jnp.arange(len(boxes))

    def step(i: Array, alive: Array) -> Array:
        row = overlap(boxes[i][None], boxes, threshold)[0]
        if groups is not None:
            row &= groups == groups[i]
        return alive & ~(alive[i] & row & (places > i))

    return jax.lax.fori_loop(0, len(boxes), step, valid)


def keep_by_tiles(
    boxes: Array,
    valid: Array,
    threshold: Array,
    groups: Array | None = None,
    *,
    inclusive: bool,
    strict: bool = True,
) -> Array:
    """`keep`: decides a tile's boxes among themselves, then removes later ones, tile by tile."""
    overlap = functools.partial(_overlap, inclusive=inclusive, strict=strict)
    count = len(boxes)
    tile = min(_TILE, count)
    missing = -count % tile
    boxes = jnp.pad(boxes, ((0, missing), (0, 0)))
    alive = jnp.pad(valid, (0, missing))
    if groups is not None:
        groups = jnp.pad(groups, (0, missing))
    places = jnp.arange(len(boxes))

    def step(i: Array, alive: Array) -> Array:
        start = i * tile
        ours = jax.lax.dynamic_slice_in_dim(boxes, start, tile)
        pairs = overlap(ours, boxes, threshold)
        if groups is not None:
            own = jax.lax.dynamic_slice_in_dim(groups, start, tile)
            pairs &= own[:, None] == groups[None]
        within = jax.lax.dynamic_slice_in_dim(pairs, start, tile, axis=1)
        stay = _settle(within, jax.lax.dynamic_slice_in_dim(alive, start, tile))
        removed = jnp.any(pairs & stay[:, None], axis=0) & (places >= start + tile)
        return jax.lax.dynamic_update_slice_in_dim(alive & ~removed, stay, start, axis=0)

    return jax.lax.fori_loop(0, len(boxes) // tile, step, alive)[:count]


def _settle(overlaps: Array, alive: Array) -> Array:
    """bool[T]: what stays of `alive`, if row i of bool[T, T] says whom i removes behind it.

    Repeats "stays if nothing before it that stays removes it" until nothing changes: the first
    box is right at once, each box one round after those before it at the latest.
    """
    earlier = jnp.triu(overlaps, 1)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, stay = state
        return stay, alive & ~jnp.any(earlier & stay[:, None], axis=0)

    return jax.lax.while_loop(lambda s: jnp.any(s[0] != s[1]), step, (~alive, alive))[1]


def class_confidence(
    boxes: Array, probs: Array, valid: Array, threshold: float, count: int, *, inclusive: bool
) -> Array:
    """A box's highest probability among the classes in which it stays, for the best boxes.

    The rule of the released scripts: suppression for each class by itself among all boxes.
    Pairs of box and class are decided from the most probable one on, until `count` boxes
    have one that stays: a pair's fate depends on more probable ones only, so what is left cannot
    change the best.

    Args:
      boxes: float32[N, 4].
      probs: float32[N, C], without the background.
      valid: bool[N], which boxes there are.
      threshold: of intersection over union.
      count: how many boxes are needed.
      inclusive: the convention of the boxes.

    Returns:
      float32[N], -1 for what is not valid; right for the best `count` boxes, 0 for
      boxes that were not reached. Ties of pairs are broken by the order of boxes.
    """
    num_boxes, num_classes = probs.shape
    overlaps = iou(boxes, boxes, inclusive=inclusive) > threshold
    flat = jnp.where(valid[:, None], probs, -1.0).reshape(-1)
    order = jnp.argsort(-flat, stable=True)
    chunk = min(_PAIRS, len(flat))
    order = jnp.pad(order, (0, -len(order) % chunk), constant_values=-1)
    needed = jnp.minimum(count, jnp.sum(valid))

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        start, confidence, _ = state
        return (start < len(order)) & (jnp.sum(confidence > 0) < needed)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, confidence, stayed = state
        pairs = jax.lax.dynamic_slice_in_dim(order, start, chunk)
        box, kind = pairs // num_classes, pairs % num_classes
        # Those that stayed earlier, of the same class: [N, chunk].
        alive = ~jnp.any(stayed[:, kind] & overlaps[:, box], axis=0)
        alive &= (pairs >= 0) & valid[box]
        stay = _settle(overlaps[box][:, box] & (kind[:, None] == kind[None]), alive)
        confidence = confidence.at[box].max(jnp.where(stay, flat[pairs], -1.0))
        return start + chunk, confidence, stayed.at[box, kind].max(stay)

    state = (jnp.array(0), jnp.where(valid, 0.0, -1.0), jnp.zeros(probs.shape, bool))
    return jax.lax.while_loop(unfinished, step, state)[1]


def most_confident(confidence: Array, count: int) -> tuple[Array, Array]:
    """Indices int32[K] of the highest values, ties in order; and bool[K], which are at least 0."""
    order = jnp.argsort(-confidence, stable=True)[:count]
    return order, confidence[order] >= 0


def confident_boxes(confidence: Array, least: float, fewest: int, most: int) -> tuple[Array, Array]:
    """The rule of bottom-up attention's script: those of at least `least`, within two numbers.

    Args:
      confidence: float32[N], below 0 for what does not count.
      least: a confidence.
      fewest: take the best so many if there are fewer.
      most: take the best so many if there are more.

    Returns:
      Indices int32[most], in their own order if the numbers did not matter and best first if they
      did, as the script gives them; and bool[most], which are filled.
    """
    order, there = most_confident(confidence, most)
    enough = jnp.sum(confidence >= least)
    number = jnp.clip(enough, fewest, most)
    there &= jnp.arange(len(order)) < number
    by_place = jnp.argsort(jnp.where(there, order, len(confidence)), stable=True)
    return jnp.where((fewest <= enough) & (enough <= most), order[by_place], order), there


def sweep(
    boxes: Array,
    scores: Array,
    valid: Array,
    thresholds: Sequence[float],
    count: int,
    *,
    inclusive: bool,
) -> tuple[Array, Array]:
    """The rule of the PyTorch ports: the lowest threshold that leaves enough boxes.

    Args:
      boxes: float32[N, 4], one for each proposal.
      scores: float32[N].
      valid: bool[N], which count.
      thresholds: ascending; the last is taken if none leaves enough.
      count: enough, and no more are returned.
      inclusive: the convention of the boxes.

    Returns:
      Indices int32[count], best first, and bool[count], which are filled.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    stay = jax.vmap(
        lambda threshold: keep(boxes[order], valid[order], threshold, inclusive=inclusive)
    )(jnp.asarray(thresholds, jnp.float32))
    enough = jnp.sum(stay, axis=1) >= count
    chosen = jnp.where(jnp.any(enough), jnp.argmax(enough), len(thresholds) - 1)
    places, filled = first_true(stay[chosen], count)
    return order[places], filled


def first_true(mask: Array, count: int) -> tuple[Array, Array]:
    """Places int32[K] of the first true values, K = min(count, N), and bool[K], which exist."""
    places = jnp.argsort(~mask, stable=True)[:count]
    return places, mask[places]
