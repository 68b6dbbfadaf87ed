"""Scenes keep the batch contract, repeat with their seed, and can be solved by their own rule."""

import numpy as np
import pytest

from twelve_in_one.data import scenes
from twelve_in_one.models.config import named_size
from twelve_in_one.tasks.base import trunk_inputs
from twelve_in_one.tasks.twelve import TWELVE

B, T, R, F, L = 7, 5, 6, 32, 15
EVERY_TASK = pytest.mark.parametrize("task", TWELVE, ids=lambda task: task.name)
COLOUR_WORDS, SHAPE_WORDS = range(3, 9), range(9, 15)


def draw(task, *seed, size=B, num_labels=L):
    return scenes.draw_batch(task, seed, size, dim=F, num_labels=num_labels)


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


def objects(batch):
    """Features of all objects, noise included: no two draws are alike."""
    return {feature.tobytes() for feature in batch["regions"][batch["region_mask"]]}


@EVERY_TASK
def test_contract(task):
    """Keys, shapes and dtypes are those that `tasks/base.py` lists."""
    k = (task.rows_per_example,) if task.rows_per_example > 1 else ()
    labels = {"vqa": L, "gqa": L, "image_pair": 2, "three_way": 3}
    expected = dict(
        tokens=((B, *k, T), np.int32),
        token_mask=((B, *k, T), bool),
        regions=((B, *k, R, F), np.float32),
        boxes=((B, *k, R, 5), np.float32),
        region_mask=((B, *k, R), bool),
        task_id=((), np.int32),
        _mask=((B,), bool),
    )
    if task.kind == "match":
        expected["targets"] = ((B,), np.int32)
    elif task.kind == "region":
        expected["targets"] = ((B, R), np.float32)
    elif task.kind == "choice":
        slots = {"visual7w": 4, "guesswhat": 5}[task.name]
        expected["targets"] = ((B, slots), np.float32)
        expected["choices"] = ((B, slots), np.int32)
        expected["choice_mask"] = ((B, slots), bool)
    else:
        expected["targets"] = ((B, labels[task.head]), np.float32)
    batch = draw(task, 0)
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == expected
    assert batch["task_id"] == task.task_id
    assert batch["_mask"].all()  # scenes never run out, so no batch is filled up
    assert task.max_tokens >= T and task.max_regions >= R
    assert trunk_inputs(task, batch)["regions"].shape == (B * task.rows_per_example, R, F)


@EVERY_TASK
def test_text_and_regions_are_well_formed(task):
    batch = draw(task, 3, size=200)
    rows = trunk_inputs(task, batch)
    tokens, token_mask = rows["tokens"], rows["token_mask"]
    assert tokens.min() >= 0
    assert tokens.max() < scenes.VOCAB_SIZE <= named_size("tiny").vocab_size
    lengths = token_mask.sum(axis=1)
    np.testing.assert_array_equal(token_mask, np.arange(T) < lengths[:, None])  # right-padded
    np.testing.assert_array_equal(tokens == 0, ~token_mask)
    assert (tokens[:, 0] == scenes.CLS).all()
    assert (tokens[np.arange(len(tokens)), lengths - 1] == scenes.SEP).all()

    regions, boxes, mask = rows["regions"], rows["boxes"], rows["region_mask"]
    counts = mask[:, 1:].sum(axis=1)
    assert set(counts) == {3, 4, 5}
    np.testing.assert_array_equal(mask, np.arange(R) <= counts[:, None])
    assert not regions[~mask].any() and not boxes[~mask].any()
    mean = regions[:, 1:].sum(axis=1) / counts[:, None]
    np.testing.assert_allclose(regions[:, 0], mean, atol=1e-5)
    np.testing.assert_array_equal(boxes[:, 0], np.broadcast_to([0, 0, 1, 1, 1], (len(boxes), 5)))
    x1, y1, x2, y2, area = boxes[mask].T
    assert (boxes >= 0).all() and (boxes <= 1).all()
    assert (x2 > x1).all() and (y2 > y1).all()
    np.testing.assert_allclose(area, (x2 - x1) * (y2 - y1), atol=1e-6)


@EVERY_TASK
def test_targets_name_one_real_thing_and_are_spread_out(task):
    batch = draw(task, 5, size=600)
    targets = batch["targets"]
    if task.kind == "match":
        best = targets
    else:
        assert set(np.unique(targets)) == {0, 1}
        np.testing.assert_array_equal(targets.sum(axis=1), 1)
        best = targets.argmax(axis=1)
    if task.kind == "region":
        assert batch["region_mask"][targets == 1].all()
    if task.kind == "choice":
        choices, mask = batch["choices"], batch["choice_mask"]
        assert mask[targets == 1].all()
        real = np.take_along_axis(batch["region_mask"], choices, axis=1)
        np.testing.assert_array_equal(real, mask)
        assert choices.min() >= 1  # the whole image is no choice
        assert (np.diff(np.sort(choices, axis=1), axis=1) > 0).all()  # no region twice
    # What each kind can answer, and how often a constant guess would be right at most.
    answers = dict(vqa=range(6), vgqa=range(6, 12), gqa=range(2), nlvr2=range(2), snli_ve=range(3))
    by_kind = dict(match=range(4), region=range(1, 6), choice=range(targets.shape[-1]))
    possible = answers.get(task.name) or by_kind[task.kind]
    assert set(best) == set(possible)
    shares = np.bincount(best) / len(best)
    assert shares.max() < {2: 0.58, 3: 0.42}.get(len(possible), 0.35)


@EVERY_TASK
def test_a_batch_is_a_function_of_its_seed(task):
    batch = draw(task, 0, 0, 1)
    assert same(batch, draw(task, 0, 0, 1))
    ours = objects(batch)
    for other in [(1, 0, 1), (0, 1, 1), (0, 0, 2)]:  # split, run, number of the batch
        assert not ours & objects(draw(task, *other)), other


def test_tasks_of_one_seed_see_scenes_of_their_own():
    seen = [objects(draw(task, 0)) for task in TWELVE]
    assert len(set.union(*seen)) == sum(map(len, seen))


@pytest.mark.parametrize("name", ["vqa", "gqa"])
def test_too_few_labels(name):
    (task,) = [task for task in TWELVE if task.name == name]
    with pytest.raises(ValueError, match=f"{name}: scenes need 12 labels, got 11"):
        draw(task, 0, num_labels=11)
    assert draw(task, 0, num_labels=12)["targets"].shape == (B, 12)


# ------------------------------------------------------- the rule, solved from the raw arrays alone


@pytest.fixture(scope="module")
def look():
    """Reads regions: `look(regions, mask)` gives colours and shapes, -1 where there is no object.

    The codes are learnt: a RefCOCO batch names colour and shape of the region it points at, and
    the feature is linear in both.
    """
    (refcoco,) = [task for task in TWELVE if task.name == "refcoco"]
    batch = draw(refcoco, 0, size=3000)
    colour, shape = batch["tokens"][:, 2] - 3, batch["tokens"][:, 3] - 9
    named = np.concatenate([np.eye(6)[colour], np.eye(6)[shape]], axis=1)
    codes = np.linalg.lstsq(named, batch["regions"][batch["targets"] == 1])[0]
    sums = (codes[:6, None] + codes[None, 6:]).reshape(36, F)

    def function(regions, mask):
        distance = np.square(regions[..., None, :] - sums).sum(axis=-1)
        nearest = distance.argmin(axis=-1)
        real = mask & (np.arange(R) > 0)
        return np.where(real, nearest // 6, -1), np.where(real, nearest % 6, -1)

    return function


def word(tokens, words):
    """The one word of a range in each text, counted from its first; -1 where there is none."""
    inside = np.isin(tokens, words)
    assert (inside.sum(axis=-1) <= 1).all()
    return np.where(inside, tokens - words[0], 0).sum(axis=-1) - ~inside.any(axis=-1)


@EVERY_TASK
def test_the_rule_solves_every_example(task, look):
    batch = draw(task, 1, 0, 7, size=400)
    colours, shapes = look(batch["regions"], batch["region_mask"])
    colour = word(batch["tokens"], COLOUR_WORDS)
    shape = word(batch["tokens"], SHAPE_WORDS)
    named = shapes == shape[..., None]  # the regions that the text speaks of
    assert (named.sum(axis=-1) <= 1).all()
    there = named.any(axis=-1)
    seen = np.where(named, colours, 0).sum(axis=-1)  # colour of the named shape

    best = batch["targets"] if task.kind == "match" else batch["targets"].argmax(axis=1)
    if task.name == "snli_ve":
        ours = np.where(~there, 1, np.where(seen == colour, 2, 0))
    else:
        assert there.all()
        rules = dict(
            vqa=lambda: seen,
            vgqa=lambda: 6 + seen,
            gqa=lambda: seen == colour,
            nlvr2=lambda: seen[:, 0] == seen[:, 1],
            match=lambda: (seen == colour).argmax(axis=1),
            region=lambda: named.argmax(axis=1),
            choice=lambda: (batch["choices"] == named.argmax(axis=1)[:, None]).argmax(axis=1),
        )
        ours = rules.get(task.name, rules.get(task.kind))()
    np.testing.assert_array_equal(ours, best)
    if task.kind == "match":
        assert ((seen == colour).sum(axis=1) == 1).all()
    if task.name == "refcoco":
        np.testing.assert_array_equal(seen, colour)
