"""Contrastive losses, in one matrix, in chunks and in a ring, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.parallel.sharding import make_mesh, use
from twelve_in_one.tasks.contrastive import contrastive_loss, text_keys

B, E, CHUNK = 24, 6, 2
# Of the published description: one direction at temperature 1.
IMAGE = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
TEXT = np.array([[0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]], np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def rows():
    """Vectors, scale, mask and keys: rows 3 and 20 have the text of row 1, 5 and 6 take no part."""
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(B, E))).astype(np.float32) for _ in range(2))
    tokens = rng.integers(0, 9, (B, 5)).astype(np.int32)
    tokens[[3, 20]] = tokens[1]
    mask = np.ones(B, bool)
    mask[[5, 6]] = False
    return image, text, np.float32(3.0), mask, np.asarray(text_keys(tokens))


def expected(image, text, scale, mask, keys, form, gamma):
    """Loss and score, pair by pair."""
    logits = scale * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    pairs = mask[:, None] & mask[None]
    pairs &= np.eye(len(mask), dtype=bool) | ~np.all(keys[:, None] == keys[None], axis=-1)
    loss = score = 0.0
    for i in np.flatnonzero(mask):
        others = [j for j in np.flatnonzero(pairs[i]) if j != i]
        score += all(logits[i, i] > logits[i, j] for j in others)
        if form == "focal":
            for j in [i, *others]:
                p = 1 / (1 + np.exp(-logits[i, j] * (1 if i == j else -1)))
                loss -= 2 * (1 - p) ** gamma * np.log(p)
        else:
            for x in (logits[i], logits[:, i]):
                loss += 0.5 * (np.log(np.sum(np.exp(x[[i, *others]]))) - x[i])
    return loss, score


@functools.cache
def compiled(form, chunk, devices):
    """((loss, Contrast), gradients) of the vectors and the scale."""

    def loss(image, text, scale, mask, keys):
        found = contrastive_loss(
            image, text, scale, mask, form=form, gamma=1.5, keys=keys, chunk=chunk
        )
        return found.sums.mean_loss(), found

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    shapes = [(B, E), (B, E), (), (B,), (B, 2)]
    types = [np.float32] * 3 + [bool, np.uint32]
    inputs = [jax.ShapeDtypeStruct(*x) for x in zip(shapes, types, strict=True)]
    if devices == 1:
        return function.lower(*inputs).compile()
    mesh = make_mesh(devices=jax.devices()[:devices])
    split = jax.NamedSharding(mesh, jax.P("data"))
    inputs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) if x.ndim else x for x in inputs
    ]
    with use(mesh, "dp"):
        executable = function.lower(*inputs).compile()
    return executable


def run(form, chunk, devices, rows):
    executable = compiled(form, chunk, devices)
    placed = jax.tree.map(jax.device_put, rows, executable.input_shardings[0])
    return jax.device_get(executable(*placed))


@pytest.mark.parametrize("form", ["focal", "softmax"])
def test_one_matrix_chunks_and_a_ring_agree(rows, form):
    (loss, found), slopes = run(form, 0, 1, rows)
    np.testing.assert_allclose(
        [found.sums.loss, found.sums.score], expected(*rows, form, 1.5), rtol=1e-6
    )
    assert (found.sums.count, found.repeated) == (22, 3)
    # The gradient, along a direction in which NumPy walks.
    rng, step = np.random.default_rng(1), 1e-6
    ways = [rng.normal(size=np.shape(x)) for x in rows[:3]]
    ends = [
        expected(*(x + s * way for x, way in zip(rows, ways, strict=False)), *rows[3:], form, 1.5)[
            0
        ]
        for s in (step, -step)
    ]
    slope = sum(np.sum(x * way) for x, way in zip(slopes, ways, strict=True))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step) / 22, rtol=1e-5)
    for chunk, devices in ((5, 1), (CHUNK, 8)):
        (other, same), others = run(form, chunk, devices, rows)
        np.testing.assert_allclose(other, loss, rtol=1e-6)
        assert same.sums.score == found.sums.score
        assert same.repeated == found.repeated
        for a, b in zip(others, slopes, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


def test_no_device_holds_the_matrix():
    """Of 24 rows, 3 on each of 8 devices, in chunks of 2 columns."""
    assert f"f32[{B},{B}]" in compiled("softmax", 0, 1).as_text()
    ring = compiled("softmax", CHUNK, 8).as_text()
    assert "f32[3,2]" in ring
    assert f"{B},{B}]" not in ring
    assert f"3,{B}]" not in ring
    assert f"[{B},3" not in ring


@pytest.mark.parametrize(
    ("scale", "gamma", "published"), [(1, 0, 2.288707), (1, 2, 0.838792), (10, 1, 10.755828)]
)
def test_published_values(scale, gamma, published):
    loss = jax.jit(functools.partial(contrastive_loss, form="focal", gamma=gamma))
    found = loss(IMAGE, TEXT, np.float32(scale), np.ones(3, bool))
    np.testing.assert_allclose(found.sums.mean_loss(), 2 * published, rtol=1e-6)


def test_published_values_of_softmax():
    loss = jax.jit(functools.partial(contrastive_loss, form="softmax", chunk=2))
    found = loss(IMAGE, TEXT, np.float32(1), np.ones(3, bool))
    np.testing.assert_allclose(found.sums.mean_loss(), (0.885553 + 0.872766) / 2, atol=1e-6)


def test_rows_that_take_no_part_change_nothing(rows):
    """Not even if they are not numbers."""
    image, text, scale, mask, keys = rows
    odd = image.copy(), text.copy()
    for x in odd:
        x[[5, 6]] = np.nan
    (loss, _), slopes = run("softmax", 5, 1, (*odd, scale, mask, keys))
    assert loss == run("softmax", 5, 1, rows)[0][0]
    assert not np.isnan(slopes[2])


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="none of focal, softmax"):
        contrastive_loss(IMAGE, TEXT, np.float32(1), np.ones(3, bool), form="hinge")


def test_a_ring_over_two_slices():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 8, 6)).astype(np.float32)
    image, text = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)

    def loss(image, text):
        every = jnp.ones(len(image), bool)
        return contrastive_loss(image, text, jnp.float32(5), every, form="softmax", chunk=2).sums

    alone = jax.jit(lambda *x: loss(*x))(image, text)
    with use(make_mesh(devices=jax.devices()[:4], slices=2), "dp"):
        ring = jax.jit(lambda *x: loss(*x))(image, text)
    np.testing.assert_allclose(ring, alone, rtol=1e-6)
