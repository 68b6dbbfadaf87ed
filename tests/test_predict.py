"""Predictions of a small random model: against plain calls of it, alone and in batches."""

import contextlib
import dataclasses
import functools
import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from reference.memory_split import HEIGHT, TOKENIZER, WIDTH, regions_of
from reference.spoiled_files import truncate_arrays

from twelve_in_one import predict
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.config import defaults
from twelve_in_one.config.settings import CheckpointOptions
from twelve_in_one.data.regions.descriptor import FEATURE_DIM
from twelve_in_one.data.regions.extractor import PixelExtractor
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.preprocessing import Preprocessing
from twelve_in_one.data.stored.records import Regions
from twelve_in_one.models.two_stream.trunk import TwoStreamModel
from twelve_in_one.predict import __main__ as command
from twelve_in_one.predict import forward
from twelve_in_one.predict.wording import describe, lines
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TWELVE
from twelve_in_one.training.steps import TrainState

F, T, R, SLOTS = FEATURE_DIM, 9, 10, 6  # of all models, which so share what is compiled
TASKS = tuple(
    dataclasses.replace(task, max_tokens=T, max_regions=R, detected_slots=SLOTS) for task in TWELVE
)
ANSWERS = {"vqa": ("yes", "no", "two", "red"), "gqa": ("left", "right", "blue")}
BOXES = [(1.0, 2.0, 20.0, 30.0), (10.0, 5.0, 60.0, 40.0), (0.0, 0.0, 5.0, 5.0)]


def preprocessing(**fields):
    values = {
        "vocab_sha256": TOKENIZER.sha256,
        "vocab_size": TOKENIZER.vocab_size,
        "lower_case": True,
        "max_tokens": {task.name: T for task in TASKS},
        "max_regions": {task.name: R for task in TASKS},
        "region_feature_dim": F,
        "region_source": "detected",
    }
    return Preprocessing(**values | fields)


@pytest.fixture(scope="module")
def parts(tiny_config, random_params):
    """parts(**preprocessing) -> parameters, config, `Serving`."""

    def make(**fields):
        given = preprocessing(**fields)
        config = tiny_config(
            text={"num_layers": 1},
            visual={"num_layers": 1},
            text_connections=(0,),
            visual_connections=(0,),
            vocab_size=TOKENIZER.vocab_size,
            num_tasks=20,
            region_feature_dim=F,
        )
        serving = Serving(TASKS, TOKENIZER, ANSWERS, given)
        return random_params(config), config, serving

    return make


@pytest.fixture(scope="module")
def model(parts):
    """Trained on a detector's features; one device."""
    return predict.Predictor(*parts(), devices=jax.devices()[:1], max_batch=2)


@pytest.fixture(scope="module")
def pixel_parts(parts):
    return parts(
        region_source="pixels",
        image_descriptor=PixelExtractor(5).name,
    )


def save(path, params, config, serving):
    model_folder.save(path, params, Vilbert(config), serving)


@pytest.fixture(scope="module")
def pixel_model(pixel_parts):
    return predict.Predictor(*pixel_parts, devices=jax.devices()[:1], max_batch=2)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(5)
    return [regions_of(rng, count, F) for count in (3, 5, 0, 12, 4, 2, 5)]


@pytest.fixture(scope="module")
def boxes():
    """Boxes with features for each of `images`."""
    rng = np.random.default_rng(6)
    return [regions_of(rng, 1 + number % 4, F) for number in range(7)]


TEXTS = [f"word{i} word{i + 7} word{3 * i}" for i in range(7)]


def draw(path, seed):
    """A picture of a few squares."""
    rng = np.random.default_rng(seed)
    pixels = np.full((80, 100, 3), 200, np.uint8)
    for _ in range(3):
        x, y = rng.integers(0, 70, 2)
        pixels[y % 55 : y % 55 + 20, x : x + 20] = rng.integers(0, 150, 3)
    Image.fromarray(pixels).save(path)
    return path


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [str(draw(folder / f"{seed}.png", seed)) for seed in range(3)]


def asked(model, kind, images, texts, boxes, **options):
    """One call of a kind of prediction."""
    calls = {
        "answer": lambda: model.answer(images, texts, **options),
        "ground": lambda: model.ground(images, texts, **options),
        "ground among": lambda: model.ground(images, texts, boxes=boxes, **options),
        "point": lambda: model.point(images, texts, boxes, **options),
        "entails": lambda: model.entails(images, texts, **options),
        "compare": lambda: model.compare(
            images, images[::-1] if isinstance(images, list) else images, texts, **options
        ),
    }
    return calls[kind]()


KINDS = pytest.mark.parametrize(
    "kind", ["answer", "ground", "ground among", "point", "entails", "compare"]
)


def numbers(result):
    """What a result says, as (things that must be equal, numbers that must be close)."""
    if isinstance(result, predict.Answer):
        return [text for text, _ in result.top], [p for _, p in result.top]
    if isinstance(result, predict.Verdict):
        return [result.label], [*result.probabilities.values(), result.probability]
    return [result.best, result.box], [*result.scores, result.score]


def same(first, second):
    np.testing.assert_equal(numbers(first)[0], numbers(second)[0])
    np.testing.assert_allclose(numbers(first)[1], numbers(second)[1], rtol=1e-4, atol=1e-6)


@KINDS
def test_alone_and_together_are_the_same(model, kind, images, boxes):
    """Seven examples in batches of two, and each by itself."""
    together = asked(model, kind, images, TEXTS, boxes)
    assert len(together) == 7
    for i, result in enumerate(together):
        if kind == "compare":
            alone = model.compare(images[i], images[6 - i], TEXTS[i])
        else:
            alone = asked(model, kind, images[i], TEXTS[i], boxes[i])
        same(result, alone)
        assert result.text == TEXTS[i]


@KINDS
def test_one_value_goes_with_every_element_of_a_list(model, kind, images, boxes):
    for result, text in zip(
        asked(model, kind, images[0], TEXTS[:3], boxes[1]), TEXTS, strict=False
    ):
        same(result, asked(model, kind, images[0], text, boxes[1]))
    assert len(asked(model, kind, images[:3], TEXTS[0], boxes[:3])) == 3
    assert asked(model, kind, [], TEXTS[0], []) == []


@pytest.mark.parametrize("layout, kwargs", [("dp", {}), ("fsdp_tp", {"model": 2})])
def test_devices_do_not_matter(parts, model, images, layout, kwargs):
    """Eight and one; what is asked of a pair takes two rows, and captions go to every device."""
    spread = predict.Predictor(*parts(), layout=layout, **kwargs)
    if layout == "dp":
        alike = [m.score_matrix(images[:3], TEXTS[:1]) for m in (spread, model)]
        np.testing.assert_allclose(*alike, rtol=1e-4, atol=1e-5)
    else:
        same(*(m.compare(images[0], images[1], TEXTS[0]) for m in (spread, model)))


def test_every_caption_is_scored_with_every_image(model, parts, images):
    """Against one call of the model for each pair; several blocks of both."""
    params, config, serving = parts()
    captions = [*TEXTS, "word1", "word2"]
    matrix = model.score_matrix(images, captions, "flickr30k")
    assert matrix.shape == (9, 7)
    task_id = np.int32(serving.task("flickr30k").task_id)
    tokens, mask = TOKENIZER.encode_batch(captions, T)
    for n, image in enumerate(images):
        rows = hand_made_rows(image)
        batch = {k: np.repeat(v[None], 9, axis=0) for k, v in rows.items()}
        batch |= {"tokens": tokens, "token_mask": mask, "task_id": task_id}
        expected, _ = plain(config, params, batch, "image_text_match")
        np.testing.assert_allclose(matrix[:, n], expected, rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnums=(0, 3))
def plain(config, params, batch, head):
    """Logits of a head, and everything that the trunk names."""
    out, aux = TwoStreamModel(config).apply(
        {"params": params}, **batch, heads=(head,), return_attention=True
    )
    return out[head], aux


def hand_made_rows(image):
    """Regions of an image by the rule: the mean first, then as many as fit, then padding."""
    count = min(len(image.boxes), R - 1)
    features, boxes = np.zeros((R, F), np.float32), np.zeros((R, 5), np.float32)
    if len(image.boxes):
        features[0] = image.features.astype(np.float32).mean(axis=0)
    features[1 : 1 + count] = image.features[:count]
    boxes[0] = (0, 0, 1, 1, 1)
    x1, y1, x2, y2 = (image.boxes[:count] / (WIDTH, HEIGHT, WIDTH, HEIGHT)).T
    boxes[1 : 1 + count] = np.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], axis=1)
    return {"regions": features, "boxes": boxes, "region_mask": np.arange(R) < 1 + count}


def test_rankings_are_the_columns_in_order(model, images):
    captions = [*TEXTS, "word1", "word2"]
    matrix = model.score_matrix(images, captions)
    rankings = model.rank(images, captions)
    for ranking, scores in zip(rankings, matrix, strict=True):
        np.testing.assert_array_equal(ranking.scores, scores)
        np.testing.assert_array_equal(np.sort(ranking.order), np.arange(7))
        assert (np.diff(ranking.scores[ranking.order]) <= 0).all()
    np.testing.assert_allclose(model.rank(images, TEXTS[0]).scores, matrix[0], rtol=1e-5)


def test_equal_images_keep_their_order(model, images):
    assert model.rank([images[0]] * 3, "word1").order.tolist() == [0, 1, 2]


def test_few_programs_are_compiled(parts, images):
    model = predict.Predictor(*parts(), devices=jax.devices()[:1], max_batch=4)
    sizes = {model._engine.forward.padded_size(count) for count in range(1, 9)}
    assert sizes == {1, 2, 4, 8}
    before = forward._apply._cache_size()
    for count in range(1, 8):
        model.entails(images[:count], TEXTS[:count])
    assert forward._apply._cache_size() - before <= 3


def test_candidates_can_be_given(model, images, boxes):
    grounding = model.ground(images[0], TEXTS[0], boxes=boxes[2])
    whole = [[0, 0, WIDTH, HEIGHT]]
    np.testing.assert_array_equal(grounding.candidates, np.concatenate([whole, boxes[2].boxes]))
    detected = model.ground(images[0], TEXTS[0])
    np.testing.assert_array_equal(detected.candidates, np.concatenate([whole, images[0].boxes]))


def test_the_whole_image_is_named_where_it_is_a_candidate(model, images, boxes):
    found = model.ground(images[0], TEXTS[0], boxes=boxes[2])
    shown = [line for line in lines(found, 9) if " box " in line]
    assert len(shown) == 1 + len(boxes[2].boxes)
    assert [line.endswith(" (whole image)") for line in shown] == [" box 0: " in x for x in shown]
    whole = dataclasses.replace(found, best=0, box=tuple(map(float, found.candidates[0])))
    assert f"box 0 [0, 0, {WIDTH}, {HEIGHT}] (whole image) (" in describe(whole)
    assert "whole" not in describe(dataclasses.replace(found, best=1))
    pointed = model.point(images[0], TEXTS[0], boxes[2])
    assert not any("whole" in line for line in [describe(pointed), *lines(pointed, 9)])


def test_only_choices_are_chosen(model, images, boxes):
    four = boxes[3]
    free = model.point(images[1], TEXTS[0], four)
    others = [i for i in range(4) if i != free.best]
    bound = model.point(images[1], TEXTS[0], four, choices=others)
    assert bound.best in others
    # All boxes are seen all the same, so scores stay.
    np.testing.assert_allclose(bound.scores[others], free.scores[others], rtol=1e-5)
    assert np.isnan(bound.scores[free.best])


def test_attention_is_that_of_the_model(model, parts, images):
    params, config, serving = parts()
    task, image, text = serving.task("snli_ve"), images[0], TEXTS[1]
    (attention,) = model.entails(image, text, attention=True).attention
    assert attention.tokens == ("[CLS]", "[TASK]", "word1", "word8", "word3", "[SEP]")
    np.testing.assert_array_equal(attention.boxes[1:], image.boxes)
    tokens, mask = TOKENIZER.encode_batch([text], T)
    batch = {k: v[None] for k, v in hand_made_rows(image).items()}
    batch |= {"tokens": tokens, "token_mask": mask, "task_id": np.int32(task.task_id)}
    _, aux = plain(config, params, batch, "three_way")
    sizes = {"text": 6, "visual": 4}
    expected = {
        "text_layer_0": ("text", "text"),
        "visual_layer_0": ("visual", "visual"),
        "connection_0_text_reads_visual": ("text", "visual"),
        "connection_0_visual_reads_text": ("visual", "text"),
    }
    assert attention.maps.keys() == expected.keys()
    for name, (queries, keys) in expected.items():
        ours = attention.maps[name]
        np.testing.assert_allclose(ours.sum(axis=-1), 1, rtol=1e-5)
        theirs = aux[f"attention/{name}"][0, :, : sizes[queries], : sizes[keys]]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    read = attention.maps["connection_0_text_reads_visual"].mean(axis=0)
    np.testing.assert_allclose(attention.region_weights(), read[2:5].mean(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="connection 1: the model runs 1"):
        attention.text_to_regions(1)


def test_attention_comes_with_every_prediction(model, images, boxes):
    (attention,) = model.entails(images[0], TEXTS[0], attention=True).attention
    assert len(attention.boxes) == 4
    left, right = model.compare(images[0], images[1], TEXTS[0], attention=True).attention
    assert (len(left.boxes), len(right.boxes)) == (4, 6)
    np.testing.assert_array_equal(right.boxes[1:], images[1].boxes)
    (pointed,) = model.point(images[0], TEXTS[0], boxes[2], attention=True).attention
    whole = [[0, 0, WIDTH, HEIGHT]]
    seen = np.concatenate([whole, images[0].boxes, boxes[2].boxes])
    np.testing.assert_array_equal(pointed.boxes, seen)
    ranking = model.rank(images, TEXTS[0], attention=True)
    (attention,) = ranking.attention
    count = min(len(images[ranking.order[0]].boxes), R - 1)
    assert len(attention.boxes) == 1 + count
    assert model.answer(images[0], TEXTS[0]).attention == ()


def test_pictures_may_be_files_arrays_and_pillow(pixel_model, pictures):
    array = pixels_of(pictures[0])
    expected = pixel_model.answer(pictures[0], TEXTS[0])
    for image in (array, Image.fromarray(array), pixel_model.read(array).regions):
        same(pixel_model.answer(image, TEXTS[0]), expected)


def test_boxes_of_pictures_are_described(pixel_model, pictures):
    array = pixels_of(pictures[0])
    features = PixelExtractor(5).describe(array, np.array(BOXES, np.float32))
    with_features = Regions(np.array(BOXES, np.float32), features, 100, 80)
    same(
        pixel_model.point(pictures[0], TEXTS[0], BOXES),
        pixel_model.point(pictures[0], TEXTS[0], with_features),
    )


def test_boxes_that_are_none_are_refused(pixel_model, model, pictures, images):
    """Before a box without a size can win, and shares of the picture pass for its first pixel."""
    shares = np.array(BOXES) / (100, 80, 100, 80)
    features = np.ones((len(BOXES), F), np.float32)
    for ask in (pixel_model.point, lambda *a: pixel_model.ground(*a[:2], boxes=a[2])):
        for box in ([5, 5, 5, 9], [5, 5, 9, 5], [5, 5, 5, 5]):
            call = functools.partial(ask, pictures[0], "word1", [*BOXES, box])
            refused(rf"box {len(BOXES)} .* must be x1 < x2, y1 < y2", call)
        refused(
            r"0\.png: .*normalised: multiply x by 100 and y by 80",
            functools.partial(ask, pictures[0], "word1", shares.tolist()),
        )
    given = Regions(shares.astype(np.float32), features, 100, 80)
    refused("normalised: multiply x by 100", lambda: model.point(images[0], "word1", given))
    refused("normalised: multiply x by 100", lambda: model.answer(given, "word1"))
    flat = dataclasses.replace(given, boxes=np.full((len(BOXES), 4), 5, np.float32))
    refused("box 0 .* has no area", lambda: model.point(images[0], "word1", flat))


def test_boxes_of_another_picture_are_refused(model, images, boxes):
    image = dataclasses.replace(images[0], width=images[0].width + 1)
    refused(
        "the image has .* pixels, the boxes are of one of",
        lambda: model.point(image, "word1", boxes[0]),
    )


def test_a_model_of_words_and_boxes_needs_no_features(parts, pictures):
    model = predict.Predictor(
        *parts(region_source="none", image_descriptor="none", region_feature_dim=0),
        devices=jax.devices()[:1],
    )
    size = Regions(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32), 100, 80)
    same(
        model.ground(pictures[0], TEXTS[0], boxes=BOXES),
        model.ground(size, TEXTS[0], boxes=BOXES),
    )
    same(model.answer(None, TEXTS[0]), model.answer(pictures[0], TEXTS[0]))


def refused(match, call):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_detectors_model_says_what_to_pass(model, pictures, images):
    refused("detector found.*pass.*Regions", lambda: model.answer(pictures[0], "word1"))
    refused("features of the given boxes", lambda: model.point(images[0], "word1", boxes=BOXES))
    wide = dataclasses.replace(images[0], features=np.zeros((3, 7), np.float16))
    refused("size 7, must have 186", lambda: model.answer(wide, "word1"))


class Extractor:
    """A detector that sees the same in every picture."""

    name, feature_dim, num_regions = "mine", F, 3

    def extract(self, image):
        return regions_of(np.random.default_rng(0), 3, F)

    def describe(self, image, boxes):
        return np.ones((len(boxes), F), np.float32)


def test_an_extractor_may_be_given(parts, pictures, pixel_parts):
    model = predict.Predictor(*parts(), extractor=Extractor(), devices=jax.devices()[:1])
    regions = regions_of(np.random.default_rng(0), 3, F)
    same(model.answer(pictures[0], "word1"), model.answer(regions, "word1"))
    refused(
        "trained on regions of pixels-1-ground-5, the extractor is mine",
        lambda: predict.Predictor(*pixel_parts, extractor=Extractor()),
    )
    narrow = Extractor()
    narrow.feature_dim = 7
    refused("size 7, the model takes 186", lambda: predict.Predictor(*parts(), extractor=narrow))
    refused(
        "of size 186, its preprocessing says 7",
        lambda: predict.Predictor(*parts(region_feature_dim=7)),
    )


@pytest.mark.parametrize(
    "descriptor, match",
    [
        ("pixels-99-ground-5", "this version of the package makes 'pixels-1-ground-5'"),
        ("pixels-1-ground-5, pixels-1-cluttered-36", "pass extractor= to say which"),
        ("clip-3", "pass extractor= that makes these"),
    ],
)
def test_other_versions_of_the_extractor_are_refused(parts, pictures, descriptor, match):
    model = predict.Predictor(
        *parts(region_source="pixels", image_descriptor=descriptor, region_feature_dim=FEATURE_DIM)
    )
    refused(match, lambda: model.answer(pictures[0], "word1"))


def test_bad_arguments_say_what_is_wrong(model, pixel_model, images, boxes, pictures, tmp_path):
    refused("3 of image, 2 of question", lambda: model.answer(images[:3], TEXTS[:2]))
    refused("not trained on 'vqa2', but on vqa, ", lambda: model.answer(images[0], "a", "vqa2"))
    refused("can be used here: vqa, vgqa, gqa", lambda: model.answer(images[0], "a", "refcoco"))
    refused("can be used here: snli_ve", lambda: model.entails(images[0], "a", "nlvr2"))
    refused("text was expected, got 7", lambda: model.answer(images[0], 7))
    refused("text 1 of 1 is empty", lambda: model.answer(images[0], " "))
    refused("text 2 of 2 is empty", lambda: model.rank(images, ["a", ""]))
    for top in (0, "3", 2.5, None, True):
        refused(
            f"top must be .*, got {top!r}", lambda top=top: model.answer(images[0], "a", top=top)
        )
    refused("list of images", lambda: model.rank(images[0], "a"))
    refused("boxes of each", lambda: model.point(images[:2], "a", boxes[0]))
    refused("from 0 to 1", lambda: model.point(images[0], "a", boxes[1], choices=[2]))
    five = Regions(*(np.repeat(x, 5, axis=0) for x in (boxes[0].boxes, boxes[0].features)), 64, 48)
    refused("5 boxes, the model takes 4 at most", lambda: model.point(images[0], "a", five))
    refused("no such file|No such file", lambda: pixel_model.answer("nowhere.png", "a"))
    refused("got int", lambda: pixel_model.answer(3, "a"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    refused("broken.png: cannot be read", lambda: pixel_model.answer(str(broken), "a"))
    outside = [(0, 0, 500, 10)]
    refused("box 0 .* 100 x 80", lambda: pixel_model.point(pictures[0], "a", outside))
    refused("x1, y1, x2, y2", lambda: pixel_model.point(pictures[0], "a", [1, 2, 3]))


def test_long_texts_are_cut_but_not_silently(model, images):
    text = " ".join(f"word{i}" for i in range(20))
    with pytest.warns(UserWarning, match="1 of 2 texts have more than the 9 tokens"):
        long, _ = model.answer(images[0], [text, "word1"])
    same(long, model.answer(images[0], " ".join(f"word{i}" for i in range(7))))


def test_texts_of_unknown_words_are_told(model, images):
    with pytest.warns(UserWarning, match="knows no word of 'zxqv'"):
        model.answer(images[0], [TEXTS[0], "zxqv"])


def test_a_workdir_or_its_model_is_loaded(pixel_parts, pictures, pixel_model, tmp_path):
    save(tmp_path / "model", *pixel_parts)
    for path in (tmp_path, tmp_path / "model"):
        loaded = predict.load(path, devices=jax.devices()[:1])
        same(loaded.answer(pictures[0], "word1"), pixel_model.answer(pictures[0], "word1"))


def test_a_workdir_whose_model_is_damaged(pixel_parts, pictures, pixel_model, tmp_path, caplog):
    """A checkpoint of the run does instead; without one the damaged folder is named."""
    save(tmp_path / "model", *pixel_parts)
    truncate_arrays(tmp_path / "model")
    for path in (tmp_path, tmp_path / "model"):
        refused(f"{tmp_path / 'model'} is damaged", lambda path=path: predict.load(path))
    state.write_config(tmp_path, defaults.world_config())
    zero = np.zeros((), np.int32)
    with state.Checkpoints(tmp_path, CheckpointOptions(1, 1, 0, 0)) as checkpoints:
        saved = TrainState(zero, zero, zero, pixel_parts[0], {"count": zero})
        checkpoints.save(saved, state.Progress(7, {}, {}, {}, {}, 0.0))
    loaded = predict.load(tmp_path, devices=jax.devices()[:1])
    same(loaded.answer(pictures[0], "word1"), pixel_model.answer(pictures[0], "word1"))
    assert f"damaged model: {tmp_path / 'model'}" in caplog.text


def test_folders_without_a_model_are_told_apart(tmp_path):
    refused("holds no trained model", lambda: predict.load(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    refused("this run has not ended", lambda: predict.load(tmp_path))


@pytest.mark.parametrize("kind", ["answer", "ground", "point", "entails", "compare", "rank"])
def test_results_can_be_drawn(pixel_model, pictures, kind):
    if kind == "rank":
        result = pixel_model.rank(pictures, TEXTS[0], attention=True)
    else:
        result = asked(pixel_model, kind, pictures[0], TEXTS[0], BOXES, attention=True)
    panels = 3 if kind == "compare" else 2
    drawn = predict.picture(result)
    assert drawn.width > 320 + (panels - 1) * 480
    plain = predict.picture(dataclasses.replace(result, attention=()))
    assert plain.width < 400


def test_regions_and_no_image_are_drawn_blank(model, images):
    predict.picture(model.ground(images[0], TEXTS[0], attention=True))
    predict.picture(model.answer(None, TEXTS[0], attention=True))


# ------------------------------------------------------------------------------ command line


@pytest.fixture(scope="module")
def workdir(pixel_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    save(folder / "model", *pixel_parts)
    return folder


def run(*arguments):
    """(exit code, stdout, stderr) of the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(command, "load", functools.partial(predict.load, devices=jax.devices()[:1]))


@pytest.mark.parametrize("name", ["answer", "rank", "ground", "point", "entails", "compare"])
def test_every_command(workdir, pixel_model, pictures, name, tmp_path):
    shown = {"rank": pictures, "compare": pictures[:2]}.get(name, pictures[:1])
    corners = [",".join(map(str, box)) for box in BOXES] if name == "point" else []
    arguments = [name, "--model", workdir, "--image", *shown, "--text", TEXTS[0]]
    arguments += ["--boxes", *corners] if corners else []
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    (values,) = map(json.loads, out.splitlines())
    assert values["images"] == shown
    expected = {
        "answer": lambda: pixel_model.answer(pictures[0], TEXTS[0]),
        "rank": lambda: pixel_model.rank(pictures, TEXTS[0]),
        "ground": lambda: pixel_model.ground(pictures[0], TEXTS[0]),
        "point": lambda: pixel_model.point(pictures[0], TEXTS[0], BOXES),
        "entails": lambda: pixel_model.entails(pictures[0], TEXTS[0]),
        "compare": lambda: pixel_model.compare(*pictures[:2], TEXTS[0]),
    }[name]()
    theirs = json.loads(json.dumps(predict.to_json(expected)))
    assert values.keys() == theirs.keys()
    for key in values.keys() - {"images"}:
        if key not in ("probability", "probabilities", "score", "scores", "top"):
            assert values[key] == theirs[key]
    drawn = tmp_path / "drawn.png"
    code, out, err = run(*arguments, "--attention", "--picture", drawn, "--top", "2")
    assert (code, err) == (0, "")
    assert TEXTS[0] in out and "read most" in out
    assert pixels_of(drawn).shape[1] > 800


def test_requests_come_back_in_order_with_their_errors(workdir, pixel_model, pictures, tmp_path):
    lines = [
        {"image": pictures[0], "text": "word1", "id": "a"},
        {"image": "nowhere.png", "text": "word2"},
        {"image": pictures[1], "text": "word3", "task": "gqa", "top": 1},
        {"image": pictures[2], "text": "word4"},
        {"image": pictures[2], "text": "word4", "task": "nlvr2"},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    code, out, err = run("answer", "--model", workdir, "--requests", path)
    found = [json.loads(line) for line in out.splitlines()]
    assert [value.get("id", value.get("line")) for value in found] == ["a", 3, 5, 7, 9]
    assert [("error" in value) for value in found] == [False, True, False, False, True]
    assert "nowhere.png" in found[1]["error"] and "nlvr2" in found[4]["error"]
    assert code == 1 and "2 of 5 requests" in err
    expected = pixel_model.answer(pictures[1], "word3", "gqa", top=1)
    assert [found[2]["answer"], len(found[2]["top"])] == [expected.answer, 1]
    assert found[3]["answer"] == pixel_model.answer(pictures[2], "word4").answer


def test_a_top_that_is_no_number_costs_only_its_line(workdir, pictures, tmp_path):
    path = tmp_path / "requests.jsonl"
    tops = ["3", 2.5, None, True, [1], 2]
    asked = [{"image": pictures[0], "text": "word1", "top": top} for top in tops]
    path.write_text("\n".join(map(json.dumps, asked)) + "\n")
    code, out, err = run("answer", "--model", workdir, "--requests", path)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and "5 of 6 requests" in err
    assert [value["line"] for value in found] == [1, 2, 3, 4, 5, 6]
    for value, top in zip(found[:5], tops, strict=False):
        assert value["error"] == f"top must be a whole number from 1 on, got {top!r}"
    assert len(found[5]["top"]) == 2


@pytest.mark.parametrize("name", ["ground", "point"])
def test_boxes_that_are_null_cost_only_their_line(workdir, pictures, tmp_path, name):
    path = tmp_path / "requests.jsonl"
    asked = [{"image": pictures[0], "text": "word1", "boxes": boxes} for boxes in (None, BOXES)]
    path.write_text("\n".join(map(json.dumps, asked)) + "\n")
    code, out, _ = run(name, "--model", workdir, "--requests", path)
    first, second = map(json.loads, out.splitlines())
    assert code == 1 and "boxes of image 0 are None: pass some" in first["error"]
    assert second["line"] == 2 and "error" not in second


@pytest.mark.parametrize(
    "name, request_of",
    [
        ("rank", lambda p: {"images": p, "text": "word1"}),
        ("ground", lambda p: {"image": p[0], "text": "word1"}),
        ("point", lambda p: {"image": p[0], "text": "word1", "boxes": BOXES, "choices": [0, 2]}),
        ("compare", lambda p: {"left": p[0], "right": p[1], "text": "word1"}),
    ],
)
def test_requests_of_every_form(workdir, pictures, tmp_path, name, request_of):
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(request_of(pictures)) + "\n")
    code, out, err = run(name, "--model", workdir, "--requests", path)
    assert (code, err) == (0, "")
    (values,) = map(json.loads, out.splitlines())
    assert values["line"] == 1 and values["text"] == "word1"


@pytest.mark.parametrize(
    "text, match",
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 should be an object"),
        ('{"image": "a"}', "missing keys .'text'."),
        ('{"image": "a", "text": "b", "txt": 1}', "unknown keys .'txt'."),
        ("{\n[]", r"line 1 is not JSON.*\n  line 2 should be an object"),
        ("", "holds no request"),
    ],
)
def test_bad_request_files_are_refused_before_anything_is_loaded(tmp_path, text, match):
    path = tmp_path / "requests.jsonl"
    path.write_text(text)
    code, out, err = run("answer", "--model", tmp_path / "none", "--requests", path)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {path}")
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(err)


def test_command_errors_are_one_line(workdir, pictures, tmp_path):
    ask = ["--model", workdir, "--text", "word1", "--image"]
    for arguments, message in (
        (["answer", "--model", tmp_path, *ask[2:], pictures[0]], "no trained model"),
        (["answer", *ask, "nowhere.png"], "nowhere.png"),
        (["answer", *ask, pictures[0], "--task", "vq"], "'vq'"),
        (["answer", *ask, pictures[0], "--picture", tmp_path / "no" / "a.png"], "--picture"),
        (["answer", *ask, "1", "--regions", "npy:nowhere"], "nowhere"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert err.startswith("error: ") and message in err and err.count("\n") == 1
    for arguments, message in (
        (["point", *ask, pictures[0]], "pass --boxes"),
        (["compare", *ask, pictures[0]], "two images"),
        (["point", *ask, pictures[0], "--boxes", "1,2"], "x1,y1,x2,y2"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and message in err


def test_help_explains_every_command():
    for name in command._COMMANDS:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert f"python -m twelve_in_one.predict {name} --model" in out
        assert ("a request: {" in out) == (name not in command._WITHOUT_REQUESTS)
    assert "or among --boxes and the whole image, which is box 0" in run("ground", "--help")[1]


def test_neither_tensorflow_nor_the_data_libraries_are_needed_for_regions():
    blocked = ("tensorflow", "tensorflow_datasets", "PIL", "scipy", "tokenizers", "matplotlib")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import twelve_in_one.predict.__main__
from twelve_in_one.data.stored.preprocessing import Preprocessing
from twelve_in_one.predict.inputs import ImageReader
try:
    made = Preprocessing("", 1, True, {{}}, {{}}, 112, "pixels", "pixels-1-ground-16")
    ImageReader(made).read("a")
except ImportError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pip install 'twelve_in_one[data]'" in ran.stdout


# ------------------------------------------------------------------ tasks on a user's own data


def test_tasks_of_ones_own(parts, random_params, images, tmp_path):
    """Their labels are those of their heads, and the only task that fits need not be named."""
    _, config, serving = parts()
    known = {task.name: task for task in TASKS}
    own = {"mine": ("snli_ve", ("fine", "odd")), "pair": ("nlvr2", ("a", "b", "c"))}
    tasks = tuple(
        dataclasses.replace(known[like], name=name, head=name) for name, (like, _) in own.items()
    )
    config = dataclasses.replace(config, own_heads=(("mine", 2, 1), ("pair", 3, 2)))
    answers = ANSWERS | {name: labels for name, (_, labels) in own.items()}
    model_folder.save(
        tmp_path / "model",
        random_params(config),
        Vilbert(config),
        dataclasses.replace(serving, tasks=tasks, answers=answers),
    )
    loaded = predict.load(tmp_path, devices=jax.devices()[:1], max_batch=2)
    assert loaded.serving.tasks == tasks and loaded.serving.answers == answers
    one = loaded.entails(images[0], TEXTS[0])
    assert tuple(one.probabilities) == ("fine", "odd") and one.label in ("fine", "odd")
    assert one == loaded.entails(images[0], TEXTS[0], "mine")
    two = loaded.compare(images[0], images[1], TEXTS[0])
    assert tuple(two.probabilities) == ("a", "b", "c")
    assert two.label == max(two.probabilities, key=two.probabilities.get)
    with pytest.raises(ValueError, match=r"trained on mine \(verdict\), pair \(verdict\)"):
        loaded.answer(images[0], TEXTS[0])
    (tmp_path / "model" / "answers-pair.json").unlink()
    with pytest.raises(ValueError, match=r"answers-pair.json is missing"):
        predict.load(tmp_path)
