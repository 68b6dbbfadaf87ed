"""Contrastive losses of images and texts, where every row of a batch is compared with every other.

The matrix of pairs has B x B entries. `contrastive_loss` can compute it in chunks of columns, and
on several devices in a ring: each holds its rows, while texts go around, with what has been summed
up for them. No device ever holds more than its rows times a chunk, forward or backward. Loss and
gradients are those of the whole matrix.

Letters: B rows of the batch, b of a device, c of a chunk, m chunks, E width of the vectors, H words
of a key.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from twelve_in_one.parallel.sharding import batch_axes, batch_ways
from twelve_in_one.tasks.losses import Sums

Array = jax.Array
Form = Literal["focal", "softmax"]

# Score of a pair that takes no part: finite, so that a row without pairs stays free of NaN.
_MASKED_LOGIT = -1e9


class Contrast(NamedTuple):
    """A contrastive loss.

    Attributes:
      sums: over rows; the score is 1 where an image's own text scores above all others.
      repeated: float32[], rows whose text another row has too.
    """

    sums: Sums
    repeated: Array


class _Columns(NamedTuple):
    """Texts, their places in the batch, and what is known of them so far: [..., c, ...]."""

    vectors: Array
    mask: Array
    place: Array
    keys: Array
    top: Array  # their highest logit
    total: Array  # sum of exp(logit - top)


class _Rows(NamedTuple):
    """What is known of images so far, [b] each.

    `own` is the logit of the own text, `other` the highest of the others, `loss` the focal loss;
    see `_Columns` for the rest.
    """

    top: Array
    total: Array
    loss: Array
    own: Array
    other: Array
    repeated: Array


def contrastive_loss(
    image: Array,
    text: Array,
    scale: Array,
    mask: Array,
    *,
    form: Form,
    gamma: float = 1.0,
    keys: Array | None = None,
    chunk: int = 0,
) -> Contrast:
    """Matches the texts and images of a batch, in both directions.

    "focal" is a sigmoid cross-entropy for every pair, times the probability of an error to the
    power of `gamma`, summed over both directions and the texts of an image (Kuo et al. 2023, after
    RO-ViT); with `gamma` 0 and one direction it is SigLIP's without its bias. "softmax" is the mean
    over directions of the cross-entropy of the own partner among all (CLIP).

    Args:
      image: unit vectors float[B, E].
      text: unit vectors float[B, E]; rows of equal number belong together.
      scale: float[], factor on cosines.
      mask: bool[B], False for rows that take no part.
      form: of the loss.
      gamma: exponent of "focal".
      keys: uint32[B, H] of the texts, see `text_keys`: pairs of different rows with equal keys take
        no part. None compares all.
      chunk: columns to compute at a time. 0 computes the matrix as it is; otherwise a mesh set by
        `parallel.sharding.use`, whose axes of rows divide B, makes a ring.
    """
    if form not in ("focal", "softmax"):
        raise ValueError(f"form {form!r} is none of focal, softmax")
    wide = jnp.promote_types(image.dtype, jnp.float32)
    places = jnp.arange(len(mask))
    keys = jnp.zeros((len(mask), 0), jnp.uint32) if keys is None else keys
    image, text = (jnp.where(mask[:, None], x.astype(wide), 0.0) for x in (image, text))
    inputs = (image, text, scale.astype(wide), mask, places, keys)
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else batch_ways(mesh)
    ring = bool(chunk) and devices > 1 and len(mask) % devices == 0
    rows = functools.partial(
        _row_losses,
        form=form,
        gamma=gamma,
        chunk=chunk,
        devices=devices if ring else 1,
        axes=batch_axes(mesh),
    )
    if ring:
        split = PartitionSpec(batch_axes(mesh))
        specs = tuple(PartitionSpec() if x.ndim == 0 else split for x in inputs)
        rows = jax.shard_map(rows, in_specs=specs, out_specs=(split,) * 3, check_vma=False)
    loss, right, repeated = rows(*inputs)

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(mask, x, 0.0), dtype=jnp.float32)

    count = jnp.sum(mask, dtype=jnp.float32)
    return Contrast(Sums(jnp.sum(jnp.where(mask, loss, 0.0)), total(right), count), total(repeated))


def _row_losses(
    image: Array,
    text: Array,
    scale: Array,
    mask: Array,
    places: Array,
    keys: Array,
    *,
    form: Form,
    gamma: float,
    chunk: int,
    devices: int,
    axes: tuple[str, ...],
) -> tuple[Array, Array, Array]:
    """Loss, score and whether the text is repeated, of a device's images; [b] each."""
    zeros, size = jnp.zeros(len(mask), image.dtype), min(chunk or len(mask), len(mask))
    low = jnp.full_like(zeros, _MASKED_LOGIT)
    rows = _Rows(low, zeros, zeros, zeros, low, mask & False)
    columns = _Columns(text, mask, places, keys, low, zeros)

    def block(rows: _Rows, part: _Columns) -> tuple[_Rows, _Columns]:
        logits = scale * (image @ part.vectors.T)  # [b, c]
        own = places[:, None] == part.place[None]
        both = mask[:, None] & part.mask[None]
        pairs, repeated = both, rows.repeated
        if keys.shape[1]:
            same = jnp.all(keys[:, None] == part.keys[None], axis=-1) & both & ~own
            pairs, repeated = both & ~same, repeated | jnp.any(same, axis=1)
        others = jax.lax.stop_gradient(jnp.where(pairs & ~own, logits, _MASKED_LOGIT))
        rows = rows._replace(
            own=rows.own + jnp.sum(jnp.where(pairs & own, logits, 0.0), axis=1),
            other=jnp.maximum(rows.other, jnp.max(others, axis=1)),
            repeated=repeated,
        )
        if form == "focal":
            loss = focal_loss(jnp.where(pairs, logits, 0.0), own, gamma)
            loss = jnp.sum(jnp.where(pairs, loss, 0.0), axis=1)
            return rows._replace(loss=rows.loss + loss), part
        logits = jnp.where(pairs, logits, _MASKED_LOGIT)
        top, total = _add_exponentials(rows.top, rows.total, logits, 1)
        rows = rows._replace(top=top, total=total)
        top, total = _add_exponentials(part.top, part.total, logits, 0)
        return rows, part._replace(top=top, total=total)

    if chunk:
        # [b, ...] -> [m, c, ...]; places beyond the last are no row's own.
        ends = dict(place=-1, top=_MASKED_LOGIT)
        columns = _Columns(
            *(
                _folded(x, size, ends.get(name, 0))
                for name, x in zip(_Columns._fields, columns, strict=True)
            )
        )
        again = jax.checkpoint(block)

        def turn(state: tuple[_Rows, _Columns], _: None) -> tuple[tuple[_Rows, _Columns], None]:
            rows, columns = jax.lax.scan(again, *state)
            if devices > 1:
                following = [(i, (i + 1) % devices) for i in range(devices)]
                columns = jax.tree.map(lambda x: jax.lax.ppermute(x, axes, following), columns)
            return (rows, columns), None

        # After as many turns as there are devices, the columns are at home again.
        (rows, columns), _ = jax.lax.scan(turn, (rows, columns), None, length=devices)
        columns = columns._replace(
            top=columns.top.reshape(-1)[: len(mask)], total=columns.total.reshape(-1)[: len(mask)]
        )
    else:
        rows, columns = block(rows, columns)
    right = rows.own > rows.other
    if form == "focal":
        return 2.0 * rows.loss, right, rows.repeated
    by_image = rows.top + jnp.log(jnp.maximum(rows.total, 1e-30))
    by_text = columns.top + jnp.log(jnp.maximum(columns.total, 1e-30))
    return 0.5 * (by_image + by_text) - rows.own, right, rows.repeated


def _folded(x: Array, size: int, fill: float) -> Array:
    """[b, ...] as [m, c, ...], filled up."""
    missing = -len(x) % size
    x = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)), constant_values=fill)
    return x.reshape(len(x) // size, size, *x.shape[1:])


def _add_exponentials(top: Array, total: Array, logits: Array, axis: int) -> tuple[Array, Array]:
    """The highest logit and the sum of exp(logit - highest), with those along an axis added."""
    new = jnp.maximum(top, jax.lax.stop_gradient(jnp.max(logits, axis=axis)))
    added = jnp.sum(jnp.exp(logits - jnp.expand_dims(new, axis)), axis=axis)
    return new, total * jnp.exp(top - new) + added


def focal_loss(logits: Array, labels: Array, gamma: float) -> Array:
    """float[...], sigmoid cross-entropy times the probability of an error to the power of `gamma`.

    Args:
      logits: float[...].
      labels: bool[...].
      gamma: 0 for the cross-entropy itself.
    """
    labels = labels.astype(logits.dtype)
    loss = jnp.maximum(logits, 0.0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    if not gamma:
        return loss
    return loss * jnp.exp(-gamma * (labels * logits + jax.nn.softplus(-logits)))


def text_keys(tokens: Array) -> Array:
    """uint32[B, 2], equal for equal texts int32[B, L], and practically only for these."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**32, (tokens.shape[1], 2), np.uint32) | np.uint32(1)
    x = (tokens.astype(jnp.uint32) + 1) * np.uint32(0x9E3779B1)
    x = x ^ (x >> 15)
    return jnp.sum(x[..., None] * factors[None], axis=1, dtype=jnp.uint32)
