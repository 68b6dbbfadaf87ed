"""Batches of all tasks from a built data folder, against the raw files they come from."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from twelve_in_one.data import streams
from twelve_in_one.data.builders import finish
from twelve_in_one.data.pipeline import as_dataset
from twelve_in_one.data.regions.descriptor import FEATURE_DIM
from twelve_in_one.data.stored.reader import read_build_info
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import open_folder, open_stream, preprocessing_of
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}
BATCH = 6
SPLITS = pytest.mark.parametrize("split", ["train", "val"])
VERDICTS = {"contradiction": 0, "neutral": 1, "entailment": 2}


@pytest.fixture(scope="module")
def folder(small_world):
    return open_folder(small_world.data, "pixels")


@pytest.fixture(scope="module")
def batch_of(folder):
    """batch_of(task name, split, **options) -> (stream, its first batch)."""

    def make(name, split, **options):
        task = TASKS[name]
        stream = open_stream(
            folder, task, split, batch_size=BATCH, training=split == "train", **options
        )
        return stream, stream.batch(0)

    return make


@dataclasses.dataclass(frozen=True)
class Fact:
    """What a raw file says of an example."""

    texts: tuple[str, ...]
    answer: object = None
    boxes: tuple[tuple[float, ...], ...] = ()


@pytest.fixture(scope="module")
def facts(small_world):
    """facts(task name) -> example id -> fact, read with json and pickle alone."""

    def read(name):
        kind = "refcoco" if name.startswith("refcoco") else name
        return READERS[kind](small_world.raw, name)

    return read


def _json(path):
    return json.loads(path.read_text())


def _lines(folder):
    paths = [*folder.glob("*.json"), *folder.glob("*.jsonl")]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _vqa(raw, _):
    answers = {
        question["question_id"]: {answer["answer"] for answer in question["answers"]}
        for path in (raw / "vqa").glob("*_annotations.json")
        for question in _json(path)["annotations"]
    }
    return {
        str(question["question_id"]): Fact(
            (question["question"],), answers.get(question["question_id"])
        )
        for path in (raw / "vqa").glob("*_questions.json")
        for question in _json(path)["questions"]
    }


def _short(sentence):
    """An answer as VQA's vocabulary has it: small letters, no articles, no period."""
    words = sentence.lower().rstrip(".").split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _vgqa(raw, _):
    return {
        str(pair["qa_id"]): Fact((pair["question"],), {_short(pair["answer"])})
        for image in _json(raw / "visual_genome/question_answers.json")
        for pair in image["qas"]
    }


def _gqa(raw, _):
    return {
        key: Fact((question["question"],), {question["answer"]})
        for path in (raw / "gqa").glob("*.json")
        for key, question in _json(path).items()
    }


def _karpathy(raw, name):
    found = {}
    for image in _json(raw / f"{name}/dataset_{name}.json")["images"]:
        image_id = image.get("cocoid", image["filename"].removesuffix(".jpg"))
        texts = tuple(sentence["raw"] for sentence in image["sentences"])
        for number, text in enumerate(texts):
            found[f"{image_id}#{number}"] = Fact((text, *texts))
    return found


def _refer(raw, name):
    folder = raw / "refcoco" / name
    (path,) = folder.glob("refs*.p")
    boxes = {box["id"]: box["bbox"] for box in _json(folder / "instances.json")["annotations"]}
    return {
        f"{ref['ref_id']}/{sentence['sent_id']}": Fact(
            (sentence["raw"],), boxes=(boxes[ref["ann_id"]],)
        )
        for ref in pickle.loads(path.read_bytes())
        for sentence in ref["sentences"]
    }


def _visual7w(raw, _):
    found = _json(raw / "visual7w/dataset_v7w_pointing.json")
    boxes = {
        box["box_id"]: (box["x"], box["y"], box["width"], box["height"]) for box in found["boxes"]
    }
    return {
        str(pair["qa_id"]): Fact(
            (pair["question"],),
            boxes[pair["answer"]],
            tuple(boxes[i] for i in sorted([pair["answer"], *pair["multiple_choices"]])),
        )
        for image in found["images"]
        for pair in image["qa_pairs"]
    }


def _guesswhat(raw, _):
    found = {}
    for game in _lines(raw / "guesswhat"):
        boxes = {thing["id"]: tuple(thing["bbox"]) for thing in game["objects"]}
        ordered = tuple(boxes[i] for i in sorted(boxes))
        words = " ".join(f"{pair['question']} {pair['answer']}" for pair in game["qas"])
        found[str(game["id"])] = Fact((words,), boxes[game["object_id"]], ordered)
    return found


def _nlvr2(raw, _):
    return {
        line["identifier"]: Fact((line["sentence"],), line["label"] == "True")
        for line in _lines(raw / "nlvr2")
    }


def _snli_ve(raw, _):
    return {
        line["pairID"]: Fact((line["sentence2"],), VERDICTS[line["gold_label"]])
        for line in _lines(raw / "snli_ve")
    }


READERS = {
    "vqa": _vqa,
    "vgqa": _vgqa,
    "gqa": _gqa,
    "coco": _karpathy,
    "flickr30k": _karpathy,
    "refcoco": _refer,
    "visual7w": _visual7w,
    "guesswhat": _guesswhat,
    "nlvr2": _nlvr2,
    "snli_ve": _snli_ve,
}


def _corners(xywh):
    x, y, width, height = xywh
    return np.array([x, y, x + width, y + height])


def _overlap(one, other):
    """IoU of two boxes in pixels, ends included (released code)."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    both = np.prod(np.maximum(high - low + 1, 0))
    areas = [np.prod(box[2:] - box[:2] + 1) for box in (one, other)]
    return both / (sum(areas) - both)


def _rows(batch):
    return np.flatnonzero(batch["_mask"])


def _pixels(stream, example_id):
    """Width and height of an example's image."""
    reader = stream.selection.reader
    for position in stream.selection.records.tolist():
        record = reader.record(position)
        if example_id in (annotation.example_id for annotation in record.annotations):
            return record.images[0].boxes[0, 2:]
    raise AssertionError(example_id)


@SPLITS
@pytest.mark.parametrize("name", TASKS)
def test_contract(batch_of, folder, name, split):
    task = TASKS[name]
    stream, batch = batch_of(name, split)
    b, k, r = BATCH, task.rows_per_example, task.max_regions
    lead = (b, k) if k > 1 else (b,)
    shapes = {
        "tokens": (np.int32, (*lead, task.max_tokens)),
        "token_mask": (np.bool_, (*lead, task.max_tokens)),
        "regions": (np.float32, (*lead, r, FEATURE_DIM)),
        "boxes": (np.float32, (*lead, r, 5)),
        "region_mask": (np.bool_, (*lead, r)),
        "task_id": (np.int32, ()),
        "_mask": (np.bool_, (b,)),
        "example_id": (np.object_, (b,)),
    }
    labels = stream.encoding.num_labels
    shapes |= {
        "answer": {"targets": (np.float32, (b, labels))},
        "verdict": {"targets": (np.float32, (b, labels))},
        "match": {"targets": (np.int32, (b,))},
        "region": {"targets": (np.float32, (b, r))},
        "choice": {
            "targets": (np.float32, (b, task.num_choices)),
            "choices": (np.int32, (b, task.num_choices)),
            "choice_mask": (np.bool_, (b, task.num_choices)),
        },
    }[task.kind]
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == shapes
    real = batch["_mask"]
    assert real.all() if split == "train" else real[: min(b, stream.selection.num_examples)].all()
    assert batch["task_id"] == task.task_id
    assert batch["tokens"].min() >= 0 and batch["tokens"].max() < folder.tokenizer.vocab_size
    first, mask = batch["tokens"][real][..., 0], batch["token_mask"]
    assert (first == folder.tokenizer.cls_id).all()
    assert (batch["tokens"][~mask] == folder.tokenizer.pad_id).all() and not mask[~real].any()
    assert folder.tokenizer.unk_id not in batch["tokens"]
    for key in ("regions", "boxes", "targets"):
        assert np.isfinite(batch[key]).all()
    assert batch["targets"].min() >= 0 and batch["targets"].max() <= 1
    assert batch["boxes"].min() >= 0 and batch["boxes"].max() <= 1
    assert not batch["regions"][~batch["region_mask"]].any()
    assert not batch["boxes"][~batch["region_mask"]].any()
    wholes = batch["boxes"][real][..., 0, :]
    np.testing.assert_array_equal(wholes, np.broadcast_to([0, 0, 1, 1, 1], wholes.shape))
    assert batch["region_mask"][real].sum(axis=-1).min() > 1
    assert all(batch["example_id"][real]) and not any(batch["example_id"][~real])


@SPLITS
@pytest.mark.parametrize("name", TASKS)
def test_texts(batch_of, folder, facts, name, split):
    _, batch = batch_of(name, split)
    known = facts(name)
    for i in _rows(batch):
        text = known[batch["example_id"][i]].texts[0]
        tokens = batch["tokens"][i].reshape(-1, batch["tokens"].shape[-1])[0]
        if name == "guesswhat":  # with marks between questions and answers
            words = set(folder.tokenizer.decode(tokens).split())
            spoken = set(folder.tokenizer.decode(folder.tokenizer.encode(text, 256)[0]).split())
            assert spoken <= words
        else:
            wanted, _ = folder.tokenizer.encode(text, len(tokens))
            np.testing.assert_array_equal(tokens, wanted)


@SPLITS
@pytest.mark.parametrize("name", ["vqa", "vgqa", "gqa"])
def test_answers(folder, facts, name, split):
    task, known, answered = TASKS[name], facts(name), 0
    if name == "vgqa":  # in a small world VQA's vocabulary has none of its answers
        answers = sorted({answer for fact in known.values() for answer in fact.answer})[::2]
        folder = dataclasses.replace(folder, answers={"vqa": tuple(answers)})
    vocabulary = folder.answers[task.head]
    stream = open_stream(folder, task, split, batch_size=64, training=False)
    for number in range(stream.selection.num_batches):
        batch = stream.batch(number)
        for i in _rows(batch):
            given = known[batch["example_id"][i]].answer
            got = {vocabulary[label] for label in np.flatnonzero(batch["targets"][i])}
            assert got == given & set(vocabulary)
            answered += len(got)
            if name != "vqa":
                assert set(batch["targets"][i]) <= {0, 1}
    assert answered


@SPLITS
@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_retrieval(batch_of, folder, facts, census, name, split):
    stream, batch = batch_of(name, split)
    known = facts(name)
    captions = {}
    for example_id, fact in known.items():
        captions[example_id.split("#")[0]] = set(fact.texts)
    readable = {
        image: {folder.tokenizer.decode(folder.tokenizer.encode(t, 30)[0]) for t in texts}
        for image, texts in captions.items()
    }
    assert not batch["targets"].any()
    for i in _rows(batch):
        image = batch["example_id"][i].split("#")[0]
        said = [folder.tokenizer.decode(tokens) for tokens in batch["tokens"][i]]
        assert said[0] in readable[image] and said[2] == said[0]
        for wrong in (said[1], said[3]):
            assert any(wrong in texts for other, texts in readable.items() if other != image)
        same = [np.array_equal(batch["regions"][i, 0], batch["regions"][i, j]) for j in range(4)]
        assert same == [True, True, False, True]
    if split == "train":
        kept = {
            images
            for images in census.examples[name]["train"]
            if census.photo(name, images[0]) not in census.tested
        }
        assert stream.pool.shape == (len(kept), min(100, len(kept)))
    else:
        assert stream.pool is None


@SPLITS
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_expressions(batch_of, facts, name, split):
    stream, batch = batch_of(name, split)
    known = facts(name)
    for i in _rows(batch):
        example_id = batch["example_id"][i]
        meant = _corners(known[example_id].boxes[0])
        size = np.tile(_pixels(stream, example_id), 2)
        real = batch["region_mask"][i]
        overlap = [_overlap(box, meant) for box in batch["boxes"][i, real, :4] * size]
        if split == "train":
            overlap = [value if value >= 0.5 else 0 for value in overlap]
        np.testing.assert_allclose(batch["targets"][i, real], overlap, atol=1e-4)
        assert not batch["targets"][i, ~real].any()


@SPLITS
@pytest.mark.parametrize("name", ["visual7w", "guesswhat"])
def test_choices(batch_of, facts, name, split):
    stream, batch = batch_of(name, split)
    task, known = TASKS[name], facts(name)
    for i in _rows(batch):
        example_id = batch["example_id"][i]
        fact = known[example_id]
        wanted = np.array([_corners(box) for box in fact.boxes])
        count = len(wanted)
        assert batch["choice_mask"][i].tolist() == [True] * count + [False] * (
            task.num_choices - count
        )
        rows = batch["choices"][i, :count]
        assert (rows >= task.detected_slots).all() and batch["region_mask"][i, rows].all()
        size = np.tile(_pixels(stream, example_id), 2)
        np.testing.assert_allclose(batch["boxes"][i, rows, :4] * size, wanted, atol=1e-2)
        assert np.abs(batch["regions"][i, rows]).sum(axis=-1).all()
        right = fact.boxes.index(fact.answer)
        assert batch["targets"][i, right] > 0.9
        assert batch["targets"][i].argmax() == right
        for j, box in enumerate(wanted):
            overlap = _overlap(box, _corners(fact.answer))
            wanted_score = overlap if overlap >= 0.5 else 0
            assert batch["targets"][i, j] == pytest.approx(wanted_score, abs=1e-4)
        assert not batch["targets"][i, count:].any()


@SPLITS
@pytest.mark.parametrize("name", ["nlvr2", "snli_ve"])
def test_verdicts(batch_of, facts, name, split):
    stream, batch = batch_of(name, split)
    assert stream.encoding.num_labels == {"nlvr2": 2, "snli_ve": 3}[name]
    known = facts(name)
    for i in _rows(batch):
        label = int(known[batch["example_id"][i]].answer)
        np.testing.assert_array_equal(batch["targets"][i], np.eye(batch["targets"].shape[1])[label])


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_sees_every_example_once(folder, facts, census, name):
    stream = open_stream(folder, TASKS[name], "val", batch_size=5, training=False)
    batches = [stream.batch(i) for i in range(stream.selection.num_batches)]
    seen = [i for batch in batches for i in batch["example_id"][batch["_mask"]]]
    assert len(set(seen)) == len(seen) <= len(census.examples[name]["val"])
    assert set(seen) <= facts(name).keys()
    if name != "vgqa":  # whose validation questions are cleaned
        assert len(seen) == len(census.examples[name]["val"])
    with pytest.raises(IndexError):
        stream.batch(len(batches))


@pytest.mark.parametrize("name", ["coco", "nlvr2", "visual7w"])
def test_as_dataset(batch_of, name):
    stream, batch = batch_of(name, "train")
    found = next(as_dataset(stream, stop=1).as_numpy_iterator())
    assert found.keys() == batch.keys()
    for key, value in batch.items():
        wanted = [x.encode() for x in value] if key == "example_id" else value
        np.testing.assert_array_equal(found[key], wanted)


def test_options(folder, small_world):
    task = TASKS["gqa"]
    stream = open_stream(
        folder,
        task,
        "train",
        batch_size=8,
        training=True,
        num_labels=500,
        seed=7,
        host=1,
        num_hosts=2,
        encoding_options={"feature_dtype": np.float16},
    )
    batch = stream.batch(3)
    assert batch["targets"].shape == (4, 500)
    assert batch["regions"].dtype == np.float16
    whole = open_stream(folder, task, "train", batch_size=8, training=True, seed=7).batch(3)
    assert batch["example_id"].tolist() == whole["example_id"][4:].tolist()
    again = open_stream(folder, task, "train", batch_size=8, training=True, seed=8).batch(3)
    assert again["example_id"].tolist() != whole["example_id"].tolist()
    with pytest.raises(DataError, match=r"gqa: \d+ answers, but the model has 2 labels"):
        open_stream(folder, task, "train", batch_size=8, training=True, num_labels=2)
    with pytest.raises(DataError, match=f"size {FEATURE_DIM}, the model takes 2048"):
        open_stream(folder, task, "val", batch_size=8, training=False, feature_dim=2048).batch(0)
    assert read_build_info(small_world.built("gqa"))["made_of"]["features"].startswith("pixels-")


def test_models_know_the_detector_of_their_regions(folder, monkeypatch):
    made = {"features": "regions", "extractor": "small-1-100-54ddaf3e"}
    monkeypatch.setattr(streams, "read_build_info", lambda path: {"made_of": made})
    found = preprocessing_of(folder, [TASKS["vqa"], TASKS["gqa"]], 1952)
    assert found.image_descriptor == made["extractor"]
    assert found.region_stores == {"vqa": "regions", "gqa": "regions"}


def test_what_has_not_been_built(folder, data_copy):
    with pytest.raises(DataError, match="region features 'detected' has not been built"):
        other = dataclasses.replace(folder, regions="detected")
        open_stream(other, TASKS["vqa"], "train", batch_size=2, training=True)
    with pytest.raises(DataError, match="no split 'testA'"):
        open_stream(folder, TASKS["vqa"], "testA", batch_size=2, training=False)
    (data_copy / finish.GQA_ANSWERS).unlink()
    without = open_folder(data_copy, "pixels")
    with pytest.raises(DataError, match="no answer vocabulary for gqa"):
        open_stream(without, TASKS["gqa"], "val", batch_size=2, training=False)
    assert open_stream(without, TASKS["vqa"], "val", batch_size=2, training=False).batch(0)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (finish.WORDS, "empty"),  # half the words are words
        (finish.WORDS, "gone"),
        (finish.CLEAN_SPLIT, "half"),
        (finish.CLEAN_SPLIT, "empty"),
        (finish.CLEAN_SPLIT, "gone"),
        (finish.VQA_ANSWERS, "half"),
        (finish.VQA_ANSWERS, "empty"),
        (finish.GQA_ANSWERS, "half"),
    ],
)
def test_damaged_shared_file(data_copy, name, damage):
    path = data_copy / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_folder(data_copy, "pixels")


def _train(data, name="coco"):
    return open_stream(
        open_folder(data, "pixels"), TASKS[name], "train", batch_size=2, training=True
    )


@pytest.mark.parametrize("name", ["vqa", "refcoco", "visual7w"])
def test_what_cleaning_takes_out_can_be_evaluated(folder, small_world, name):
    """These records and those that are trained on are all that there are."""
    clean = json.loads((small_world.data / "clean_split.json").read_text())["images"]
    left_out = open_stream(
        folder, TASKS[name], "train", batch_size=BATCH, training=False, removed=True
    ).selection
    kept = open_stream(folder, TASKS[name], "train", batch_size=BATCH, training=True).selection
    both = np.concatenate([left_out.records, kept.records])
    assert sorted(both.tolist()) == list(range(len(left_out.reader.index.counts)))
    domain = "visual_genome" if name == "visual7w" else "coco"
    images = left_out.reader.index.image_ids[left_out.records].ravel().tolist()
    assert set(images) <= set(clean[domain])


def test_what_cleaning_takes_out_is_not_for_training(folder, small_world):
    options = dict(batch_size=BATCH, removed=True)
    with pytest.raises(ValueError, match="vqa: what cleaning leaves out is not for training"):
        open_stream(folder, TASKS["vqa"], "train", training=True, **options)
    leaky = open_folder(small_world.data, "pixels", clean=False)
    with pytest.raises(DataError, match="vqa/train: no example takes part"):
        open_stream(leaky, TASKS["vqa"], "train", training=False, **options)


def test_without_cleaning_negatives_stay_hard(small_world):
    """Also a run on everything draws captions of images that look alike."""
    leaky = open_folder(small_world.data, "pixels", clean=False)
    stream = open_stream(leaky, TASKS["coco"], "train", batch_size=BATCH, training=True)
    means = stream.selection.reader.index.mean_features.astype(np.float64)
    assert len(stream.selection.records) == len(means) == len(stream.pool)
    for own, nearest in enumerate(stream.pool[:, 1]):
        distance = np.linalg.norm(means - means[own], axis=1)
        distance[own] = np.inf
        assert distance[nearest] <= distance.min() * 1.01


def test_pool_of_other_images(data_copy, small_world):
    path = data_copy / "coco/pixels/1.0.0/hard_negatives.npz"
    shutil.copy(small_world.built("flickr30k") / path.name, path)
    with pytest.raises(DataError, match=r"hard_negatives\.npz: pool of \d+ images.*data\.build"):
        _train(data_copy)


def test_pool_in_another_order(data_copy):
    path = data_copy / "coco/pixels/1.0.0/hard_negatives.npz"
    with np.load(path) as arrays:
        image_ids, pool = arrays["image_ids"], arrays["pool"]
    np.savez(path, image_ids=image_ids[::-1], pool=pool[::-1])
    with pytest.raises(DataError, match="in another order: the clean split has changed"):
        _train(data_copy)


def test_clean_split_changed_behind_the_pool(data_copy, census):
    path = data_copy / finish.CLEAN_SPLIT
    clean = json.loads(path.read_text())
    lost = next(
        image
        for (image,) in census.examples["coco"]["train"]
        if census.photo("coco", image) not in census.tested
    )
    clean["images"]["coco"].append(lost)
    path.write_text(json.dumps(clean))
    with pytest.raises(DataError, match=r"hard_negatives\.npz: .*clean split has changed"):
        _train(data_copy)


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
def test_damaged_pool(data_copy, damage):
    path = data_copy / "flickr30k/pixels/1.0.0/hard_negatives.npz"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with pytest.raises(DataError, match=r"hard_negatives\.npz: cannot be read .*data\.build"):
        _train(data_copy, "flickr30k")
    assert open_stream(  # evaluation draws at random
        open_folder(data_copy, "pixels"), TASKS["flickr30k"], "val", batch_size=2, training=False
    ).batch(0)


def test_preprocessing_of(folder):
    made = preprocessing_of(folder, TWELVE[:2], 186)
    assert (made.vocab_sha256, made.vocab_size) == (
        folder.tokenizer.sha256,
        folder.tokenizer.vocab_size,
    )
    assert made.max_tokens == {"vqa": 23, "vgqa": 26}
    assert made.max_regions == {"vqa": 101, "vgqa": 101}
    assert made.region_source == "pixels"
    assert made.image_descriptor.startswith("pixels-")  # the extractor's name and version
