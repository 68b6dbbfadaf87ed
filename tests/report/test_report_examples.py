"""Examples with invented predictions, against the raw files that they come from."""

import collections
import dataclasses
import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import Outcome
from twelve_in_one.report import examples as module
from twelve_in_one.report.pictures import draw_example
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}
COUNT = 3


@pytest.fixture(scope="module")
def folder(small_world):
    return open_folder(small_world.data, "pixels")


@pytest.fixture(scope="module")
def stream_of(folder):
    def make(name, split="val"):
        return open_stream(folder, TASKS[name], split, batch_size=64, training=False)

    return make


def example_pictures(stream, predictions, raw, count):
    """With the pictures of the dataset's collection."""
    files = module.pictures_of(SOURCES[stream.task.name].domain, raw)
    return module.example_pictures(stream, predictions, files, count)


def rows_of(stream):
    """What a model sees of every example, by the batches."""
    found = []
    for number in range(stream.selection.num_batches):
        batch = stream.batch(number)
        for i in np.flatnonzero(batch["_mask"]):
            row = {key: x[i] for key, x in batch.items() if np.ndim(x) and key != "regions"}
            found.append(row)
    return found


def ids_of(stream):
    return tuple(row["example_id"] for row in rows_of(stream))


def outcome(ids, prediction=0, score=1.0):
    def column(value, dtype):
        return np.broadcast_to(np.array(value, dtype), len(ids))

    half = column(0.5, np.float32)
    return Outcome(
        tuple(ids), column(prediction, np.int32), column(score, np.float32), half, half, 0.0
    )


def chosen(total, count=COUNT):
    """Numbers in the middle of `count` equal parts."""
    return [int((i + 0.5) * total / count) for i in range(count)]


def pictures(raw, collection):
    """Image id -> pixels, with pillow alone."""
    found = {}
    for path in (raw / "images" / collection).rglob("*.jpg"):
        number = path.stem.rsplit("_", 1)[-1]
        found[str(int(number)) if collection == "coco" else path.stem] = path
    return found


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def load(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_shows(example, *paths):
    """The images are these files."""
    assert len(example.images) == len(example.sizes) == len(paths)
    for image, size, path in zip(example.images, example.sizes, paths, strict=True):
        np.testing.assert_array_equal(image, pixels(path))
        assert size == image.shape[1::-1]
    draw_example(example)


def by_role(example):
    found = collections.defaultdict(list)
    for box in example.boxes:
        found[box.role].append(tuple(box[:4]))
    return found


def corners(xywh):
    x, y, width, height = xywh
    return x, y, x + width, y + height


# ------------------------------------------------------------------------------ kinds of tasks


def test_questions(stream_of, folder, small_world):
    raw, stream = small_world.raw, stream_of("vqa")
    ids, words = ids_of(stream), folder.answers["vqa"]
    asked = load(raw / "vqa/v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    asked = {str(question["question_id"]): question for question in asked}
    given = {
        str(question["question_id"]): collections.Counter(
            answer["answer"] for answer in question["answers"]
        )
        for question in load(raw / "vqa/v2_mscoco_val2014_annotations.json")["annotations"]
    }
    numbers = np.arange(len(ids))
    scores = np.array([0, 0.3, 0.6, 1])[numbers % 4]
    made = example_pictures(stream, outcome(ids, numbers % len(words), scores), raw, 8)
    files = pictures(raw, "coco")
    right = set()
    for example, number in zip(made, chosen(len(ids), 8), strict=True):
        question = asked[ids[number]]
        assert (example.task, example.text) == ("VQAv2", question["question"])
        assert example.answer == f"{words[number % len(words)]} (0.50)"
        wanted = []
        for answer, count in given[ids[number]].most_common(3):
            wanted.append(answer if count > 3 else f"{answer} ({[0.3, 0.6, 0.9][count - 1]})")
        assert example.expected == ", ".join(wanted)
        assert example.right == (number % 4 in (2, 3))
        right.add(example.right)
        assert not example.boxes and example.true_image is example.chosen_image is None
        assert_shows(example, files[str(question["image_id"])])
    assert right == {False, True}


def test_best_answers_first():
    annotation = module.Annotation(
        "1", "1", "?", answers=("a", "b", "c", "d", "e"), scores=(0.3, 0.9, 1.0, np.float32(0.6), 1)
    )
    assert module._best_answers(annotation) == "c, e, b (0.9)"


def test_answers_that_nobody_published(stream_of, small_world):
    """Nobody knows what is right; a head may be wider than the vocabulary."""
    stream = stream_of("vqa", "test")
    for example in example_pictures(stream, outcome(ids_of(stream), 10**4, 0), None, COUNT):
        assert (example.expected, example.right) == ("", None)
        assert example.answer == "label 10000, which is no answer (0.50)"


def test_pairs(stream_of, small_world):
    raw, stream = small_world.raw, stream_of("nlvr2")
    ids = ids_of(stream)
    known = {line["identifier"]: line for line in lines(raw / "nlvr2/dev.json")}
    labels = np.arange(len(ids)) % 2
    truth = np.array([known[i]["label"] == "True" for i in ids])
    made = example_pictures(stream, outcome(ids, labels, labels == truth), raw, 6)
    files = pictures(raw, "nlvr2")
    for example, number in zip(made, chosen(len(ids), 6), strict=True):
        line = known[ids[number]]
        assert example.text == line["sentence"]
        assert example.answer == f"{['False', 'True'][number % 2]} (0.50)"
        assert example.expected == line["label"]
        assert example.right == (example.answer.split()[0] == example.expected)
        pair = (line[f"{side}_url"].rsplit("/", 1)[-1] for side in ("left", "right"))
        assert_shows(example, *(files[name.split(".")[0]] for name in pair))


def test_entailment(stream_of, small_world):
    raw, stream = small_world.raw, stream_of("snli_ve", "test")
    ids = ids_of(stream)
    known = {line["pairID"]: line for line in lines(raw / "snli_ve/snli_ve_test.jsonl")}
    numbers = np.arange(len(ids))
    made = example_pictures(stream, outcome(ids, numbers % 3, numbers % 2), raw, 9)
    files = pictures(raw, "flickr30k")
    for example, number in zip(made, chosen(len(ids), 9), strict=True):
        line = known[ids[number]]
        assert example.text == line["sentence2"] and example.expected == line["gold_label"]
        names = ("contradiction", "neutral", "entailment")
        assert example.answer == f"{names[number % 3]} (0.50)"
        assert example.right == bool(number % 2)
        assert_shows(example, files[line["Flickr30K_ID"]])


@pytest.mark.parametrize("name", ["refcoco", "refcocog"])
def test_expressions(stream_of, small_world, name):
    raw, stream = small_world.raw, stream_of(name, "train")
    rows = rows_of(stream)
    path = raw / "refcoco" / name
    boxes = {thing["id"]: thing for thing in load(path / "instances.json")["annotations"]}
    refs = {
        f"{ref['ref_id']}/{sentence['sent_id']}": (sentence["raw"], boxes[ref["ann_id"]])
        for file in path.glob("refs*.p")
        for ref in pickle.loads(file.read_bytes())
        for sentence in ref["sentences"]
    }
    ids = [row["example_id"] for row in rows]
    prediction = np.array([i % int(row["region_mask"].sum()) for i, row in enumerate(rows)])
    score = [row["targets"][i] > 0.5 for i, row in zip(prediction, rows, strict=True)]
    made = example_pictures(stream, outcome(ids, prediction, score), raw, 12)
    files = pictures(raw, "coco")
    for example, number in zip(made, chosen(len(ids), 12), strict=True):
        row, (text, thing) = rows[number], refs[ids[number]]
        assert example.text == text and example.expected == ""
        overlap = row["targets"][prediction[number]]
        best = row["targets"].max()
        assert example.answer == f"IoU {overlap:.2f} of at most {best:.2f} (0.50)"
        assert example.right == (overlap > 0.5)
        found, real = by_role(example), row["region_mask"]
        np.testing.assert_allclose(found["truth"], [corners(thing["bbox"])], atol=1e-3)
        wanted = row["boxes"][real, :4] * np.tile(example.sizes[0], 2)
        np.testing.assert_allclose(found["predicted"], wanted[[prediction[number]]], atol=1e-3)
        others = np.delete(wanted, prediction[number], axis=0)
        np.testing.assert_allclose(found["region"], others, atol=1e-3)
        assert found.keys() == {"truth", "predicted", "region"}
        assert_shows(example, files[str(thing["image_id"])])
    assert {example.right for example in made} == {False, True}


def visual7w(raw):
    found = load(raw / "visual7w/dataset_v7w_pointing.json")
    boxes = {
        box["box_id"]: [box[key] for key in ("x", "y", "width", "height")] for box in found["boxes"]
    }
    for image in found["images"]:
        for pair in image["qa_pairs"]:
            ids = sorted([pair["answer"], *pair["multiple_choices"]])
            text, right = pair["question"], pair["answer"]
            yield (
                str(pair["qa_id"]),
                str(image["image_id"]),
                text,
                {i: boxes[i] for i in ids},
                right,
            )


def guesswhat(raw):
    for game in lines(raw / "guesswhat/guesswhat.valid.jsonl"):
        turns = (f"start {turn['question']} answer {turn['answer']} stop" for turn in game["qas"])
        boxes = {thing["id"]: thing["bbox"] for thing in game["objects"]}
        image, right = str(game["image"]["id"]), game["object_id"]
        yield str(game["id"]), image, " ".join(turns), dict(sorted(boxes.items())), right


@pytest.mark.parametrize(
    ("name", "read", "collection"),
    [("visual7w", visual7w, "visual_genome"), ("guesswhat", guesswhat, "coco")],
)
def test_choices(stream_of, small_world, name, read, collection):
    raw, stream = small_world.raw, stream_of(name)
    ids = ids_of(stream)
    known = {found[0]: found[1:] for found in read(raw)}
    prediction = [i % len(known[example_id][2]) for i, example_id in enumerate(ids)]
    score = [
        list(known[i][2])[slot] == known[i][3] for i, slot in zip(ids, prediction, strict=True)
    ]
    made = example_pictures(stream, outcome(ids, prediction, score), raw, 12)
    files = pictures(raw, collection)
    for example, number in zip(made, chosen(len(ids), 12), strict=True):
        image_id, text, boxes, right = known[ids[number]]
        picked = list(boxes)[prediction[number]]
        assert (example.text, example.expected) == (text, "")
        assert example.answer == f"box {picked}, one of {len(boxes)} (0.50)"
        assert example.right == (picked == right)
        found = by_role(example)
        np.testing.assert_allclose(found["truth"], [corners(boxes[right])], atol=1e-3)
        np.testing.assert_allclose(found["predicted"], [corners(boxes[picked])], atol=1e-3)
        others = [corners(box) for i, box in boxes.items() if i != picked]
        np.testing.assert_allclose(found["choice"], others, atol=1e-3)
        assert_shows(example, files[image_id])
    assert {example.right for example in made} == {False, True}


def ranking_of(stream, scores):
    """Of all captions and images, in stored order."""
    index = stream.selection.reader.index
    images = [str(i) for i in index.image_ids[stream.selection.records, 0]]
    ids = ids_of(stream)
    place = np.array([images.index(i.split("#")[0]) for i in ids])
    return Ranking(ids, tuple(images), place, scores(len(ids), place, len(images)))


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_captions(stream_of, small_world, name):
    raw, stream = small_world.raw, stream_of(name, "train")
    rng = np.random.default_rng(0)

    def scores(captions, place, images):
        drawn = rng.normal(size=(captions, images)).astype(np.float32)
        drawn[np.arange(captions), place] += np.arange(captions) % 3 * 1.5  # some come out on top
        return drawn

    ranking = ranking_of(stream, scores)
    assert len(ranking.image_ids) > 6
    captions = {
        f"{image.get('cocoid', image['filename'].removesuffix('.jpg'))}#{i}": sentence["raw"]
        for image in load(raw / f"{name}/dataset_{name}.json")["images"]
        for i, sentence in enumerate(image["sentences"])
    }
    made = example_pictures(stream, ranking, raw, 15)
    files = pictures(raw, name)
    ranks = []
    for example, number in zip(made, chosen(len(ranking.caption_ids), 15), strict=True):
        caption_id, own = ranking.caption_ids[number], ranking.scores[number]
        assert (example.text, example.expected) == (captions[caption_id], "")
        true = ranking.image_of_caption[number]
        rank = int((own > own[true]).sum()) + 1
        ranks.append(rank)
        assert example.answer == f"rank {rank} of {len(ranking.image_ids)}"
        assert example.right == (rank == 1)
        shown = sorted(range(len(own)), key=lambda i: -own[i])[:5]
        shown += [] if rank <= 5 else [int(true)]
        assert (example.chosen_image, example.true_image) == (0, min(rank, 6) - 1)
        assert_shows(example, *(files[ranking.image_ids[i]] for i in shown))
    assert min(ranks) == 1 and max(ranks) > 5


def test_equal_scores_keep_the_order_of_the_images(stream_of):
    stream = stream_of("coco")
    ranking = ranking_of(stream, lambda m, _, n: np.zeros((m, n), np.float32))
    made = example_pictures(stream, ranking, None, 5)
    for example, number in zip(made, chosen(len(ranking.caption_ids), 5), strict=True):
        true = int(ranking.image_of_caption[number])
        assert example.answer.startswith(f"rank {true + 1} of")
        assert example.true_image == min(true, 5)


# ------------------------------------------------------------------------------ which examples


@pytest.mark.parametrize("part", [1.0, 0.4])
def test_evenly_spread(stream_of, part):
    """Also over the first examples alone, where only these were evaluated."""
    stream = stream_of("gqa")
    ids = ids_of(stream)
    ids = ids[: int(part * len(ids))]
    known = {}
    for position in stream.selection.records.tolist():
        for annotation in stream.selection.reader.record(position).annotations:
            known[annotation.example_id] = annotation.text
    for count in (1, 2, 7):
        made = example_pictures(stream, outcome(ids), None, count)
        assert [e.text for e in made] == [known[ids[i]] for i in chosen(len(ids), count)]
    assert example_pictures(stream, outcome(ids), None, 0) == []
    few = example_pictures(stream, outcome(ids[:4]), None, 9)
    assert [example.text for example in few] == [known[i] for i in ids[:4]]


def test_only_what_is_shown_is_read(stream_of, small_world, monkeypatch):
    stream = stream_of("refcoco")
    ids = ids_of(stream)
    reader, reads, loaded = stream.selection.reader, [], []

    def record(position):
        reads.append(position)
        return reader.record(position)

    def load_image(path, upright):
        loaded.append(path)
        return np.zeros((128, 160, 3), np.uint8)

    monkeypatch.setattr("twelve_in_one.data.images.load.load_image", load_image)
    watched = dataclasses.replace(
        stream,
        selection=dataclasses.replace(
            stream.selection, reader=dataclasses.replace(reader, record=record)
        ),
    )
    example_pictures(watched, outcome(ids), small_world.raw, 2)
    assert len(set(reads)) == len(loaded) == 2


def test_a_process_among_several(stream_of, small_world):
    """Rows of a batch are those of a process, examples are not."""
    stream = stream_of("snli_ve")
    ids = ids_of(stream)
    last = dataclasses.replace(stream.selection, host=3, num_hosts=4)
    one = example_pictures(stream, outcome(ids), None, COUNT)
    assert one == example_pictures(
        dataclasses.replace(stream, selection=last), outcome(ids), None, COUNT
    )


# ------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "visual7w", "coco"])
@pytest.mark.parametrize("raw", [None, "empty"])
def test_without_pictures(stream_of, small_world, tmp_path, caplog, name, raw):
    """Sizes are known all the same."""
    stream = stream_of(name)
    if name == "coco":
        predictions = ranking_of(stream, lambda m, _, n: np.zeros((m, n), np.float32))
    else:
        predictions = outcome(ids_of(stream))
    with caplog.at_level(logging.WARNING):
        blank = example_pictures(stream, predictions, raw and tmp_path / raw, COUNT)
    assert caplog.text.count("no pictures") == (raw is not None)
    whole = example_pictures(stream, predictions, small_world.raw, COUNT)
    for example, full in zip(blank, whole, strict=True):
        assert set(example.images) == {None}
        assert example.sizes == [image.shape[1::-1] for image in full.images]
        assert dataclasses.replace(full, images=example.images) == example
        draw_example(example)


def test_single_pictures_that_are_no_use(stream_of, raw_copy, caplog):
    raw, stream = raw_copy("images"), stream_of("snli_ve", "train")
    ids = ids_of(stream)
    made = example_pictures(stream, outcome(ids), raw, COUNT)
    files = pictures(raw, "flickr30k")
    shown = [
        next(path for path in files.values() if np.array_equal(pixels(path), example.images[0]))
        for example in made
    ]
    assert len(set(shown)) == COUNT
    shown[0].write_bytes(shown[0].read_bytes()[:100])
    shown[1].unlink()
    module._listed.cache_clear()
    with caplog.at_level(logging.WARNING):
        again = example_pictures(stream, outcome(ids), raw, COUNT)
    assert [example.images[0] is None for example in again] == [True, True, False]
    assert len(caplog.messages) == 2
    assert all(path.stem in text for path, text in zip(shown, caplog.messages, strict=False))


def test_resized_pictures(stream_of, raw_copy):
    """Boxes stay on what they are about."""
    raw, stream = raw_copy("images"), stream_of("refcoco")
    ids = ids_of(stream)
    before = example_pictures(stream, outcome(ids), raw, COUNT)
    for path in pictures(raw, "coco").values():
        with Image.open(path) as picture:
            picture.resize((picture.width * 2, picture.height * 3)).save(path)
    after = example_pictures(stream, outcome(ids), raw, COUNT)
    for small, large in zip(before, after, strict=True):
        wanted = [(2 * x1, 3 * y1, 2 * x2, 3 * y2) for x1, y1, x2, y2, _ in small.boxes]
        np.testing.assert_allclose([box[:4] for box in large.boxes], wanted, rtol=1e-6)


def test_predictions_of_other_data(stream_of):
    stream, other = stream_of("gqa"), stream_of("gqa", "test")
    with pytest.raises(ValueError, match=r"gqa/val: .* were they made from these data"):
        example_pictures(stream, outcome(ids_of(other)[:9]), None, COUNT)
    stream = stream_of("coco")
    ranking = ranking_of(stream, lambda m, _, n: np.zeros((m, n), np.float32))
    turned = dataclasses.replace(ranking, image_ids=ranking.image_ids[::-1])
    with pytest.raises(ValueError, match="coco/val: the prediction for image"):
        example_pictures(stream, turned, None, COUNT)


def test_predictions_of_another_kind(stream_of):
    stream = stream_of("coco")
    with pytest.raises(ValueError, match="coco: .* type Ranking, these are of type Outcome"):
        example_pictures(stream, outcome(ids_of(stream)), None, COUNT)
