"""From what is known of boxes to detections: scores of two models combined, and the best of them.

A detector that has learnt some classes is sure of these and unsure of others, where the model that
it began with, which compares regions with texts, knows more. So both vote, with other weights for
classes that were learnt ("base") than for those that were not ("novel") (Kuo et al. 2023, F-VLM).

Letters: R boxes, C classes, K detections.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from twelve_in_one.models.detection import nms

Array = jax.Array


def combine(
    detector: Array,
    regions: Array,
    novel: Array,
    objectness: Array,
    *,
    base_exponent: float,
    novel_exponent: float,
    objectness_exponent: float,
) -> Array:
    """Scores of every box and class.

    With p the detector's probabilities and z those of the other model, a class of which the
    detector knows has p^a * z^(1 - a), another one p^b * z^(1 - b); the background keeps p. They
    are scaled to add up to 1, and then multiplied by a power of the objectness.

    Args:
      detector: float32[R, 1 + C], logits, the background first.
      regions: float32[R, C], logits of the other model.
      novel: bool[C]. A list of classes of which nobody says which were learnt is novel throughout.
      objectness: float32[R], 0 to 1.
      base_exponent: a.
      novel_exponent: b.
      objectness_exponent: of the last factor.

    Returns:
      float32[R, C].
    """
    log_p, log_z = jax.nn.log_softmax(detector), jax.nn.log_softmax(regions)
    share = jnp.where(novel, novel_exponent, base_exponent)[None]
    classes = share * log_p[:, 1:] + (1 - share) * log_z
    combined = jax.nn.softmax(jnp.concatenate([log_p[:, :1], classes], axis=1))[:, 1:]
    return combined * (objectness**objectness_exponent)[:, None]


class Found(NamedTuple):
    """Detections of one photo, best first, then padding.

    Attributes:
      boxes: float32[K, 4].
      scores: float32[K].
      classes: int32[K].
      valid: bool[K].
    """

    boxes: Array
    scores: Array
    classes: Array
    valid: Array


def best(
    boxes: Array, scores: Array, valid: Array, *, before: int, count: int, threshold: float
) -> Found:
    """The best pairs of box and class, after suppression within each class.

    Args:
      boxes: float32[R, 4], the same for all classes.
      scores: float32[R, C].
      valid: bool[R].
      before: pairs before the suppression.
      count: K.
      threshold: of intersection over union.
    """
    pairs = jnp.where(valid[:, None], scores, -1.0).reshape(-1)
    most, places = jax.lax.top_k(pairs, min(before, len(pairs)))
    rows, classes = jnp.divmod(places, scores.shape[1])
    kept = boxes[rows]
    stay = nms.keep(kept, most >= 0, threshold, inclusive=False, groups=classes.astype(jnp.int32))
    chosen, filled = nms.first_true(stay, count)
    missing = count - len(chosen)
    found = Found(kept[chosen], most[chosen], classes[chosen].astype(jnp.int32), filled)

    def padded(x: Array) -> Array:
        mask = filled.reshape(-1, *(1 for _ in x.shape[1:]))
        return jnp.pad(jnp.where(mask, x, 0), ((0, missing), *((0, 0) for _ in x.shape[1:])))

    return Found(*map(padded, found))
