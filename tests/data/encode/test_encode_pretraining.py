"""Pretraining batches: what is hidden, what is asked, and whose caption it is."""

import dataclasses

import numpy as np
import pytest
from reference import masking as literal
from reference.memory_split import TOKENIZER, memory_split, text_of

from twelve_in_one.data.encode.pretraining import PretrainingStream
from twelve_in_one.data.pipeline import Selection
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.twelve import CONCEPTUAL_CAPTIONS

COUNTS = [1] * 30 + [2] * 10  # 50 captions
F, C, T, R = 6, 5, 6, 6
TASK = dataclasses.replace(CONCEPTUAL_CAPTIONS, max_tokens=T, max_regions=R)
SCALARS = ("task_id", "region_weight", "alignment_weight")


def _stream(*, num_classes=C, records=None, batch_size=20, training=True, seed=(4, 0), **settings):
    selection = {
        key: settings.pop(key) for key in ("host", "num_hosts", "order_options") if key in settings
    }
    reader = memory_split(COUNTS, feature_dim=F, num_classes=num_classes or None, most_regions=9)
    chosen = Selection(
        reader,
        np.arange(len(COUNTS)) if records is None else np.array(records),
        batch_size,
        training,
        seed,
        **selection,
    )
    return PretrainingStream(
        chosen,
        **{"task": TASK, "tokenizer": TOKENIZER, "feature_dim": F, "num_classes": num_classes}
        | settings,
    )


def _rows(stream, num_batches):
    """(row of a batch as a dict, its record, example number) of all real rows."""
    owner = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for number in range(num_batches):
        batch = stream.batch(number)
        for i in np.flatnonzero(batch["_mask"]):
            example = int(batch["example_id"][i].removeprefix("example-"))
            record = stream.selection.reader.record(int(owner[example]))
            row = {key: value[i] for key, value in batch.items() if key not in SCALARS}
            yield row, record, example


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_shapes_and_dtypes(target, dtype):
    batch = _stream(visual_target=target, num_negatives=10, feature_dtype=dtype).batch(0)
    wanted = {
        0: {"region_classes": C},
        1: {"region_features": F},
        2: {"region_features": F, "across_draws": 7, "within_draws": 3},
    }
    expected = {
        "tokens": ((20, T), np.int32),
        "token_mask": ((20, T), bool),
        "token_labels": ((20, T), np.int32),
        "regions": ((20, R, F), dtype),
        **{key: ((20, R, size), np.float32) for key, size in wanted[target].items()},
        "region_labels": ((20, R), np.int32),
        "boxes": ((20, R, 5), np.float32),
        "region_mask": ((20, R), bool),
        "is_misaligned": ((20,), np.int32),
        "region_weight": ((), np.float32),
        "alignment_weight": ((), np.float32),
        "task_id": ((), np.int32),
        "_mask": ((20,), bool),
        "example_id": ((20,), object),
    }
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
        key: (shape, np.dtype(dtype)) for key, (shape, dtype) in expected.items()
    }


def test_defaults_are_the_released_sizes():
    fields = {field.name: field.default for field in dataclasses.fields(PretrainingStream)}
    found = [fields[name] for name in ("objective", "overlap_iou", "num_negatives")]
    assert found == [1, 0.4, 128]
    task = CONCEPTUAL_CAPTIONS
    assert (task.max_tokens, task.max_regions, task.batch_size) == (36, 37, 512)
    batch = _stream(visual_target=2).batch(0)
    assert (batch["across_draws"].shape[2], batch["within_draws"].shape[2]) == (89, 38)


def test_weights_are_those_of_the_objective():
    for objective in (0, 1, 2):
        batch = _stream(objective=objective, region_weight=0.5).batch(0)
        assert (batch["region_weight"], batch["alignment_weight"]) == (0.5, objective != 2)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize(("official", "overlap"), [(True, 0.4), (False, 0.4), (False, 1.0)])
@pytest.mark.parametrize("objective", [0, 1, 2])
def test_rows_follow_the_draws(objective, official, overlap, target):
    """Each row is what the literal rules make of the uniform numbers of its generator."""
    stream = _stream(
        objective=objective,
        official_overlap=official,
        overlap_iou=overlap,
        visual_target=target,
        num_negatives=10,
        batch_size=10,
    )
    selection = stream.selection
    special = {TOKENIZER.pad_id, TOKENIZER.cls_id, TOKENIZER.sep_id}
    seen = 0
    for position, (row, record, example) in enumerate(_rows(stream, 10)):
        rng = selection.rng(position // 50, example)
        swap, other = rng.random(2)
        swapped = objective != 2 and swap < 0.5
        caption = int(other * 50) if swapped else example
        assert row["is_misaligned"] == swapped

        ids, mask = TOKENIZER.encode(text_of(caption), T)
        draws = rng.random((T, 3))
        tokens, labels = literal.mask_tokens(
            ids, mask, draws, TOKENIZER.vocab_size, TOKENIZER.mask_id, special, 0.15
        )
        no_labels = swapped and objective == 1
        assert row["tokens"].tolist() == tokens
        assert row["token_mask"].tolist() == mask.tolist()
        assert row["token_labels"].tolist() == ([-1] * T if no_labels else labels)

        image = record.images[0]
        kept = min(len(image.features), R - 1)
        features = image.features[:kept].astype(np.float32)
        hidden, labels, mean = literal.mask_regions(
            features,
            image.boxes[1 : 1 + kept],
            rng.random((kept, 2)),
            0.15,
            0.9,
            overlap,
            official,
            R - 1,
        )
        padding = R - 1 - kept
        labels = [-1] * kept if no_labels else labels.tolist()
        assert row["region_labels"].tolist() == [-1, *labels, *[-1] * padding]
        assert row["region_mask"].tolist() == [True] * (1 + kept) + [False] * padding
        np.testing.assert_allclose(row["regions"][0], mean, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(row["regions"][1 : 1 + kept], hidden)
        wanted = {"region_classes": image.class_probs[:kept]}
        if target:
            wanted = {"region_features": features}
        if target == 2 and kept:
            wanted["across_draws"] = rng.random((kept, 7), np.float32)
            wanted["within_draws"] = rng.random((kept, 3), np.float32)
        for key, values in wanted.items():
            np.testing.assert_array_equal(row[key][1 : 1 + kept], values)
            assert not row[key][0].any()
        np.testing.assert_array_equal(row["boxes"][: 1 + kept], image.locations[: 1 + kept])
        for key in ("regions", "boxes", *wanted):
            assert not row[key][1 + kept :].any()
        seen += 1
    assert seen == 100


def test_labels_only_where_something_is_asked():
    labelled = hidden = 0
    for row, _, _ in _rows(_stream(objective=0, visual_target=1), 20):
        tokens = row["token_labels"] != -1
        assert not tokens[~row["token_mask"]].any()
        unasked = ~tokens & row["token_mask"]
        text = np.where(tokens, row["token_labels"], row["tokens"])
        assert (row["token_labels"][~tokens] == -1).all()
        assert set(row["token_labels"][tokens]) <= set(range(5, TOKENIZER.vocab_size))
        assert TOKENIZER.mask_id not in row["tokens"][unasked]
        assert text[0] == TOKENIZER.cls_id

        regions = row["region_labels"] == 1
        assert set(row["region_labels"]) <= {-1, 1}
        assert not regions[~row["region_mask"]].any()
        assert not regions[0]
        zero = ~row["regions"].any(axis=1)
        same = (row["regions"] == row["region_features"]).all(axis=1)
        assert (zero | same)[1:].all()
        labelled += regions.sum()
        hidden += (zero & regions).sum()
    # 90 % of the selected regions are hidden, and those beside another selected one.
    assert 0.85 < hidden / labelled < 1


@pytest.mark.parametrize("objective", [0, 1, 2])
def test_swapped_pairs(objective):
    rows = list(_rows(_stream(objective=objective, batch_size=50), 20))
    swapped = np.array([row["is_misaligned"] for row, _, _ in rows])
    if objective == 2:
        assert not swapped.any()
    else:
        assert abs(swapped.mean() - 0.5) < 0.05  # 1,000 pairs, three standard deviations
    asked = np.array([(row["token_labels"] != -1).any() for row, _, _ in rows])
    regions = np.array([(row["region_labels"] != -1).any() for row, _, _ in rows])
    for labels in (asked, regions):
        assert labels[swapped == 0].any()
        assert labels[swapped == 1].any() == (objective == 0)
    # What the labels belonged to stays hidden.
    for row, _, _ in rows:
        if row["is_misaligned"] and TOKENIZER.mask_id in row["tokens"]:
            break
    else:
        assert objective == 2


def test_swapped_captions_are_of_the_images_that_take_part():
    records = [3, 7, 12, 31, 35, 36, 38]
    owner = np.repeat(np.arange(len(COUNTS)), COUNTS)
    stream = _stream(records=records, batch_size=11)
    captions = {
        tuple(TOKENIZER.encode(text_of(i), T)[0]): i for i in range(50) if owner[i] in records
    }
    others = set()
    for row, _, example in _rows(stream, 30):
        tokens = np.where(row["token_labels"] == -1, row["tokens"], row["token_labels"])
        if TOKENIZER.mask_id in tokens or tuple(tokens) not in captions:
            assert row["is_misaligned"]  # labels are gone, so the text cannot be restored
            continue
        shown = captions[tuple(tokens)]
        assert row["is_misaligned"] or shown == example
        others |= {shown} - {example}
    assert len(others) > 5


def _assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_array_equal(got[key], wanted[key], err_msg=key, strict=True)


def test_masks_change_from_epoch_to_epoch():
    rows = [row for row, _, _ in _rows(_stream(batch_size=50, objective=2), 2)]
    first, second = (
        {row["example_id"]: row["tokens"].tobytes() for row in epoch}
        for epoch in (rows[:50], rows[50:])
    )
    assert first.keys() == second.keys()
    assert sum(first[key] != second[key] for key in first) > 10


def test_evaluation_covers_all_once():
    stream = _stream(training=False)
    seen = [example for _, _, example in _rows(stream, stream.selection.num_batches)]
    assert seen == list(range(50))
    last = stream.batch(2)
    assert last["_mask"].tolist() == [True] * 10 + [False] * 10
    for key in ("token_mask", "regions", "region_mask", "boxes", "is_misaligned", "region_classes"):
        assert not last[key][10:].any()
    assert (last["token_labels"][10:] == -1).all()
    assert (last["region_labels"][10:] == -1).all()
    with pytest.raises(IndexError, match="batch 3 of 3"):
        stream.batch(3)


def test_features_are_predicted_where_there_are_no_classes():
    batch = _stream(visual_target=1, num_classes=0).batch(0)
    asked = batch["region_labels"] == 1
    assert asked.any() and batch["region_features"][asked].any(axis=1).all()
    assert "region_classes" not in batch


def test_images_without_regions():
    """Storage gives an image of no regions back without a feature size."""
    stream = _stream(training=False)
    reader = stream.selection.reader
    empty = next(
        i for i in range(30) if not len(reader.record(i).images[0].features)
    )  # one caption each
    image = reader.record(empty).images[0]
    zero = np.zeros((0, 0), np.float16)
    image = dataclasses.replace(
        image, mean_feature=np.zeros((1, 0), np.float32), features=zero, class_probs=zero
    )
    record = dataclasses.replace(reader.record(empty), images=(image,))

    def read(position):
        return record if position == empty else reader.record(position)

    changed = dataclasses.replace(
        stream,
        selection=dataclasses.replace(
            stream.selection, reader=dataclasses.replace(reader, record=read)
        ),
    )
    number = empty // 20
    _assert_same(changed.batch(number), stream.batch(number))
    row = changed.batch(number)["region_mask"][empty % 20]
    assert row.tolist() == [True] + [False] * (R - 1)


@pytest.mark.parametrize(
    ("feature_dim", "stored_classes", "message"),
    [
        (F + 2, C, "region features have size 6, the model takes 8"),
        (F, C + 2, "regions come with 7 classes, the model predicts 5: set model.num_region"),
        (F, 0, "regions come with 0 classes, .* or let it predict features"),
    ],
)
def test_errors_name_the_example(feature_dim, stored_classes, message):
    stream = _stream(num_classes=stored_classes, feature_dim=feature_dim)
    stream = dataclasses.replace(stream, num_classes=C)
    with pytest.raises(DataError, match=rf"memory/train: example example-\d+: {message}"):
        stream.batch(0)


def test_unknown_objective():
    with pytest.raises(ValueError, match="objective must be 0, 1 or 2"):
        _stream(objective=3).batch(0)
