import dataclasses
import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from twelve_in_one.world.render import render
from twelve_in_one.world.scene import (
    COLOURS,
    GROUNDS,
    HEIGHT,
    PATTERNS,
    RADIUS,
    SHAPES,
    SIZES,
    WIDTH,
    Scene,
    Thing,
)
from twelve_in_one.world.scenes import CURTAIN_WIDTH, sample_scene
from twelve_in_one.world.shapes import RING_HOLE, outline


def _rng(*key):
    return np.random.default_rng(key)


def _place(thing, **changes):
    return dataclasses.replace(thing, **changes)


_THING = Thing("circle", "red", "plain", "small", 80.0, 64.0, 10.0)


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(_rng(7, i)) for i in range(400)]


def test_scenes_keep_their_promises(scenes):
    for scene in scenes:
        assert 3 <= len(scene.things) <= 8
        looks = {(t.shape, t.colour, t.pattern, t.size) for t in scene.things}
        assert len(looks) == len(scene.things)
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            assert x2 - x1 == pytest.approx(2 * thing.radius)  # nothing was cut off
            assert y2 - y1 == pytest.approx(2 * thing.radius)
            assert 0.9 <= thing.radius / RADIUS[thing.size] <= 1.1
            assert scene.curtain != "left" or x1 > CURTAIN_WIDTH
            assert scene.curtain != "right" or x2 < WIDTH - CURTAIN_WIDTH
        for one, other in itertools.combinations(scene.things, 2):
            low = np.maximum(one.box[:2], other.box[:2])
            high = np.minimum(one.box[2:], other.box[2:])
            shared = np.prod(np.clip(high - low, 0, None))
            assert shared <= 0.2 * (2 * min(one.radius, other.radius)) ** 2 + 1e-6
            for a, b in ((one, other), (other, one)):
                x1, y1, x2, y2 = a.box
                assert not (x1 <= b.x <= x2 and y1 <= b.y <= y2)


def test_scenes_are_varied(scenes):
    things = [thing for scene in scenes for thing in scene.things]
    for values, names in (
        ([t.shape for t in things], SHAPES),
        ([t.colour for t in things], COLOURS),
        ([t.size for t in things], SIZES),
        ([s.ground for s in scenes], GROUNDS),
        ([len(s.things) for s in scenes], range(3, 9)),
    ):
        shares = [values.count(name) * len(names) / len(values) for name in names]
        assert min(shares) > 0.7, dict(zip(names, shares, strict=True))
    assert {t.pattern for t in things} == set(PATTERNS)
    assert np.mean([t.shaded for t in things]) == pytest.approx(0.15, abs=0.03)
    assert np.mean([s.curtain is not None for s in scenes]) == pytest.approx(0.3, abs=0.07)
    shared = [len({t.shape for t in s.things}) < len(s.things) for s in scenes]
    assert np.mean(shared) > 0.8


def test_same_randomness_same_scene_and_picture():
    assert sample_scene(_rng(1, 2)) == sample_scene(_rng(1, 2)) != sample_scene(_rng(1, 3))
    scene = sample_scene(_rng(1, 2))
    first, second = (render(scene, _rng(4)) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, render(scene, _rng(5)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.07])
def test_outlines_fill_the_box(shape, turn):
    thing = _place(_THING, shape=shape, turn=turn, radius=9.3, x=40.25)
    points = outline(thing)
    np.testing.assert_allclose((*points.min(0), *points.max(0)), thing.box, atol=1e-9)


def _silhouette(shape, turn):
    mask = Image.new("1", (200, 200))
    draw = ImageDraw.Draw(mask)
    thing = _place(_THING, shape=shape, turn=turn, x=100.0, y=100.0, radius=90.0)
    draw.polygon(outline(thing).ravel().tolist(), fill=1)
    if shape == "ring":
        draw.circle((100, 100), 90 * RING_HOLE, fill=0)
    return np.asarray(mask)


@pytest.mark.parametrize("turn", [-0.07, 0.04, 0.07])
def test_turned_shapes_are_most_like_themselves(turn):
    upright = {shape: _silhouette(shape, 0.0) for shape in SHAPES}
    for shape in SHAPES:
        turned = _silhouette(shape, turn)
        overlap = {s: (turned & u).sum() / (turned | u).sum() for s, u in upright.items()}
        own = overlap.pop(shape)
        assert own > max(overlap.values()) + 0.03, (shape, own, overlap)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_colours_can_be_told(ground, colour):
    names, palette = list(COLOURS), np.array(list(COLOURS.values()), float)
    right = 0
    for seed in range(5):
        picture = render(Scene(ground, (_place(_THING, colour=colour),)), _rng(seed)).astype(float)
        middle = np.median(picture[60:69, 76:85].reshape(-1, 3), axis=0)
        # Light changes all channels alike.
        hues = palette / np.linalg.norm(palette, axis=1, keepdims=True)
        nearest = np.linalg.norm(hues - middle / np.linalg.norm(middle), axis=1)
        nearest += 0.002 * np.linalg.norm(palette - middle, axis=1)
        right += names[int(np.argmin(nearest))] == colour
    assert right == 5


def test_patterns_can_be_told():
    deviation = {}
    for pattern in PATTERNS:
        thing = _place(_THING, shape="square", pattern=pattern)
        picture = render(Scene("sand", (thing,)), _rng(3)).astype(float)
        deviation[pattern] = picture[58:71, 74:87].std((0, 1)).mean()
    assert deviation["plain"] * 3 < min(deviation["striped"], deviation["dotted"])


def test_shade_hides_colour_and_pattern():
    hidden = _place(_THING, shaded=True)
    other = _place(hidden, colour="yellow", pattern="striped")
    first, second = (render(Scene("snow", (t,)), _rng(0)) for t in (hidden, other))
    np.testing.assert_array_equal(first, second)
    assert first[60:69, 76:85].max() < 80
    bright = render(Scene("snow", (_place(hidden, shaded=False),)), _rng(0))
    assert bright[60:69, 76:85].max() > 150


@pytest.mark.parametrize("side", ["left", "right"])
def test_curtain_covers_its_side_only(side):
    bare, hidden = (
        render(Scene("snow", (_THING,), curtain), _rng(2)).astype(int) for curtain in (None, side)
    )
    width = int(CURTAIN_WIDTH)
    darker = (bare - hidden).mean((0, 2))
    covered, beside = (darker[:width], darker[width + 20 :])
    if side == "right":
        covered, beside = darker[-width:], darker[: -width - 20]
    assert covered.min() > 30
    # The light is drawn after the curtain, and so differs a little.
    assert np.abs(beside).mean() < 25


def test_a_thing_shows_where_it_is():
    for seed, (dx, dy) in enumerate([(0, 0), (-40, 30), (50, -45)]):
        thing = _place(_THING, x=80.0 + dx, y=64.0 + dy, shaded=True)
        dark = render(Scene("sand", (thing,)), _rng(seed)).max(2) < 70
        ys, xs = np.nonzero(dark)
        x1, y1, x2, y2 = thing.box
        np.testing.assert_allclose((xs.min(), xs.max() + 1), (x1, x2), atol=1.5)
        np.testing.assert_allclose((ys.min(), ys.max() + 1), (y1, y2), atol=1.5)
        assert dark.sum() == pytest.approx(math.pi * thing.radius**2, rel=0.1)
