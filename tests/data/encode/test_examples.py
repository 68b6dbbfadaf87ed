"""Batches against a slow literal version of the released rules, and the records they come from."""

import dataclasses

import numpy as np
import pytest
from reference.memory_split import HEIGHT, TOKENIZER, WIDTH, regions_of

from twelve_in_one.data.encode.examples import Encoding, Example, encode_batch
from twelve_in_one.data.stored import schema
from twelve_in_one.data.stored.image_rows import ImageRows, load
from twelve_in_one.data.stored.records import Annotation, DataError
from twelve_in_one.tasks.twelve import TWELVE

F = 6
T, R, SLOTS, M = 7, 11, 5, 4
ANSWERS = {"yes": 0, "no": 1, "two": 4}
TASKS = {
    task.name: dataclasses.replace(
        task,
        max_tokens=T,
        max_regions=R,
        detected_slots=SLOTS,
        num_choices=M if task.kind == "choice" else 0,
    )
    for task in TWELVE
}
BY_KIND = {"answer": "vqa", "verdict": "snli_ve", "region": "refcoco", "choice": "visual7w"}


def _record(rng, *, regions=4, boxes=0, images=1, feature_dim=F, annotated_dim=None, **fields):
    """A stored record; `regions` of each image, or of each in turn if a tuple."""
    counts = regions if isinstance(regions, tuple) else (regions,) * images
    found = [regions_of(rng, count, feature_dim) for count in counts]
    annotated = regions_of(rng, boxes, feature_dim if annotated_dim is None else annotated_dim)
    values = {
        "record_id": "r",
        "image_ids": tuple(f"image-{i}" for i in range(len(counts))),
        "coco_ids": np.full(len(counts), -1),
        "sizes": np.full((len(counts), 2), (WIDTH, HEIGHT), np.int32),
        "num_regions": np.array(counts, np.int32),
        "boxes": np.concatenate([x.boxes for x in found]),
        "features": np.concatenate([x.features for x in found]),
        "class_probs": np.zeros((sum(counts), 0), np.float16),
        "box_ids": np.arange(boxes) * 3 + 10,
        "annotated_boxes": annotated.boxes,
        "annotated_features": annotated.features,
        "annotated_size": np.array((WIDTH, HEIGHT), np.int32),
        "annotations": (),
    }
    return schema.Record(**values | fields)


def _loaded(rng, **settings):
    return load(_record(rng, **settings), "dataset/train")


def _encoding(name, **settings):
    defaults = {"answers": ANSWERS, "num_labels": 5 if TASKS[name].kind == "answer" else 3}
    return Encoding(TASKS[name], TOKENIZER, F, **defaults | settings)


# A literal version, row by row and box by box.


def _iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def _row(feature, box):
    x1, y1, x2, y2 = map(float, box)
    area = (x2 - x1) * (y2 - y1) / (WIDTH * HEIGHT)
    location = [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT, area]
    return [float(x) for x in feature] or [0.0] * F, location, [x1, y1, x2, y2]


def _detected_rows(record, image):
    start = int(record.num_regions[:image].sum())
    features = record.features[start : start + record.num_regions[image]].astype(float)
    boxes = record.boxes[start : start + record.num_regions[image]]
    mean = features.sum(axis=0) / max(len(features), 1)
    rows = [_row(mean, (0, 0, WIDTH, HEIGHT))]
    return rows + [_row(*pair) for pair in zip(features, boxes, strict=True)]


def _padded(rows, length):
    return (rows + [None] * length)[:length]


def _literal_rows(encoding, record):
    """The rows of one image: (feature, location, pixel box), None for padding."""
    detected = _detected_rows(record, 0)
    annotated = [
        _row(*pair) for pair in zip(record.annotated_features, record.annotated_boxes, strict=True)
    ]
    kind = encoding.task.kind
    if kind == "choice":
        return _padded(_padded(detected, SLOTS) + annotated, R)
    if kind == "region" and encoding.candidates == "annotated":
        return _padded(detected[:1] + annotated, R)
    if kind == "region" and encoding.training and record.annotated_features.shape[1]:
        return _padded(detected + annotated, R)
    return _padded(detected, R)


def _assert_rows(batch, index, rows):
    """Regions, locations and mask of one row of trunk inputs."""
    feature = [[0.0] * F if row is None else row[0] for row in rows]
    location = [[0.0] * 5 if row is None else row[1] for row in rows]
    np.testing.assert_allclose(batch["regions"][index], feature, rtol=0, atol=1e-6)
    np.testing.assert_allclose(batch["boxes"][index], location, rtol=0, atol=1e-6)
    assert batch["region_mask"][index].tolist() == [row is not None for row in rows]


def _assert_text(batch, index, text):
    ids = [TOKENIZER.vocabulary.index(token) for token in text.split()]
    ids = [TOKENIZER.cls_id, *ids[: T - 2], TOKENIZER.sep_id]
    assert batch["tokens"][index].tolist() == ids + [TOKENIZER.pad_id] * (T - len(ids))
    assert batch["token_mask"][index].tolist() == [i < len(ids) for i in range(T)]


TEXTS = ["word3", "", "word1 word2 word3 word4 word5", "word9 word8 word7 word6 word5 word4"]


def _random_examples(kind, seed, **settings):
    rng = np.random.default_rng(seed)
    for i, text in enumerate(TEXTS):
        most = R - SLOTS if kind == "choice" else R
        boxes = int(rng.integers(2, most + 1)) if kind in ("region", "choice") else 0
        record = _record(rng, regions=int(rng.integers(0, R + 4)), boxes=boxes, **settings)
        if boxes and i == 1:
            record.annotated_boxes[0, :2] = 0  # where the zeros of padding would be, too
        meant = record.annotated_boxes[0] if boxes else np.zeros(4)
        chosen = np.sort(rng.permutation(record.box_ids)[:M])
        labels = list(rng.permutation(["yes", "no", "two", "unheard of"])[: 1 + i])
        yield (
            record,
            Annotation(
                f"example-{i}",
                "r",
                text,
                tuple(labels),
                tuple(rng.choice([0.3, 0.6, 0.9, 1.0], len(labels))),
                int(rng.integers(-1, 3)),
                tuple(map(float, meant)) if boxes else None,
                tuple(map(int, chosen)),
                10,
            ),
        )


def _literal_overlap(rows, box, cut):
    overlap = [0.0 if row is None else _iou(row[2], box) for row in rows]
    return [0.0 if cut and x < 0.5 else x for x in overlap]


def _assert_targets(encoding, batch, index, record, annotation, rows):
    targets = batch["targets"][index]
    kind = encoding.task.kind
    if kind == "answer":
        scores = dict(zip(annotation.answers, annotation.scores, strict=True))
        expected = [0.0] * 5
        for answer, label in ANSWERS.items():
            expected[label] = scores.get(answer, 0.0)
    elif kind == "verdict":
        expected = [float(annotation.label == label) for label in range(3)]
    elif kind == "region":
        expected = _literal_overlap(rows, annotation.box, encoding.training)
    else:
        places = [SLOTS + record.box_ids.tolist().index(i) for i in annotation.choice_ids]
        padding = M - len(places)
        choices = places + [R - 1] * padding
        assert batch["choices"][index].tolist() == choices
        assert batch["choice_mask"][index].tolist() == [True] * len(places) + [False] * padding
        overlap = _literal_overlap(rows, annotation.box, True)
        expected = [overlap[place] for place in places] + [0.0] * padding
    np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "candidates"),
    [*((kind, "detected") for kind in BY_KIND), ("region", "annotated")],
)
def test_batches_follow_the_rules(kind, candidates, training, seed):
    encoding = _encoding(BY_KIND[kind], training=training, candidates=candidates)
    found = list(_random_examples(kind, seed))
    batch = encode_batch(encoding, [Example(load(r, ""), a) for r, a in found], 6)
    for i, (record, annotation) in enumerate(found):
        rows = _literal_rows(encoding, record)
        _assert_rows(batch, i, rows)
        _assert_text(batch, i, annotation.text)
        _assert_targets(encoding, batch, i, record, annotation, rows)
    assert batch["_mask"].tolist() == [True] * 4 + [False] * 2
    assert list(batch["example_id"]) == [*(a.example_id for _, a in found), "", ""]
    assert batch["task_id"] == encoding.task.task_id
    for key in ("regions", "boxes", "region_mask", "token_mask", "targets"):
        assert not batch[key][4:].any()
    assert not batch.get("choice_mask", np.zeros(6))[4:].any()


DTYPES = {
    "tokens": np.int32,
    "token_mask": bool,
    "regions": np.float32,
    "boxes": np.float32,
    "region_mask": bool,
    "task_id": np.int32,
    "_mask": bool,
    "example_id": object,
    "targets": np.float32,
}
CHOICE_DTYPES = {"choices": np.int32, "choice_mask": bool}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("count", [0, 2, 3])
def test_batch_contract(name, count):
    """Keys, dtypes and shapes of `tasks/task.py`, however many rows are real."""
    encoding = _encoding(name)
    task, k = encoding.task, encoding.task.rows_per_example
    rng = np.random.default_rng(0)
    examples = []
    for i in range(count):
        record = _loaded(rng, boxes=3, images=2 if task.head == "image_pair" else 1)
        annotation = Annotation(f"{i}", "r", "word1", label=1, box=(1.0, 1, 9, 9))
        options = ((record, "word2"),) * 4 if task.kind == "match" else ()
        examples.append(Example(record, annotation, options))
    batch = encode_batch(encoding, examples, 3)
    rows = (3,) if k == 1 else (3, k)
    shapes = {
        "tokens": (*rows, T),
        "token_mask": (*rows, T),
        "regions": (*rows, R, F),
        "boxes": (*rows, R, 5),
        "region_mask": (*rows, R),
        "task_id": (),
        "_mask": (3,),
        "example_id": (3,),
        "targets": {"answer": (3, 5), "verdict": (3, 3), "region": (3, R)}.get(task.kind, (3,)),
    }
    dtypes = DTYPES | ({"targets": np.int32} if task.kind == "match" else {})
    if task.kind == "choice":
        shapes |= {"targets": (3, M), "choices": (3, M), "choice_mask": (3, M)}
        dtypes |= CHOICE_DTYPES
    assert {key: value.shape for key, value in batch.items()} == shapes
    assert {key: value.dtype for key, value in batch.items()} == {
        key: np.dtype(dtype) for key, dtype in dtypes.items()
    }


def test_options_of_retrieval():
    rng = np.random.default_rng(1)
    # An image without regions comes back from storage without a feature size.
    settings = ({"regions": 3}, {"regions": 0, "feature_dim": 0}, {"regions": R + 2})
    records = [_record(rng, **x) for x in settings]
    one, two, three = (load(record, "") for record in records)
    options = ((one, TEXTS[0]), (one, TEXTS[2]), (three, TEXTS[0]), (two, TEXTS[3]))
    encoding = _encoding("coco")
    annotation = Annotation("caption", "r", TEXTS[0])
    batch = encode_batch(encoding, [Example(one, annotation, options)], 2)
    for option, (record, text) in enumerate(zip((0, 0, 2, 1), (0, 2, 0, 3), strict=True)):
        _assert_rows(batch, (0, option), _padded(_detected_rows(records[record], 0), R))
        _assert_text(batch, (0, option), TEXTS[text])
    assert batch["targets"].tolist() == [0, 0]
    assert not batch["region_mask"][1].any()


@pytest.mark.parametrize("counts", [(3, 4), (R - 1, 2), (0, R + 3), (R + 2, 5), (2, 0), (30, 30)])
@pytest.mark.parametrize("packed", [True, False])
def test_pairs_of_images(counts, packed):
    """Padded one by one; or as released, one behind the other and then cut in the middle."""
    record = _record(np.random.default_rng(2), regions=counts)
    left, right = _detected_rows(record, 0), _detected_rows(record, 1)
    if packed:
        rows = _padded(left + right, 2 * R)
        left, right = rows[:R], rows[R:]
    encoding = _encoding("nlvr2", official_pair_packing=packed, num_labels=2)
    examples = [
        Example(load(record, ""), Annotation(f"{i}", "r", TEXTS[2], label=i)) for i in (1, 0)
    ]
    batch = encode_batch(encoding, examples, 3)
    for i in (0, 1):
        _assert_rows(batch, (i, 0), _padded(left, R))
        _assert_rows(batch, (i, 1), _padded(right, R))
        for side in (0, 1):
            _assert_text(batch, (i, side), TEXTS[2])
    assert batch["targets"].tolist() == [[0, 1], [1, 0], [0, 0]]
    assert not batch["region_mask"][2].any()


@pytest.mark.parametrize("name", TASKS)
def test_half_floats(name):
    rng = np.random.default_rng(3)
    record = _loaded(rng, boxes=3, images=2 if name == "nlvr2" else 1)
    example = Example(
        record,
        Annotation("x", "r", "word1", box=(1.0, 1, 9, 9)),
        ((record, "word2"),) * 4 if TASKS[name].kind == "match" else (),
    )
    whole = encode_batch(_encoding(name), [example], 2)
    half = encode_batch(_encoding(name, feature_dtype=np.float16), [example], 2)
    assert half["regions"].dtype == np.float16
    np.testing.assert_array_equal(half["regions"], whole["regions"].astype(np.float16))
    for key in whole.keys() - {"regions"}:
        np.testing.assert_array_equal(half[key], whole[key], strict=True)


@pytest.mark.parametrize("name", ["vqa", "coco", "refcoco", "visual7w", "nlvr2", "snli_ve"])
def test_without_region_features(name):
    """Of texts and annotated boxes alone: no detected region, and features of no size."""
    kind = TASKS[name].kind
    record = _loaded(
        np.random.default_rng(4),
        regions=0,
        feature_dim=0,
        images=2 if name == "nlvr2" else 1,
        boxes=3 if kind in ("region", "choice") else 0,
    )
    annotation = Annotation("x", "r", "word1", box=(1.0, 1, 9, 9), choice_ids=(10, 16))
    options = ((record, "word1"),) * 4 if kind == "match" else ()
    for training in (True, False):
        encoding = _encoding(name, training=training)
        batch = encode_batch(encoding, [Example(record, annotation, options)], 1)
        assert batch["regions"].shape[-1] == F
        assert not batch["regions"].any()
        real = {0, SLOTS, SLOTS + 1, SLOTS + 2} if kind == "choice" else {0}
        mask = batch["region_mask"].reshape(-1, R)
        assert all(set(np.flatnonzero(row)) == real for row in mask)
        np.testing.assert_array_equal(
            batch["boxes"].reshape(-1, R, 5)[:, 0], [[0, 0, 1, 1, 1]] * len(mask)
        )


def test_boxes_alone_are_no_candidates():
    """Annotated boxes without features are never rows of their own where regions are detected."""
    record = _loaded(np.random.default_rng(5), regions=3, boxes=2, annotated_dim=0)
    example = Example(record, Annotation("x", "r", "word1", box=(1.0, 1, 9, 9)))
    batch = encode_batch(_encoding("refcoco", training=True), [example], 1)
    assert batch["region_mask"][0].tolist() == [True] * 4 + [False] * (R - 4)
    with pytest.raises(DataError, match="refcoco: example x: annotated boxes without region feat"):
        encode_batch(_encoding("refcoco", candidates="annotated"), [example], 1)


def test_records_are_not_changed():
    record = _loaded(np.random.default_rng(6), boxes=3)
    for rows in (*record.images, record.annotated):
        for field in dataclasses.fields(rows):
            getattr(rows, field.name).setflags(write=False)
    annotation = Annotation("x", "r", "word1", box=(1.0, 1, 9, 9), choice_ids=(10,))
    for name in ("vqa", "refcoco", "visual7w"):
        for training in (True, False):
            encode_batch(_encoding(name, training=training), [Example(record, annotation)], 2)


GOOD = Annotation("e-7", "r", "word1", label=0, box=(1.0, 1.0, 9.0, 9.0), choice_ids=(10, 13))


@pytest.mark.parametrize(
    ("name", "settings", "changes", "record", "message"),
    [
        ("snli_ve", {}, {"label": 3}, {}, "label 3 of 3 classes"),
        ("snli_ve", {}, {"label": -2}, {}, "label -2 of 3 classes"),
        (
            "vqa",
            {"num_labels": 4},
            {"answers": ("two",), "scores": (1.0,)},
            {},
            "class 4 of answer",
        ),
        ("vqa", {}, {"answers": ("two", "no"), "scores": (1.0,)}, {}, "zip"),
        ("refcoco", {}, {"box": None}, {}, "no box"),
        ("visual7w", {}, {"box": None}, {}, "no box"),
        (
            "visual7w",
            {},
            {"choice_ids": (10, 14)},
            {},
            "choice 14 is no annotated box of its image",
        ),
        ("visual7w", {}, {"choice_ids": (99,)}, {}, "choice 99 is no annotated box"),
        ("visual7w", {}, {"choice_ids": (10,) * 5}, {}, "5 choices, the task takes 4"),
        (
            "visual7w",
            {},
            {},
            {"boxes": 7},
            "7 annotated boxes do not fit behind 5 detected slots in",
        ),
        ("visual7w", {}, {}, {"annotated_dim": 0}, "annotated boxes without region features"),
        (
            "visual7w",
            {},
            {},
            {"annotated_dim": 3},
            "region features have size 3, the model takes 6",
        ),
        ("refcoco", {"training": True}, {}, {"annotated_dim": 3}, "have size 3, the model takes 6"),
        ("refcoco", {"training": True}, {}, {"annotated_dim": 9}, "have size 9, the model takes 6"),
        ("vqa", {}, {}, {"feature_dim": 8}, "region features have size 8, the model takes 6"),
        ("vqa", {}, {}, {"images": 2}, "2 images where the task takes 1"),
        ("nlvr2", {}, {}, {}, "1 images where the task takes 2"),
        ("coco", {}, {}, {}, "0 images where the task takes 4"),
    ],
)
def test_errors_name_task_and_example(name, settings, changes, record, message):
    rng = np.random.default_rng(7)
    bad = Example(_loaded(rng, **{"boxes": 3} | record), dataclasses.replace(GOOD, **changes))
    with pytest.raises(DataError, match=f"^{name}: example e-7: .*{message}"):
        encode_batch(_encoding(name, **settings), [bad], 2)


@pytest.mark.parametrize("dims", [(F, 4), (4, F)])
def test_both_images_of_a_pair_are_checked(dims):
    rng = np.random.default_rng(8)
    left, right = (_loaded(rng, feature_dim=dim).images[0] for dim in dims)
    record = dataclasses.replace(_loaded(rng), images=(left, right))
    with pytest.raises(DataError, match="nlvr2: example e-7: region features have size 4"):
        encode_batch(_encoding("nlvr2"), [Example(record, GOOD)], 1)


def test_images_of_options_are_checked():
    rng = np.random.default_rng(9)
    record, other = _loaded(rng), _loaded(rng, feature_dim=4)
    options = ((record, "a"), (record, "b"), (other, "c"), (record, "d"))
    with pytest.raises(DataError, match="coco: example e-7: region features have size 4"):
        encode_batch(_encoding("coco"), [Example(record, GOOD, options)], 1)


# Records with their regions in rows.


def test_load_splits_regions_among_images():
    record = _record(np.random.default_rng(10), regions=(3, 0, 2), boxes=4)
    loaded = load(record, "nlvr2/train")
    for i, image in enumerate(loaded.images):
        rows = _detected_rows(record, i)
        assert len(image) == len(rows)
        np.testing.assert_allclose(image.mean_feature[0], rows[0][0], atol=1e-6)
        np.testing.assert_allclose(image.locations, [row[1] for row in rows], atol=1e-6)
        np.testing.assert_allclose(image.boxes, [row[2] for row in rows])
        assert image.features.tolist() == [row[0] for row in rows[1:]]
    assert isinstance(loaded.annotated, ImageRows)
    assert len(loaded.annotated) == 4
    expected = [_row((), box)[1] for box in record.annotated_boxes]
    np.testing.assert_allclose(loaded.annotated.locations, expected, atol=1e-6)
    assert loaded.num_bytes >= record.features.nbytes + record.annotated_features.nbytes


@pytest.mark.parametrize(
    ("place", "value", "fits"),
    [
        ((0, 0), -1.0, True),
        ((0, 1), -1.5, False),
        ((3, 2), WIDTH + 1.0, True),
        ((3, 2), WIDTH + 1.5, False),
        ((4, 3), HEIGHT + 1.0, True),
        ((4, 3), HEIGHT + 1.5, False),
        ((4, 2), HEIGHT + 2.0, True),
    ],
)
def test_load_refuses_boxes_outside_of_their_image(place, value, fits):
    record = _record(np.random.default_rng(11), regions=(3, 2))
    record.boxes[place] = value
    if fits:
        load(record, "nlvr2/train")
        return
    image = 0 if place[0] < 3 else 1
    with pytest.raises(
        DataError, match=rf"nlvr2/train: image image-{image}: box .* {value}.* outs"
    ):
        load(record, "nlvr2/train")


def _stored(**changes):
    """What TFDS reads of a record, with some values exchanged."""
    annotations = (
        Annotation(
            "e", "r", "word1", ("a", "b"), (0.3, 1.0), 2, (1.0, 2.0, 3.0, 4.0), (10, 13), 10
        ),
        Annotation("é", "r", ""),
    )
    record = _record(np.random.default_rng(12), regions=(2, 3), boxes=2, annotations=annotations)
    example = schema.example_of(record)
    columns = {key: [x[key] for x in example["annotations"]] for key in example["annotations"][0]}
    for key in ("example_id", "text"):
        columns[key] = [value.encode() for value in columns[key]]
    columns["answers"] = [[answer.encode() for answer in x] for x in columns["answers"]]
    values = example | {
        "record_id": b"r",
        "image_ids": [image_id.encode() for image_id in example["image_ids"]],
        "annotations": columns,
    }
    return record, values | changes


def test_stored_records_come_back():
    record, values = _stored()
    got = schema.record_of(values, "nlvr2/train")
    for field in dataclasses.fields(record):
        before, after = getattr(record, field.name), getattr(got, field.name)
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(after, before)
        else:
            assert after == before


@pytest.mark.parametrize(
    "changes",
    [
        {"num_regions": np.array([2, 4], np.int32)},
        {"num_regions": np.array([5], np.int32)},
        {"sizes": np.ones((1, 2), np.int32)},
        {"coco_ids": np.zeros(3, np.int64)},
        {"boxes": np.zeros(18, np.float32)},
        {"features": np.zeros(5 * F - 1, np.float16)},
        {"features": np.full(5 * F, np.nan, np.float16)},
        {"boxes": np.full(20, np.inf, np.float32)},
        {"annotated_features": np.full(2 * F, np.inf, np.float16)},
        {"box_ids": np.arange(3)},
    ],
)
def test_damaged_records_are_refused(changes):
    _, values = _stored(**changes)
    with pytest.raises(DataError, match="nlvr2/train: record r: .*; build the dataset again"):
        schema.record_of(values, "nlvr2/train")
