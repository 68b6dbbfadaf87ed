"""Scores without pictures: by hand, on texts that tell all or nothing, and on the small world."""

from types import SimpleNamespace

import numpy as np
import pytest

from twelve_in_one.data import text_baselines
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.data.text_baselines import Table, blind_scores
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}


def _table(texts, scores, possible=None):
    scores = np.array(scores, np.float32)
    mask = np.ones(scores.shape, bool) if possible is None else np.array(possible, bool)
    return Table(tuple(texts), scores, mask)


def test_by_hand():
    """Label 2 is never given in training; label 1 has the largest sum of scores there."""
    train = _table(
        ["a b"] * 2 + ["c d"] * 3,
        [[1, 0, 0, 0], [0.6, 0.3, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0.3], [0, 0.9, 0, 0]],
    )
    test = _table(
        ["a b", "c d", "c d", "a b"],
        [[1, 0, 0, 0], [0.3, 0.6, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
    )
    row = blind_scores(TASKS["vqa"], train, test)
    assert (row.task, row.examples) == ("vqa", 4)
    # A guess among the three labels that occur.
    assert row.chance == pytest.approx((1 / 3 + 0.9 / 3 + 0 + 0) / 4)
    assert row.majority == pytest.approx((0 + 0.6 + 0 + 0) / 4)
    assert row.words == pytest.approx((1 + 0.6 + 0 + 0) / 4)


def test_verdicts_by_hand():
    train = _table(["x y"] * 6, np.eye(3)[[0, 0, 0, 1, 1, 2]])
    test = _table(["x y"] * 4, [*np.eye(3)[[0, 1, 2]], [0, 0, 0]])
    row = blind_scores(TASKS["snli_ve"], train, test)
    assert row.chance == pytest.approx(3 / 12)
    assert row.majority == row.words == pytest.approx(1 / 4)


def test_choices_by_hand():
    """Only what is possible is guessed: two, four and one candidates."""
    possible = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    scores = [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    train = _table(["x y"] * 4, np.eye(4)[[3, 3, 3, 1]])
    row = blind_scores(TASKS["visual7w"], train, _table(["x y"] * 3, scores, possible))
    assert row.chance == pytest.approx((1 / 2 + 1 / 4 + 1) / 3)
    assert row.majority == pytest.approx(1 / 3)
    # Position 3 is likelier than 1 where it is possible, 1 than the others.
    assert row.words == pytest.approx(1)


@pytest.mark.parametrize("name", ["gqa", "nlvr2", "refcoco", "visual7w"])
def test_texts_that_tell_all(name):
    rng = np.random.default_rng(0)
    noise = ["on", "the", "left", "of", "a", "thing"]

    def make(count):
        labels = rng.integers(0, 2, count)
        texts = [f"{' '.join(rng.permutation(noise)[:3])} {['red', 'blue'][i]}" for i in labels]
        return _table(texts, np.eye(2)[labels])

    row = blind_scores(TASKS[name], make(200), make(200))
    assert row.words == 1
    assert row.chance == 0.5 and 0.35 < row.majority < 0.65


def test_texts_that_tell_nothing():
    rng = np.random.default_rng(1)

    def make(count):
        texts = [f"word{rng.integers(3)} word{rng.integers(3)}" for _ in range(count)]
        return _table(texts, np.eye(2)[rng.integers(0, 2, count)])

    assert abs(blind_scores(TASKS["nlvr2"], make(2000), make(2000)).words - 0.5) < 0.05


def _options(*examples):
    texts = [text for options in examples for text in options]
    return _table(texts, np.tile(np.eye(2)[[1, 0, 0, 0]], (len(examples), 1)))


def test_equal_options_share_the_point():
    """A wrong image leaves the caption as it is: who does not see cannot do better than 1/2."""
    train = _options(*[("a true one", "a false one", "a true one", "a false one")] * 20)
    row = blind_scores(TASKS["coco"], train, train)
    assert (row.examples, row.chance, row.majority, row.words) == (20, 0.25, 0.25, 0.5)
    test = _options(
        ("a true one", "a false one", "a false one", "a false one"),
        ("a true one",) * 4,
        ("a true one", "a true one", "a true one", "a false one"),
        ("a false one", "a true one", "a false one", "a false one"),
    )
    row = blind_scores(TASKS["coco"], train, test)
    assert row.words == pytest.approx((1 + 1 / 4 + 1 / 3 + 0) / 4)


def test_nothing_to_learn_from():
    """No answer in the vocabulary, one label only, and words that all occur once."""
    test = _table(["a b", "c d"], [[0, 1, 0], [1, 0, 0]])
    row = blind_scores(TASKS["vqa"], _table(["a b"] * 3, np.zeros((3, 3))), test)
    assert (row.chance, row.examples) == (0, 2) and 0 <= row.words <= 1
    row = blind_scores(TASKS["vqa"], _table(["a b"] * 3, np.eye(3)[[1, 1, 1]]), test)
    assert (row.chance, row.majority, row.words) == (0.5, 0.5, 0.5)
    row = blind_scores(TASKS["vqa"], _table(["a b", "c d"], np.eye(3)[[1, 0]]), test)
    assert row.words == 1


@pytest.fixture(scope="module")
def folder(small_world):
    return open_folder(small_world.data, "pixels")


@pytest.mark.parametrize("name", ["gqa", "coco", "refcoco", "guesswhat", "nlvr2"])
def test_tables(folder, name):
    """As many rows as examples (or options), texts as people wrote them, in small letters."""
    task = TASKS[name]
    stream = open_stream(folder, task, "val", batch_size=7, training=False)
    table = text_baselines.tabulate(stream, 10_000)
    batches = [stream.batch(i) for i in range(stream.selection.num_batches)]
    count = sum(int(batch["_mask"].sum()) for batch in batches)
    assert len(table.texts) == count * (task.rows_per_example if task.kind == "match" else 1)
    assert len(table.scores) == len(table.possible) == len(table.texts)
    assert not any("[" in text for text in table.texts) and all(table.texts)
    assert not table.scores[~table.possible].any()
    if task.kind == "choice":
        assert (table.scores.sum(axis=1) == 1).all()
    few = text_baselines.tabulate(stream, 8)
    assert table.texts[: len(few.texts)] == few.texts
    assert len(few.scores) == min(14, count) * len(table.scores) // count


def test_half_an_overlap_is_not_enough():
    """As in the score of a model; a region that may not be chosen counts nowhere."""
    task = TASKS["refcoco"]
    batch = {
        "_mask": np.array([True]), "tokens": np.zeros((1, task.max_tokens), np.int32),
        "targets": np.array([[0.5, 0.51, 0.0]], np.float32),
        "region_mask": np.array([[True, True, False]]),
    }  # fmt: skip
    encoding = SimpleNamespace(
        tokenizer=SimpleNamespace(decode=lambda tokens: "a"), candidates="detected"
    )
    selection = SimpleNamespace(num_batches=1, batch_size=1)
    stream = SimpleNamespace(
        task=task, encoding=encoding, selection=selection, batch=lambda number: batch
    )
    table = text_baselines.tabulate(stream, 1)
    np.testing.assert_array_equal(table.scores, [[0, 1, 0]])


def test_words_are_fitted_on_the_training_split(folder):
    task = TASKS["snli_ve"]
    size = text_baselines._BATCH
    tables = {
        split: text_baselines.tabulate(
            open_stream(folder, task, split, batch_size=size, training=split == "train"), 200
        )
        for split in ("train", "val")
    }
    found = text_baselines.score_task(folder, task, "val", max_examples=200)
    assert found == blind_scores(task, tables["train"], tables["val"])
    assert found != blind_scores(task, tables["val"], tables["val"])


def test_command(small_world, census, capsys):
    assert text_baselines.main(["--data_dir", str(small_world.data)]) == 0
    captured = capsys.readouterr()
    header, *lines = captured.out.splitlines()
    assert header.split() == ["task", "examples", "chance", "majority", "words"]
    rows = {}
    for line in lines:
        name, examples, *scores = line.split()
        rows[name] = int(examples), *map(float, scores)
    assert list(rows) == list(TASKS)
    for name, (examples, chance, majority, words) in rows.items():
        assert examples == len(census.examples[name]["val"]) or name == "vgqa"
        assert 0 <= chance <= 1 and 0 <= majority <= 1 and 0 <= words <= 1
        if TASKS[name].kind == "match":
            assert (chance, majority) == (0.25, 0.25) and words <= 0.5
        if name == "nlvr2":
            assert chance == 0.5
        if name == "visual7w":
            assert chance == pytest.approx(0.25, abs=1e-3)
        assert f"{name}: " in captured.err


def test_command_without_data(tmp_path, small_world, capsys):
    assert text_baselines.main(["--data_dir", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
    assert text_baselines.main(["--data_dir", str(small_world.data), "--features", "x"]) == 1
    assert "error: " in capsys.readouterr().err
