"""The Vision Transformer against NumPy, published sizes, and itself in other forms."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.convert.big_vision import to_big_vision
from twelve_in_one.models import pre_norm, vit
from twelve_in_one.models.layers import attend
from twelve_in_one.models.vit import ViT, ViTConfig, named_vit

TINY = ViTConfig(12, 2, 3, 20, image_size=(8, 12), patch_size=2, num_classes=5)


def _params(config: ViTConfig, seed: int = 0):
    """Parameters in which nothing is zero or one."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(vit.abstract_params(config))
    return jax.tree.map(lambda x: rng.normal(0.2, 0.4, x.shape).astype(np.float32), shapes)


def _images(config: ViTConfig, rows: int = 2):
    shape = (rows, *config.image_size, 3)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _run(config: ViTConfig, params, images, key=None):
    return ViT(config).apply({"params": params}, images, key)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("Ti/16", 5.5),
        ("S/16", 21.7),
        ("B/16", 85.8),
        ("L/16", 303.3),
        ("So400m/16", 412.6),
        ("H/16", 630.9),
        ("g/16", 1011),
        ("G/16", 1843),
    ],
)
def test_sizes_have_the_published_parameter_counts(name, millions):
    # Scanned, one block is traced instead of up to 48; its parameters are counted all the same.
    shapes = nn.unbox(vit.abstract_params(named_vit(name, scan_layers=True)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert f"{count / 1e6:.4g}" == f"{millions:.4g}" or round(count / 1e6, 1) == millions


def test_a_new_classifier_scores_all_classes_alike():
    params = nn.unbox(jax.jit(functools.partial(vit.init_params, TINY))(jax.random.key(0)))
    _, aux = _run(TINY, params, _images(TINY))
    np.testing.assert_array_equal(aux["logits"], np.zeros((2, 5)))


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def _loss_and_gradient(config: ViTConfig, params, images, key):
    return jnp.sum(jnp.sin(ViT(config).apply({"params": params}, images, key)[1]["logits"]))


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scanned_blocks_give_the_same_numbers_and_gradients(remat):
    config = dataclasses.replace(TINY, dropout_rate=0.1, drop_path_rate=0.3)
    scanned = dataclasses.replace(config, scan_layers=True, remat=remat)
    params, images = _params(config), _images(config, rows=4)
    # This kind of key compiles in a fraction of the default kind's time.
    key = jax.random.key(3, impl="unsafe_rbg")
    value, gradient = _loss_and_gradient(config, params, images, key)
    stacked = pre_norm.stack_blocks(config, params)
    other, stacked_gradient = _loss_and_gradient(scanned, stacked, images, key)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    restored = pre_norm.unstack_blocks(config, stacked_gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), restored, gradient)


def test_stacking_is_undone_by_unstacking():
    params = _params(TINY)
    back = pre_norm.unstack_blocks(TINY, pre_norm.stack_blocks(TINY, params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("global_layers", [(), (1,), (0, 1)])
def test_windows_confine_attention(global_layers):
    """Changing one patch moves its own window's tokens and, through global blocks alone, others."""
    config = dataclasses.replace(TINY, window=2, global_layers=global_layers)
    params, images = _params(config), _images(config, rows=1)
    changed = images.copy()
    changed[0, :2, :2] += 1.0  # the patch in row 0, column 0 of a grid of 4 x 6
    before, _ = _run(config, params, images)
    after, _ = _run(config, params, changed)
    moved = np.any(np.asarray(before != after), axis=-1).reshape(4, 6)
    window = np.zeros((4, 6), bool)
    window[:2, :2] = True
    np.testing.assert_array_equal(moved, np.ones((4, 6), bool) if global_layers else window)


def test_windows_are_cut_and_joined_by_rows_and_columns():
    grid = np.arange(4 * 6).reshape(1, 24, 1)
    windows = np.asarray(pre_norm.split_windows(jnp.asarray(grid), (4, 6), 2))
    assert windows.shape == (6, 4, 1)
    np.testing.assert_array_equal(windows[1, :, 0], [2, 3, 8, 9])
    np.testing.assert_array_equal(windows[3, :, 0], [12, 13, 18, 19])
    np.testing.assert_array_equal(pre_norm.join_windows(jnp.asarray(windows), (4, 6), 2), grid)


def test_all_windows_global_is_plain_attention():
    windowed = dataclasses.replace(TINY, window=2, global_layers=(0, 1))
    params, images = _params(TINY), _images(TINY)
    np.testing.assert_array_equal(_run(TINY, params, images)[0], _run(windowed, params, images)[0])


def test_special_tokens_come_first_and_are_not_averaged():
    config = dataclasses.replace(TINY, class_token=True, num_registers=2, pre_norm=True)
    tokens, aux = _run(config, _params(config), _images(config))
    assert tokens.shape == (2, 1 + 2 + 24, 12)
    np.testing.assert_allclose(aux["pooled"], np.mean(tokens[:, 3:], axis=1), atol=1e-6)
    # The first patch's token, not the class token's.
    first = dataclasses.replace(config, pool="first")
    np.testing.assert_array_equal(
        _run(first, _params(config), _images(config))[1]["pooled"], tokens[:, 3]
    )


def test_drop_path_leaves_out_whole_rows_of_the_last_block():
    """At the first block the rate is 0, at the last it is `drop_path_rate`."""
    config = dataclasses.replace(TINY, drop_path_rate=0.5, num_classes=0)
    rows = 400
    _, aux = _run(config, _params(config), _images(config, rows), jax.random.key(0))
    first = np.asarray(aux["block_0/after_attention"] - aux["embedded"])
    np.testing.assert_allclose(first, aux["block_0/attention"], atol=1e-5)
    added = np.asarray(aux["block_1/after_attention"] - aux["block_0/after_mlp"])
    kept = np.any(np.abs(added) > 1e-6, axis=(1, 2))
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(
        added[kept], 2 * np.asarray(aux["block_1/attention"])[kept], atol=1e-4
    )
    np.testing.assert_array_equal(added[~kept], 0.0)


def test_attention_equals_numpy():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, n, 3, 4)).astype(np.float32) for n in (5, 6, 6))
    mask = rng.random((2, 1, 5, 6)) < 0.7
    mask[..., 0] = True
    context, probabilities = attend(query, key, value, mask)
    for b in range(2):
        for n in range(3):
            scores = query[b, :, n] @ key[b, :, n].T / 2.0
            weights = np.where(mask[b, 0], np.exp(scores), 0.0)
            weights /= weights.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(probabilities[b, n], weights, atol=1e-6)
            np.testing.assert_allclose(context[b, :, n], weights @ value[b, :, n], atol=1e-5)
    without, none = attend(query, key, value, mask, with_probabilities=False)
    assert none is None
    np.testing.assert_array_equal(without, context)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_heads=5), "num_heads 5 does not divide hidden_dim 12"),
        (dict(image_size=(8, 9)), "not made of patches of 2 pixels"),
        (dict(pool="gap"), "pool 'gap' is none of class, mean"),
        (dict(pool="class"), "needs class_token=True"),
        (dict(window=4), "window 4 does not divide the grid"),
        (dict(window=2, num_registers=1), "no place for a class token or registers"),
        (dict(window=2, scan_layers=True), "all alike"),
        (dict(global_layers=(2,)), "there are 2 layers"),
        (dict(drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\)"),
        (dict(stem="bricks"), "stem 'bricks' is none of patches, convolutions"),
        (dict(stem="convolutions"), "hidden_dim 12 should be a multiple of 8"),
        (dict(stem="convolutions", patch_size=4, hidden_dim=24), "24 should be a multiple of 16"),
        (dict(stem="convolutions", patch_size=1), "patch_size 1 is no power of two"),
        (dict(num_layers=0), "num_layers must be positive"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_a_stem_of_convolutions_equals_numpy():
    config = dataclasses.replace(TINY, hidden_dim=48, patch_size=4, stem="convolutions")
    params, images = _params(config), _images(config)
    _, aux = _run(config, params, images)
    x, eps = images.astype(np.float64), config.layer_norm_eps
    for i in range(2):
        kernel, norm = params["stem"][f"conv_{i}"]["kernel"], params["stem"][f"norm_{i}"]
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        x = sum(
            x[:, dy : dy + 2 * rows : 2, dx : dx + 2 * columns : 2] @ kernel[dy, dx]
            for dy in range(3)
            for dx in range(3)
        )
        groups = x.reshape(len(x), rows * columns, 8, -1)
        mean = groups.mean(axis=(1, 3), keepdims=True)
        groups = (groups - mean) / np.sqrt(groups.var(axis=(1, 3), keepdims=True) + eps)
        x = np.maximum(groups.reshape(x.shape) * norm["scale"] + norm["bias"], 0)
    last = params["patch_embedding"]
    expected = x @ last["kernel"][0, 0] + last["bias"]
    np.testing.assert_allclose(aux["patches"], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="begins with patches"):
        to_big_vision(config, params)


@pytest.mark.parametrize("name", ["B", "B/", "X/16", "B16"])
def test_unknown_sizes_are_refused(name):
    with pytest.raises(ValueError, match="SIZE/PATCH"):
        named_vit(name)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 10, 3\), the model is for \(8, 12, 3\)"):
        jax.eval_shape(lambda: ViT(TINY).init(jax.random.key(0), jnp.zeros((1, 8, 10, 3))))


@pytest.mark.parametrize(("old", "new"), [((3, 4), (5, 7)), ((5, 4), (3, 2)), ((3, 3), (3, 3))])
def test_positions_are_resized_between_their_corners(old, new):
    from scipy.ndimage import zoom

    table = np.random.default_rng(0).normal(size=(old[0] * old[1], 6)).astype(np.float32)
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = zoom(table.reshape(*old, 6).astype(np.float64), factors, order=1)
    np.testing.assert_allclose(
        vit.resize_positions(table, old, new), expected.reshape(-1, 6), atol=1e-6
    )


@pytest.mark.parametrize(("old", "new"), [((3, 4), (5, 7)), ((5, 4), (3, 2))])
def test_positions_are_resized_as_in_pytorch(old, new):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(old[0] * old[1], 6)).astype(np.float32)
    grid = torch.tensor(table.astype(np.float64)).reshape(1, *old, 6).permute(0, 3, 1, 2)
    resize = torch.nn.functional.interpolate
    expected = resize(grid, size=new, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    ours = vit.resize_positions(table, old, new, "bicubic")
    np.testing.assert_allclose(ours, expected.reshape(-1, 6).numpy(), atol=1e-6)


def test_positions_are_resized_as_in_jax():
    table = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    expected = jax.image.resize(table.reshape(5, 4, 6), (3, 7, 6), "bilinear")
    ours = vit.resize_positions(table, (5, 4), (3, 7), "resize")
    np.testing.assert_array_equal(ours, expected.reshape(-1, 6))


def test_larger_patches_give_the_same_embeddings_of_larger_pictures():
    """A picture enlarged with its patches: every patch is the old one, resized bilinearly."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
    patch = rng.normal(size=(4, 4, 3)).astype(np.float32)
    larger = jax.image.resize(patch, (6, 6, 3), "bilinear", antialias=False)
    resized = vit.resize_patches(kernel, 6)
    assert resized.shape == (6, 6, 3, 5)
    ours, expected = (np.tensordot(p, k, 3) for p, k in ((larger, resized), (patch, kernel)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(vit.resize_patches(kernel, 4), kernel, atol=1e-6)
