"""Losses of a detector, one number for every photo, and what they count.

Each is a mean over what it counts in a photo, 0 if that is nothing; the loss of a batch is the mean
over its photos, so that a batch may be cut into parts.

Letters: B photos, N boxes or anchors, C classes, M side of a mask.
"""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def _mean(values: Array, counted: Array, number: Array | None = None) -> Array:
    """[B] of [B, N]: the sum of what counts, over `number` or how many count."""
    if number is None:
        number = jnp.sum(counted, axis=1)
    return jnp.sum(jnp.where(counted, values, 0.0), axis=1) / jnp.maximum(number, 1)


def centerness_loss(logits: Array, targets: Array, counted: Array) -> Array:
    """[B], mean distance of probabilities [B, N] and centerness [B, N]."""
    return _mean(jnp.abs(jax.nn.sigmoid(logits) - targets), counted)


def objectness_loss(logits: Array, targets: Array, counted: Array) -> Array:
    """[B], mean binary cross-entropy of [B, N]."""
    return _mean(optax.sigmoid_binary_cross_entropy(logits, targets), counted)


def paired_iou(boxes: Array, truth: Array) -> Array:
    """[B, N], intersection over union of boxes [B, N, 4] with their own true ones.

    A box whose corners are in the wrong order has no area.
    """
    low = jnp.maximum(boxes[..., :2], truth[..., :2])
    high = jnp.minimum(boxes[..., 2:], truth[..., 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
    areas = [jnp.prod(jnp.maximum(x[..., 2:] - x[..., :2], 0.0), axis=-1) for x in (boxes, truth)]
    return shared / jnp.maximum(areas[0] + areas[1] - shared, 1e-6)


def iou_loss(boxes: Array, truth: Array, counted: Array) -> Array:
    """[B], mean of 1 - intersection over union."""
    return _mean(1 - paired_iou(boxes, truth), counted)


def class_loss(logits: Array, labels: Array, counted: Array, background_weight: float) -> Array:
    """[B], mean softmax cross-entropy of [B, N, 1 + C], where label 0 weighs less or more."""
    found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _mean(found * jnp.where(labels == 0, background_weight, 1.0), counted)


def delta_loss(
    deltas: Array, targets: Array, positive: Array, counted: Array, delta: float
) -> Array:
    """[B], Huber losses of four deltas [B, N, 4] of positive boxes, over all that count.

    Args:
      deltas: see above.
      targets: the same.
      positive: bool[B, N].
      counted: bool[B, N], positive and negative ones (Girshick 2015): a photo with few positive
        boxes says little.
      delta: error up to which the loss is quadratic.
    """
    found = jnp.sum(optax.huber_loss(deltas, targets, delta=delta), axis=-1)
    return _mean(found, positive, jnp.sum(counted, axis=1))


def mask_loss(logits: Array, targets: Array, counted: Array) -> Array:
    """[B], mean binary cross-entropy of the pixels of masks [B, N, M, M]."""
    found = optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32))
    return _mean(jnp.mean(found, axis=(2, 3)), counted)


def share(right: Array, counted: Array) -> Array:
    """float32[B], how many of what counts [B, N] are right."""
    return _mean(right.astype(jnp.float32), counted)
