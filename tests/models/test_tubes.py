"""Tokens of clips against loops over pixels, and what the switches of the ablation leave out."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models import vit
from twelve_in_one.models.flops import vit_forward_flops
from twelve_in_one.models.tubes import ClipConfig, centres, fixed_embedding
from twelve_in_one.models.vit import ViT, ViTConfig, named_vit

# 3 x 2 x 2 places of the first tube, which overlap in time; 1 x 1 x 2 of the second.
TUBES = ((2, 3, 2, 1, 4, 5, 1, 0, 1), (4, 4, 3, 9, 9, 3, 0, 2, 1))
CLIP = ClipConfig(frames=5, every=2, tubes=TUBES)
CONFIG = ViTConfig(14, 1, 2, 12, image_size=(8, 8), patch_size=4, clip=CLIP)


def scrambled(config):
    rng = np.random.default_rng(0)
    shapes = nn.unbox(vit.abstract_params(config))
    return jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(1).normal(size=(2, 5, 8, 8, 3)).astype(np.float32)


def embedded(config, params, clips):
    apply = jax.jit(lambda params, clips: ViT(config).apply({"params": params}, clips)[1])
    return np.asarray(apply(params, clips)["embedded"])


def fixed_by_hand(t, y, x, width):
    """In the order of the module's docstring."""
    count, found = width // 6, []
    for place in (t, x, y):
        for wave in (np.sin, np.cos):
            found += [wave(place * 10_000 ** (-j / count)) for j in range(count)]
    return np.array(found + [0.0] * (width % 6))


def test_the_paper_reads_539_tokens():
    config = named_vit("B/16", clip=ClipConfig(frames=32))
    assert config.num_tokens == 2 * 7 * 7 + 3 * 7 * 7 + 2 * 7 * 7 + 14 * 14 == 539
    assert config.input_shape == (32, 224, 224, 3)
    shapes = nn.unbox(jax.eval_shape(lambda: vit.init_params(config, jax.random.key(0))))
    sizes = {name: x["kernel"].shape for name, x in shapes["clip"].items() if name != "gate"}
    assert sizes == {
        "tube_0": (8, 8, 8, 3, 768),
        "tube_1": (16, 4, 4, 3, 768),
        "tube_2": (4, 12, 12, 3, 768),
    }
    apply = jax.eval_shape(
        lambda params, x: ViT(config).apply({"params": params}, x)[0],
        shapes,
        jax.ShapeDtypeStruct((1, *config.input_shape), np.float32),
    )
    assert apply.shape == (1, 539, 768)


def test_tokens_are_those_of_loops(clips):
    params, width = scrambled(CONFIG), CONFIG.hidden_dim
    found = embedded(CONFIG, params, clips)
    weight = np.tanh(params["clip"]["gate"])
    rows = []
    patch, positions = params["patch_embedding"], params["position"]
    for frame in (0, 2, 4):
        for place, (y, x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            pixels = clips[:, frame, y : y + 4, x : x + 4]
            token = np.einsum("byxc,yxcd->bd", pixels, patch["kernel"]) + patch["bias"]
            fixed = fixed_by_hand(frame, y + 2, x + 2, width)
            rows.append(token + positions[place] + weight * fixed)
    for number, (kt, ky, kx, st, sy, sx, ot, oy, ox) in enumerate(TUBES):
        own = params["clip"][f"tube_{number}"]
        for t in range(ot, 5 - kt + 1, st):
            for y in range(oy, 8 - ky + 1, sy):
                for x in range(ox, 8 - kx + 1, sx):
                    pixels = clips[:, t : t + kt, y : y + ky, x : x + kx]
                    token = np.einsum("btyxc,tyxcd->bd", pixels, own["kernel"]) + own["bias"]
                    fixed = fixed_by_hand(t + kt // 2, y + ky // 2, x + kx // 2, width)
                    rows.append(token + fixed)
    assert len(rows) == CONFIG.num_tokens == 12 + 12 + 2
    np.testing.assert_allclose(found, np.stack(rows, 1), atol=2e-5)


def test_switches(clips):
    """Without a gate its embedding counts fully; without the fixed one tubes learn theirs."""
    params = scrambled(CONFIG)
    plain = dataclasses.replace(CONFIG, clip=dataclasses.replace(CLIP, gate=False))
    own = {name: x for name, x in params["clip"].items() if name != "gate"}
    without = embedded(plain, params | {"clip": own}, clips)
    gated = embedded(CONFIG, params, clips)
    tanh = np.tanh(params["clip"]["gate"])
    places = centres((3, 2, 2), (1, 4, 4, 2, 4, 4, 0, 0, 0))
    fixed = fixed_embedding(places, CONFIG.hidden_dim)
    np.testing.assert_allclose(
        without[:, :12] - gated[:, :12],
        np.broadcast_to((1 - tanh) * fixed, (2, *fixed.shape)),
        atol=1e-5,
    )
    np.testing.assert_array_equal(without[:, 12:], gated[:, 12:])

    learned = dataclasses.replace(CONFIG, clip=dataclasses.replace(CLIP, fixed=False))
    shapes = {"/".join(path): x.shape for path, x in flatten(scrambled(learned)["clip"]).items()}
    assert shapes["position_0"] == (12, 14) and shapes["position_1"] == (2, 14)
    assert "gate" not in shapes

    frames = dataclasses.replace(CONFIG, clip=dataclasses.replace(CLIP, tubes=()))
    assert frames.num_tokens == 12
    own = {"clip": {"gate": params["clip"]["gate"]}}
    np.testing.assert_array_equal(embedded(frames, params | own, clips), gated[:, :12])
    assert vit_forward_flops(frames) < vit_forward_flops(CONFIG)


def test_a_picture_is_a_clip_without_further_tokens(clips):
    """The gate is closed at first, so patches are those of the encoder of pictures."""
    params = nn.unbox(vit.init_params(CONFIG, jax.random.key(0)))
    assert params["clip"]["gate"] == 0.0
    of_clips = embedded(CONFIG, params, clips)
    picture = dataclasses.replace(CONFIG, clip=ClipConfig())
    del params["clip"]
    of_frame = embedded(picture, params, clips[:, 2])
    np.testing.assert_allclose(of_clips[:, 4:8], of_frame, atol=1e-5)


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        ({"frames": 3}, r"\(4, 4, 3, .*does not fit into \(3, 8, 8\)"),
        ({"tubes": ((1, 2, 3),)}, r"\(1, 2, 3\) should be nine numbers"),
        ({"tubes": ((1, 1, 1, 0, 1, 1, 0, 0, 0),)}, "kernel and stride above 0"),
        ({"every": 0}, "clip.every 0 should be positive"),
    ],
)
def test_sizes_that_do_not_fit(clip, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, clip=dataclasses.replace(CLIP, **clip))


def test_pictures_are_refused(clips):
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 3\), the model is for \(5, 8"):
        jax.eval_shape(lambda x: ViT(CONFIG).init(jax.random.key(0), x), clips[:, 0])
    with pytest.raises(ValueError, match="windows are of one grid"):
        dataclasses.replace(CONFIG, window=2)
