"""Data sets of a user's own: built from records and pictures, read as any other dataset."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from twelve_in_one.config import image_defaults
from twelve_in_one.config.check import MIXTURE, check
from twelve_in_one.config.settings import OwnTaskOptions
from twelve_in_one.data import own, own_inputs, own_spec
from twelve_in_one.data.inputs import open_inputs
from twelve_in_one.data.own_spec import Spec
from twelve_in_one.data.stored.reader import built_folder, open_split
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.lit_decoder import SYSTEM
from twelve_in_one.tasks.metrics.boxes import iou
from twelve_in_one.tasks.own import own_task
from twelve_in_one.training import prepare

COLOURS = ("red", "green", "blue")
NUMBER = 12


def box_of(i):
    return [4 + i, 8, 24 + i, 24]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of a square each, in a folder of the folder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "shelf").mkdir()
    for i in range(NUMBER):
        picture = Image.new("RGB", (48, 32), (230, 230, 220))
        ImageDraw.Draw(picture).rectangle(box_of(i), fill=COLOURS[i % 3])
        picture.save(folder / f"shelf/{i}.png")
    return folder


def name(i):
    return f"shelf/{i % NUMBER}.png"


RECORDS = {
    # Which pictures are tested on is said here, and drawn in the others.
    "asked": [
        {
            "image": name(i),
            "question": f"what colour is number {i}?",
            "answers": [COLOURS[i % 3]] * 2 + ["pink"],
            "split": "test" if i % NUMBER == 0 else "val" if i % NUMBER == 1 else "train",
        }
        for i in range(2 * NUMBER)
    ],
    "captioned": [{"image": name(i), "captions": [f"square {i}", "a"]} for i in range(NUMBER)],
    "meant": [
        {"image": name(i), "expression": f"square {i}", "box": box_of(i)} for i in range(NUMBER)
    ],
    "stated": [
        {"image": name(i), "statement": f"it is {i}", "label": ("fine", "odd")[i % 2]}
        for i in range(NUMBER)
    ],
    "compared": [
        {"left": name(i), "right": name(i + 6), "statement": f"both {i}", "label": i % 2 == 0}
        for i in range(6)
    ],
}
LIKES = dict(asked="vqa", captioned="coco", meant="refcoco", stated="snli_ve", compared="nlvr2")
# Shapes as a config gives them; features of things on an even ground.
SHAPES = dict(max_tokens=12, max_regions=6, num_choices=0, detected_slots=6, batch_size=2)
SHAPES |= dict(learning_rate=1e-3, loss_scale=0.0, accumulate=1, features="pixels")


def options_of(folder, photos, key, **fields):
    path = folder / f"{key}.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS[key])))
    labels = ("fine", "odd") if key == "stated" else ()
    defaults = dict(like=LIKES[key], jsonl=str(path), images=str(photos), labels=labels)
    return OwnTaskOptions(**{**SHAPES, **defaults, **fields})


@pytest.fixture(scope="module")
def spec(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return Spec({key: options_of(folder, photos, key) for key in RECORDS}, "pixels")


@pytest.fixture(scope="module")
def folder(spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    assert not own_spec.is_built(path, spec)
    own.build(path, spec)
    assert own_spec.is_built(path, spec)
    return open_folder(path, "pixels")


def task_of(spec, key):
    return dataclasses.replace(own_task(key, spec.sets[key]), max_tokens=12, max_regions=6)


def rows_of(folder, spec, key, split="train"):
    """Each example of a split, with its place in the file."""
    stream = open_stream(folder, task_of(spec, key), split, batch_size=4, training=False)
    for number in range(stream.selection.num_batches):
        batch = stream.batch(number)
        for i in np.flatnonzero(batch["_mask"]):
            line = int(batch["example_id"][i].partition("#")[0].rpartition("-")[2]) - 1
            yield RECORDS[key][line], {k: v[i] for k, v in batch.items() if np.ndim(v)}, stream


def test_questions(folder, spec):
    names = folder.answers["asked"]
    assert set(names) == {*COLOURS, "pink"} and names[0] == "pink"  # the most frequent one
    seen = 0
    for record, row, stream in rows_of(folder, spec, "asked"):
        scores = dict(zip(names, row["targets"].tolist(), strict=True))
        right = record["answers"][0]
        expected = dict.fromkeys(names, 0) | {right: 2 / 3, "pink": 1 / 3}
        assert scores == pytest.approx(expected)
        assert stream.encoding.tokenizer.decode(row["tokens"]) == record["question"].replace(
            "?", " ?"
        )
        seen += 1
    clean = [
        name(i).replace("/", "%2F") not in folder.clean.images["own/asked"] for i in range(NUMBER)
    ]
    assert seen == 2 * sum(clean[2:])


def build_with_pictures(tmp_path, photos, key):
    records = options_of(tmp_path, photos, key)
    folder = tmp_path / "built"
    given = ["--like", records.like, "--jsonl", records.jsonl, "--images", f"keep:{photos}"]
    assert own.main([key, *given, "--data_dir", str(folder), "--jobs", "1"]) == 0
    return folder


def test_a_pixel_system_trains_on_records_with_pictures(photos, tmp_path):
    """From raw files to a batch, of two data sets in one folder."""
    config = image_defaults.get_config(
        SYSTEM,
        LitDecoderConfig(
            ViTConfig(8, 1, 2, 16, image_size=(16, 16), patch_size=8),
            TextDecoderConfig(8, 1, 2, 16, max_tokens=40, encoder_dim=8),
            max_prompt=32,
        ),
        {
            "ask": dict(source="questions:asked/{split}", group="vqa", random_crop=False),
            "say": dict(source="captions:captioned/{split}", group="caption", random_crop=False),
        },
    )
    config.mixture.weighting, config.mixture.batch_size = "pairs", 8
    config.text.vocab_size = 60
    for key in ("asked", "captioned"):
        folder = build_with_pictures(tmp_path, photos, key)
    config.data.dir = str(folder)
    run = check(config)
    prepare.prepare(run, tmp_path)
    inputs = open_inputs(run, tmp_path)
    stream = inputs.train_streams(inputs.system())[MIXTURE]
    batch, words = stream.batch(0), inputs.tokenizer
    assert batch["images"].shape == (8, 16, 16, 3) and batch["_mask"].all()
    texts = [words.decode(row) for row in batch["tokens"]]
    ids = [x.decode() for x in batch["example_id"]]
    for text, task, example in zip(texts, batch["task_id"], ids, strict=True):
        if task:  # an image with all its captions
            assert text.removeprefix("say: ") in ("a", f"square {example[8:-4]}")
        else:
            number = int(example.partition("#")[0].rpartition("-")[2]) - 1
            asked, _, answer = text.partition("? ")
            assert asked == f"ask: what colour is number {number}"
            assert answer in (COLOURS[number % 3], "pink")
    # How much of what is evaluated was trained on, by any of the tasks.
    seen = inputs.trained_on({})
    told = inputs.for_tests(seen, True)
    for task in told.tasks:
        trained = told.evaluation_stream(task, "train", inputs.system()).selection.seen
        assert trained.records == trained.of_records and trained.images == trained.of_images
        tested = told.evaluation_stream(task, "test", inputs.system()).selection.seen
        assert tested.records == 0 and tested.of_records in (2, 4)
        names = {"ask": "asked", "say": "captioned"}
        test = open_split(built_folder(folder, names[task.task.name], "none"), "test")
        both = [
            set(open_split(built_folder(folder, name, "none"), "train").index.image_ids[:, 0])
            for name in names.values()
        ]
        assert tested.images == len(set(test.index.image_ids[:, 0]) & set.union(*both))
    split = open_split(built_folder(folder, "asked", "none"), "train")
    file = photos / str(split.index.image_ids[0, 0]).replace("%2F", "/")
    assert split.record(0).pictures[0].data == file.read_bytes()


def test_pictures_that_cannot_be_kept(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "shelf" / "3.png").write_bytes(b"<html>")
    records = options_of(tmp_path, photos, "captioned")
    given = ["captioned", "--like", "coco", "--jsonl", records.jsonl, "--data_dir"]
    kept = ["--images", f"keep:{tmp_path / 'photos'}", "--jobs", "1"]
    assert own.main([*given, str(tmp_path / "built"), *kept]) == 1
    err = capsys.readouterr().err
    assert "picture 'shelf/3.png' cannot be read" in err
    with pytest.raises(SystemExit):
        own.main(["captioned", "--like", "cocoa", "--data_dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        own.main(["captioned", "--like", "coco", "--data_dir", str(tmp_path)])
    assert "captioned.jsonl: name a file of records" in capsys.readouterr().err


def test_statements_with_labels_of_ones_own_and_pairs(folder, spec):
    assert folder.answers["stated"] == ("fine", "odd")
    for record, row, _ in rows_of(folder, spec, "stated"):
        assert ("fine", "odd")[row["targets"].argmax()] == record["label"]
    for record, row, stream in rows_of(folder, spec, "compared"):
        assert bool(row["targets"].argmax()) == record["label"]
        index = stream.selection.reader.index
        place = list(index.record_ids).index(
            "&".join(record[side].replace("/", "%2F") for side in ("left", "right"))
        )
        ids = [record[side].replace("/", "%2F") for side in ("left", "right")]
        assert index.image_ids[place].tolist() == ids


def test_expressions(folder, spec):
    overlaps = []
    for record, row, stream in rows_of(folder, spec, "meant"):
        reader = stream.selection.reader
        place = list(reader.index.record_ids).index(record["image"].replace("/", "%2F"))
        boxes = reader.record(place).images[0].boxes[:6]
        expected = iou(boxes, np.array(record["box"], np.float32))
        np.testing.assert_allclose(row["targets"][: len(boxes)], expected, rtol=1e-5)
        overlaps.append(expected.max())
    assert np.median(overlaps) > 0.5  # regions are where the squares are


def test_captions(folder, spec):
    for record, row, stream in rows_of(folder, spec, "captioned"):
        texts = [stream.encoding.tokenizer.decode(tokens) for tokens in row["tokens"]]
        assert texts[0] in record["captions"] and row["targets"] == 0


def test_nobody_trains_on_what_another_is_tested_on(folder, spec):
    tested = {row["image"] for row in RECORDS["asked"] if row["split"] == "test"}
    for key in ("captioned", "meant", "stated"):
        assert not tested & {record["image"] for record, *_ in rows_of(folder, spec, key)}
        raw = own_inputs.read_all(folder.path, spec)[key].splits["train"].images
        held_out = {image for image in folder.clean.images["own/asked"]}
        assert {"shelf%2F0.png"} <= held_out and raw


def test_heads(spec):
    heads = {key: own_task(key, options).head for key, options in spec.sets.items()}
    assert heads == dict(
        asked="asked",
        captioned="image_text_match",
        meant="region_score",
        stated="stated",
        compared="image_pair",
    )
    shared = dataclasses.replace(spec.sets["asked"], answers="gqa")
    assert own_task("asked", shared).head == "gqa"


def test_another_file_is_not_taken_for_the_one_that_was_built(folder, spec, tmp_path):
    options = spec.sets["asked"]
    path = tmp_path / "asked.jsonl"
    lines = Path(options.jsonl).read_text()
    path.write_text(lines.replace("pink", "rose"))
    other = dataclasses.replace(options, jsonl=str(path))
    changed = dataclasses.replace(spec, sets={**spec.sets, "asked": other})
    with pytest.raises(DataError, match="other settings or files: asked.jsonl. Take another work"):
        own_spec.is_built(folder.path, changed)
    path.write_text(lines)
    assert own_spec.is_built(folder.path, changed)  # it has moved
    path.unlink()
    assert own_spec.is_built(folder.path, changed)  # and is gone
    with pytest.raises(DataError, match=r"config.task.asked.jsonl=.*: no such file"):
        own_spec.check_files(changed)


def test_regions_of_a_store(folder, spec, tmp_path):
    """Records say "shelf/3.png", the store's key is another spelling."""
    (store,) = (folder.path / "regions").glob("*/own/asked")
    options = options_of(tmp_path, "", "asked", features=f"records:{store}", images="")
    records = [{**row, "image": row["image"].replace("/", "%2F")} for row in RECORDS["asked"]]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, records)))
    small = Spec({"asked": options}, "detected")
    own.build(tmp_path / "built", small)
    found = open_folder(tmp_path / "built", "detected")
    expected = {row["question"]: x["regions"] for row, x, _ in rows_of(folder, spec, "asked")}
    seen = {row["question"]: x["regions"] for row, x, _ in rows_of(found, small, "asked")}
    assert expected.keys() <= seen.keys()
    for question, regions in expected.items():
        np.testing.assert_array_equal(seen[question], regions)


def test_mistakes_of_all_data_sets_are_told_at_once(photos, tmp_path):
    sets = {}
    for key, field in (("asked", "image"), ("meant", "box")):
        sets[key] = options_of(tmp_path, photos, key)
        wrong = [{**row, field: None} for row in RECORDS[key]]
        (tmp_path / f"{key}.jsonl").write_text("\n".join(map(json.dumps, wrong)))
    with pytest.raises(DataError) as error:
        own_inputs.read_all(tmp_path, Spec(sets, "pixels"))
    for text in ("asked: 24 of 24 records", "no 'image'", "meant: 12 of 12 records", "no 'box'"):
        assert text in str(error.value)
    assert str(error.value).count("asked.jsonl: line") == 20 and "and 4 more" in str(error.value)


def test_what_is_no_picture_is_an_unusable_record(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    options = options_of(tmp_path, folder, "asked", max_skipped_share=0.5)
    first = RECORDS["asked"][0]["image"]
    (folder / first).write_text("<html>not found</html>")
    found = own_inputs.read_all(tmp_path, Spec({"asked": options}, "pixels"))["asked"]
    lost = sum(row["image"] == first for row in RECORDS["asked"])
    assert any(f"{lost} records cannot be used" in note for note in found.notes), found.notes


def test_records_that_all_want_the_same_are_told(photos, tmp_path, capsys):
    options = options_of(tmp_path, photos, "asked")
    same = [{**row, "answers": ["yes"]} for row in RECORDS["asked"]]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, same)))
    own.build(tmp_path / "built", Spec({"asked": options}, "pixels"))
    assert "asked: all training records have the same answer" in capsys.readouterr().out


def test_beside_other_datasets(small_world, photos, tmp_path):
    """Their words keep their numbers, their records and answers are at hand."""
    options = options_of(tmp_path, photos, "asked")
    own.build(tmp_path / "built", Spec({"asked": options}, "pixels", str(small_world.data)))
    found = open_folder(tmp_path / "built", "pixels")
    base = open_folder(small_world.data, "pixels")
    count = base.tokenizer.vocab_size
    assert found.tokenizer.vocabulary[:count] == base.tokenizer.vocabulary
    assert {"5", "##1"} <= set(found.tokenizer.vocabulary[count:])
    assert set(found.answers) == {"vqa", "gqa", "asked"}
    assert found.answers["vqa"] == base.answers["vqa"]
    assert found.built("vqa") == base.built("vqa") and found.built("asked") != base.built("vqa")
    for domain, images in base.clean.images.items():
        assert found.clean.images[domain] == images


def test_a_dataset_of_hugging_face(photos, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    columns = [
        {"image": str(photos / name(i)), "statement": f"it is {i}", "label": i % 2, "more": 1}
        for i in range(2 * NUMBER)
    ]
    features = datasets.Features(
        image=datasets.Image(),
        statement=datasets.Value("string"),
        label=datasets.ClassLabel(names=["odd", "fine"]),
        more=datasets.Value("int64"),
    )
    rows = datasets.Dataset.from_list(columns, features=features)
    rows = rows.map(lambda row: row)  # pictures are now in the rows
    parts = datasets.DatasetDict(
        train=rows.select(range(16)), validation=rows.select(range(16, 24))
    )
    parts.save_to_disk(str(tmp_path / "saved"))
    options = options_of(
        tmp_path, "", "stated", jsonl="", images="", hf=str(tmp_path / "saved"), features="pixels"
    )
    found = own_inputs.read_all(tmp_path, Spec({"stated": options}, "pixels"))["stated"]
    assert {s: len(x.annotations) for s, x in found.splits.items()} == dict(train=16, val=8)
    labels = [a.label for a in found.splits["train"].annotations]
    assert labels == [1, 0] * 8  # by the names "fine", "odd" of the task
    assert len(found.pictures) == NUMBER  # of 24 rows
    for path in found.pictures.values():
        with Image.open(path) as picture:
            assert picture.size == (48, 32)
    assert any("more (24)" in note for note in found.notes)
    one = dataclasses.replace(options, hf=f"{tmp_path / 'nowhere'}:train")
    with pytest.raises(DataError, match="cannot be loaded"):
        own_inputs.read_all(tmp_path, Spec({"stated": one}, "pixels"))
