"""Predictions from picture files, and from regions, against the model on the datasets' batches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from twelve_in_one import predict
from twelve_in_one.checkpoints import model_folder
from twelve_in_one.data.builders.region_inputs import picture_files
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.encode.examples import Example, encode_batch
from twelve_in_one.data.regions.descriptor import FEATURE_DIM
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.records import Regions
from twelve_in_one.data.streams import open_folder, open_stream, preprocessing_of
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.models.two_stream.trunk import TwoStreamModel
from twelve_in_one.systems.vilbert import Vilbert, trunk_inputs
from twelve_in_one.tasks.twelve import TWELVE

SLOTS = 17
# Tasks of one head have one shape, so that they share a compiled program.
TASKS = {
    task.name: dataclasses.replace(
        task,
        max_tokens=96 if task.name == "guesswhat" else 40,
        max_regions=40 if task.kind == "choice" else SLOTS,
        detected_slots=SLOTS,
        num_choices=20 if task.kind == "choice" else 0,
    )
    for task in TWELVE
}
BATCH = 5
FROM = pytest.mark.parametrize("source", ["pictures", "regions"])


@pytest.fixture(scope="module")
def folder(small_world):
    return open_folder(small_world.data, "pixels")


@pytest.fixture(scope="module")
def model(folder, random_params, tmp_path_factory):
    """(config, parameters, predictor loaded from disk)."""
    tiny = named_size("tiny")
    config = dataclasses.replace(
        tiny,
        text=dataclasses.replace(tiny.text, num_layers=2),
        visual=dataclasses.replace(tiny.visual, num_layers=1),
        text_connections=(1,),
        visual_connections=(0,),
        vocab_size=folder.tokenizer.vocab_size,
        max_positions=96,
        region_feature_dim=FEATURE_DIM,
        num_vqa_answers=len(folder.answers["vqa"]),
        num_gqa_answers=len(folder.answers["gqa"]),
    )
    params = random_params(config)
    serving = Serving(
        tuple(TASKS.values()),
        folder.tokenizer,
        folder.answers,
        preprocessing_of(folder, tuple(TASKS.values()), FEATURE_DIM),
    )
    path = tmp_path_factory.mktemp("workdir")
    model_folder.save(path / "model", params, Vilbert(config), serving)
    return config, params, predict.load(path, devices=jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Shown:
    """Examples of a split as a user would have them, and what the model makes of their batch."""

    records: list
    texts: list[str]
    annotations: list
    pictures: list[list]
    batch: dict
    logits: np.ndarray

    def images(self, source, part=0):
        if source == "pictures":
            return [paths[part] for paths in self.pictures]
        return [as_regions(record.images[part]) for record in self.records]


def as_regions(rows):
    width, height = map(int, rows.boxes[0, 2:])
    return Regions(rows.boxes[1:], rows.features, width, height)


@pytest.fixture(scope="module")
def shown(small_world, folder, model):
    """shown(task name) -> `Shown`."""
    config, params, _ = model

    def read(name):
        task = TASKS[name]
        stream = open_stream(folder, task, "val", batch_size=BATCH, training=False)
        selection = stream.selection
        files, _ = picture_files(small_world.raw / "images" / SOURCES[name].domain)
        places = [selection.locate(number) for _, number in selection.rows(0)]
        positions = [int(selection.records[image]) for image, _ in places]
        records = [selection.reader.record(position) for position in positions]
        annotations = [
            record.annotations[which] for record, (_, which) in zip(records, places, strict=True)
        ]
        ids = [selection.reader.index.image_ids[position] for position in positions]
        batch = stream.batch(0)
        return Shown(
            records,
            [annotation.text for annotation in annotations],
            annotations,
            [[files[image_id] for image_id in pair] for pair in ids],
            batch,
            plain_logits(config, params, task, batch),
        )

    return read


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(config, params, inputs, head):
    return TwoStreamModel(config).apply({"params": params}, **inputs, heads=(head,))[0][head]


def plain_logits(config, params, task, batch):
    return np.asarray(_apply(config, params, trunk_inputs(task, batch), task.head))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@FROM
@pytest.mark.parametrize("name", ["vqa", "vgqa", "gqa"])
def test_answers_are_those_of_the_batch(shown, model, folder, name, source):
    example, predictor = shown(name), model[2]
    found = predictor.answer(example.images(source), example.texts, name, top=3)
    answers = folder.answers[TASKS[name].head]
    for answer, logits in zip(found, example.logits, strict=True):
        order = np.argsort(-logits)[:3]
        assert [text for text, _ in answer.top] == [answers[i] for i in order]
        close([probability for _, probability in answer.top], sigmoid(logits[order]))
        assert (answer.answer, answer.probability) == answer.top[0]


@FROM
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_phrases_mean_the_same_boxes(shown, model, name, source):
    example, predictor = shown(name), model[2]
    found = predictor.ground(example.images(source), example.texts, name)
    masks = example.batch["region_mask"]
    for i, grounding in enumerate(found):
        boxes = example.records[i].images[0].boxes[: masks[i].sum()]
        np.testing.assert_array_equal(grounding.candidates, boxes)
        close(grounding.scores, sigmoid(example.logits[i][masks[i]]))
        best = np.argmax(np.where(masks[i], example.logits[i], -np.inf))
        assert grounding.best == best
        assert grounding.box == tuple(boxes[best])


@FROM
@pytest.mark.parametrize("name", ["visual7w", "guesswhat"])
def test_the_same_given_boxes_are_chosen(shown, model, name, source):
    example, predictor = shown(name), model[2]
    sets, choices = [], []
    for record, annotation in zip(example.records, example.annotations, strict=True):
        rows = record.annotated
        width, height = map(int, record.images[0].boxes[0, 2:])
        boxes = rows.boxes
        if source == "regions":
            boxes = Regions(rows.boxes, rows.features, width, height)
        sets.append(boxes)
        choices.append(np.searchsorted(record.box_ids, annotation.choice_ids).tolist())
    images = example.images(source)
    found = predictor.point(images, example.texts, sets, name, choices=choices)
    for i, pointing in enumerate(found):
        slots = example.batch["choices"][i][example.batch["choice_mask"][i]]
        logits = example.logits[i][slots]
        close(pointing.scores[choices[i]], sigmoid(logits))
        assert pointing.best == choices[i][np.argmax(logits)]
        assert pointing.box == tuple(example.records[i].annotated.boxes[pointing.best])
        others = np.setdiff1d(np.arange(len(pointing.scores)), choices[i])
        assert np.isnan(pointing.scores[others]).all()


@FROM
def test_entailment_is_that_of_the_batch(shown, model, source):
    example, predictor = shown("snli_ve"), model[2]
    found = predictor.entails(example.images(source), example.texts)
    for verdict, logits in zip(found, example.logits, strict=True):
        assert list(verdict.probabilities) == ["contradiction", "neutral", "entailment"]
        shares = sigmoid(logits) / sigmoid(logits).sum()
        close(list(verdict.probabilities.values()), shares)
        assert verdict.label == list(verdict.probabilities)[np.argmax(logits)]
        assert verdict.probability == verdict.probabilities[verdict.label]


@FROM
def test_comparisons_are_those_of_the_batch(shown, model, source):
    example, predictor = shown("nlvr2"), model[2]
    found = predictor.compare(example.images(source, 0), example.images(source, 1), example.texts)
    for verdict, logits in zip(found, example.logits, strict=True):
        assert verdict.label is bool(np.argmax(logits))
        close(verdict.probabilities["True"], sigmoid(logits[1]) / sigmoid(logits).sum())


@FROM
@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_every_pair_scores_as_in_a_batch_of_options(shown, model, folder, name, source):
    config, params, predictor = model
    task, example = TASKS[name], shown(name)
    firsts = np.unique([str(paths[0]) for paths in example.pictures], return_index=True)[1][:2]
    if len(firsts) < 2:  # the first batch may be about one image
        firsts = np.array([0, 0])
    records = [example.records[i] for i in firsts]
    texts = example.texts[:2]
    options = tuple((record, text) for text in texts for record in records)
    stream = open_stream(folder, task, "val", batch_size=1, training=False)
    batch = encode_batch(stream.encoding, [Example(records[0], example.annotations[0], options)], 1)
    expected = plain_logits(config, params, task, batch).reshape(2, 2)
    images = [example.images(source)[i] for i in firsts]
    close(predictor.score_matrix(images, texts, name), expected)
    rankings = predictor.rank(images, texts, name)
    for ranking, scores in zip(rankings, expected, strict=True):
        close(ranking.scores, scores)
        np.testing.assert_array_equal(ranking.order, np.argsort(-scores, kind="stable"))


def test_a_picture_is_seen_as_it_was_when_the_dataset_was_built(shown, model):
    example, predictor = shown("vqa"), model[2]
    rows = example.records[0].images[0]
    seen = predictor.read(example.pictures[0][0])
    np.testing.assert_array_equal(seen.regions.boxes, rows.boxes[1:])
    np.testing.assert_array_equal(seen.regions.features.astype(np.float16), rows.features)
