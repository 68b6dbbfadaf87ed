"""The loss of pretraining on captions: masked words, masked regions, alignment (paper section 4).

The batch itself gives the target of masked regions: "region_classes" their class distribution
(target 0), "region_features" alone their feature (target 1), with "across_draws" and "within_draws"
their feature among others (target 2). Letters as in `data/encode/pretraining.py`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from twelve_in_one.tasks import losses
from twelve_in_one.tasks.losses import Sums


def loss(outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> Sums:
    """Sums of three parts, in the order of `PRETRAINING_HEADS`.

    The loss of the second is multiplied by batch["region_weight"], that of the third by
    batch["alignment_weight"]; the total is the sum of the parts' means.

    Args:
      outputs: "masked_language" [B, S, vocabulary], "masked_region" [B, R, C or F] and
        "alignment" [B, 2].
      batch: of `data/encode/pretraining.py`.
    """
    mask, labels = batch["_mask"], batch["token_labels"]
    words = outputs["masked_language"]
    if words.shape[1] > labels.shape[1]:  # a task token has position 1
        words = jnp.concatenate([words[:, :1], words[:, 2:]], axis=1)
    parts = (
        losses.masked_language_loss(words, labels, mask),
        _masked_region_loss(outputs["masked_region"][:, 1:], batch),
        losses.alignment_loss(outputs["alignment"], batch["is_misaligned"], mask),
    )
    sums = Sums(*(jnp.stack(values) for values in zip(*parts, strict=True)))
    weights = (jnp.ones(()), batch["region_weight"], batch["alignment_weight"])
    return sums._replace(loss=sums.loss * jnp.stack(weights).astype(jnp.float32))


def counts(batch: Mapping[str, Any]) -> jax.Array:
    """float32[3], the counts of `loss`."""
    mask = batch["_mask"]
    words = (batch["token_labels"] >= 0) & mask[:, None]
    return jnp.stack([jnp.sum(x, dtype=jnp.float32) for x in (words, _chosen_regions(batch), mask)])


def _chosen_regions(batch: Mapping[str, Any]) -> jax.Array:
    """bool[B, R - 1], masked regions of rows that count, without the global region."""
    return (batch["region_labels"][:, 1:] == 1) & batch["_mask"][:, None]


def _masked_region_loss(predictions: jax.Array, batch: Mapping[str, Any]) -> Sums:
    chosen = _chosen_regions(batch)
    if "region_classes" in batch:
        return losses.masked_region_class_loss(predictions, batch["region_classes"][:, 1:], chosen)
    targets = batch["region_features"][:, 1:]
    if "across_draws" not in batch:
        return losses.masked_region_feature_loss(predictions, targets, chosen)
    real = batch["region_mask"][:, 1:] & batch["_mask"][:, None]
    draws = (batch[name][:, 1:] for name in ("across_draws", "within_draws"))
    negatives, usable = contrast_negatives(*draws, real)
    return losses.masked_region_contrast_loss(predictions, targets, negatives, chosen, usable)


def contrast_negatives(
    across: jax.Array, within: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Chooses the regions of the batch from which a masked region is distinguished.

    As in the released code, except that it may draw padded slots, which are left out here.

    Args:
      across: float[B, R, K] uniform in [0, 1), of regions of other rows.
      within: float[B, R, K'] also, of other regions of the same row.
      real: bool[B, R], True for real regions, which come before padding; without the global
        region, like the draws.

    Returns:
      int32[B, R, K + K'], rows of the regions flattened to [B * R], and bool[B, R, K + K'], whether
      they are real regions other than the region itself.
    """
    rows, regions, _ = across.shape
    row = jnp.arange(rows)[:, None, None]
    own = jnp.arange(regions)[None, :, None]
    last = rows * regions - 1

    # One of the (B - 1) * R slots of other rows: slots from the own row on move up by a row.
    slot = jnp.floor(across * ((rows - 1) * regions)).astype(jnp.int32)
    other = jnp.minimum(slot + jnp.where(slot >= row * regions, regions, 0), last)
    usable = real.reshape(-1)[other] & (other // regions != row)  # a single row has no others

    # One of the row's real regions except its own.
    size = jnp.sum(real, axis=1, dtype=jnp.int32)[:, None, None]
    place = jnp.floor(within * jnp.maximum(size - 1, 0)).astype(jnp.int32)
    place = place + (place >= own)
    inside = place < size
    beside = jnp.minimum(row * regions + place, last)
    return jnp.concatenate([other, beside], axis=-1), jnp.concatenate([usable, inside], axis=-1)
