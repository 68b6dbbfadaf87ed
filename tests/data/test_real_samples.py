"""Small files of the samples' forms, built and read back; and the real ones, as they are read."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data import real_samples, text_baselines, trained_on
from twelve_in_one.data.annotations import refcoco_rows
from twelve_in_one.data.builders import real_sets
from twelve_in_one.data.stored.reader import built_folder, open_split, read_build_info
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import open_folder, open_stream
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}
PHOTOS = range(101, 113)
SIZE = (64, 48)
NAMES = ("vqa", "gqa", "coco", "refcoco", "refcoco+", "refcocog", "snli_ve")
WORDS = ("red", "left", "cup", "dog", "behind", "tall")


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix in (".gz", ".gzip") else data)


def write_vqa(folder: Path, split: str, images, *, offset=0, style="vqa", ending=".gzip"):
    questions, annotations = [], []
    for image in images:
        ids = {"image_id": image, "question_id": image * 1000 + offset, "split": split}
        answers = [{"answer": a, "answer_id": i} for i, a in enumerate(["yes"] * 7 + ["no"] * 3)]
        questions.append({**ids, "question": f"is the {WORDS[image % 6]} here?"})
        annotations.append({**ids, "answers": answers, "multiple_choice_answer": "yes"})
    word = "annotatons" if style == "vqa" else "annotations"
    write(folder / f"{style}_questions_{split}{ending}", {"questions": questions})
    write(folder / f"{style}_{word}_{split}{ending}", {"annotations": annotations})


def rows(images, boxes=3, step=7):
    """`boxes` expressions an image, each about a box of its own."""
    return [
        {
            "img_id": f"COCO_train2014_{image:012d}_{k}",
            "sents": f"{WORDS[k % 6]} thing {k}",
            "bbox": [1 + step * k, 2, 6, 20 + k],
            "width": SIZE[0],
            "height": SIZE[1],
        }
        for image in images
        for k in range(boxes)
    ]


def gqa(keys, image_of, answer="yes"):
    question = "is it {}?"
    return {
        key: {
            "imageId": image_of(key),
            "question": question.format(WORDS[int(key) % 6]),
            "answer": answer,
        }
        for key in keys
    }


def table(images, labels=("entailment", "neutral", "contradiction")):
    lines = [",pairID,Flickr30kID,hypothesis,gold_label,explanation"]
    for image in images:
        lines += [
            f'{i},{image}.jpg#{i}r,{image}.jpg,"A {WORDS[i]}, alone.",{label},none'
            for i, label in enumerate(labels)
        ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Files of every set. The photos are those of some questions and expressions, too."""
    folder = tmp_path_factory.mktemp("samples")
    write_vqa(folder / "vqav2", "train", [*range(1, 30), *PHOTOS])
    write_vqa(folder / "vqav2", "valid", range(31, 40))
    write(folder / "vqav2/trainval_label2ans.json", ["no", "yes", "maybe"])
    annotations = folder / "coco/annotations"
    write_vqa(annotations, "subset", [*PHOTOS][:5], style="vqav2", ending=".json")
    # One question that is nowhere else.
    about = json.loads((annotations / "vqav2_questions_subset.json").read_text())
    replies = json.loads((annotations / "vqav2_annotations_subset.json").read_text())
    for content, key in ((about, "questions"), (replies, "annotations")):
        content[key].append({**content[key][0], "question_id": 101_009})
    write(annotations / "vqav2_questions_subset.json", about)
    write(annotations / "vqav2_annotations_subset.json", replies)
    images = [
        {"id": photo, "file_name": f"{photo:012d}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for photo in PHOTOS
    ]
    captions = [
        {"image_id": photo, "id": 10 * photo + k, "caption": f"a {WORDS[k]} and a {photo} dog"}
        for photo in PHOTOS
        for k in range(2)
    ]
    write(annotations / "captions_subset.json", {"images": images, "annotations": captions})
    rng = np.random.default_rng(0)
    (folder / "coco/images").mkdir()
    for photo in PHOTOS:
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        coarse.resize(SIZE, Image.Resampling.NEAREST).save(folder / f"coco/images/{photo:012d}.jpg")
    write(folder / "refcoco/refcoco_val.json.gz", rows(range(1, 40)))
    write(folder / "refcoco/refcoco+_val.json.gz", rows(range(1, 40), step=8))
    write(folder / "refcoco/refcocog_val.json.gz", rows([*range(20, 40), *PHOTOS], boxes=2))
    first = gqa(map(str, range(60)), lambda key: f"n{int(key) % 30}")
    second = gqa(map(str, range(50, 90)), lambda key: f"n{int(key) % 30}")
    write(folder / "gqa/testdev_balanced_questions.json", first)
    write(folder / "gqa/xgqa_en_train_48.json.gz", second)
    write(folder / "gqa/trainval_label2ans.json", ["yes", "no"])
    write(folder / "snli_ve/esnlive_dev.csv.gz", table(range(500, 540)))
    return folder


def run(*arguments):
    """(exit code, stdout, stderr) of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = real_samples.main(["--jobs", "1", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
    return code, out.getvalue(), err.getvalue()


@dataclasses.dataclass(frozen=True)
class Built:
    data: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def built(samples, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    code, out, err = run("--samples", samples, "--data_dir", data)
    assert code == 0, err
    return Built(data, out, err)


def reader(data: Path, name: str, split: str):
    return open_split(built_folder(data, name, "real"), split)


def annotations(data: Path, name: str, split: str):
    found = reader(data, name, split)
    return [
        (found.index.record_ids[i], annotation)
        for i in range(len(found.index.counts))
        for annotation in found.record(i).annotations
    ]


def counts(text: str) -> dict[tuple[str, str], list[int]]:
    """The table of what was read: (dataset, split) -> read, kept, repeated, skipped."""
    lines = [line.split() for line in text.split("\n\n")[0].splitlines()[1:]]
    return {(name, split): [*map(int, cells)] for name, split, *cells in lines}


def test_everything_is_built_under_one_name(built, samples):
    folder = open_folder(built.data, "real")
    assert folder.answers == {"vqa": ("no", "yes", "maybe"), "gqa": ("yes", "no")}
    for name in NAMES:
        training = open_stream(folder, TASKS[name], "train", batch_size=2, training=True)
        assert training.batch(0)["_mask"].all()
        images = [
            {record for record, _ in annotations(built.data, name, s)} for s in ("train", "val")
        ]
        assert images[0] and images[1] and not images[0] & images[1]
    table = counts(built.out)
    assert {name for name, _ in table} == set(NAMES)
    for (name, split), (read, kept, repeated, skipped) in table.items():
        assert read == kept + repeated + skipped
        assert kept == len(annotations(built.data, name, split))
    assert table["vqa", "train"] == [47, 42, 5, 0] and table["vqa", "val"] == [9, 9, 0, 0]
    both = np.add(table["gqa", "train"], table["gqa", "val"])
    assert both.tolist() == [100, 90, 10, 0]


def test_splits_are_by_image_alike_in_all_sets(built):
    for name in NAMES[1:]:
        for split in ("train", "val"):
            for image, _ in annotations(built.data, name, split):
                assert real_sets.is_held_out(str(image)) == (split == "val")
    drawn = np.mean([real_sets.is_held_out(str(i)) for i in range(5000)])
    assert abs(drawn - 0.2) < 0.02


def test_photos_have_regions_and_nothing_else_has(built):
    for name in NAMES:
        for split in ("train", "val"):
            found = reader(built.data, name, split)
            for i, image in enumerate(found.index.record_ids):
                record = found.record(i)
                is_photo = str(image).isdecimal() and int(image) in PHOTOS
                assert (record.images[0].features.shape[1] > 0) == is_photo, (name, image)
                if name == "refcocog" and is_photo:
                    assert record.annotated.features.shape[0] == 2
                    assert record.annotated.features.any(axis=1).all()


@pytest.mark.parametrize("name", ["refcoco", "refcoco+"])
def test_candidates_are_the_boxes_of_both_sets(built, name):
    task = dataclasses.replace(TASKS[name], max_regions=9)
    stream = open_stream(
        open_folder(built.data, "real"),
        task,
        "val",
        batch_size=64,
        training=False,
        feature_dim=5,
        encoding_options={"candidates": "annotated"},
    )
    batch = stream.batch(0)
    real = batch["_mask"]
    # Boxes 1 + 7 k of RefCOCO and 1 + 8 k of RefCOCO+; the first is the same.
    wanted = {(1, 2, 7, 22)}
    wanted |= {(1 + step * k, 2, 7 + step * k, 22 + k) for step in (7, 8) for k in (1, 2)}
    assert real.any() and not batch["regions"].any()
    for boxes, mask, target, key in zip(
        batch["boxes"][real],
        batch["region_mask"][real],
        batch["targets"][real],
        batch["example_id"][real],
        strict=True,
    ):
        assert mask.tolist() == [True] * 6 + [False] * 3
        pixels = boxes[1:6, :4] * (*SIZE, *SIZE)
        assert {tuple(np.round(box).astype(int).tolist()) for box in pixels} == wanted
        k = int(key.split("#")[0].rsplit("_", 1)[1])
        step = 7 if name == "refcoco" else 8
        right = 1 + int(np.argmin(np.abs(pixels - (1 + step * k, 2, 7 + step * k, 22 + k)).sum(1)))
        assert target.argmax() == right and target[right] == pytest.approx(1)


def test_chance_is_a_guess_among_the_candidates(built):
    """Of five boxes an image, two and two are so alike that either is right if one is meant."""
    task = dataclasses.replace(TASKS["refcoco"], max_regions=9)
    found = text_baselines.score_task(
        open_folder(built.data, "real"), task, "val", max_examples=1000, candidates="annotated"
    )
    # Of expressions 0, 1 and 2. Columns 15 to 21 and 17 to 23 share five of nine.
    right = [1, 2, 2]
    assert found.chance == pytest.approx(np.mean(right) / 5)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Files of another origin, in no order, beside some that have nothing to do with it."""
    folder = tmp_path_factory.mktemp("more")
    write_vqa(folder / "a", "test", range(1, 6), offset=500)  # of images that are trained on
    write_vqa(folder / "b", "other", range(200, 203))
    write(folder / "refcoco_testA.json", rows(range(300, 310)))
    write(folder / "refcoco+_testA.json.gz", rows(range(300, 310), step=8))
    write(folder / "refcoco_testB.json.gz", rows(range(20, 25), boxes=1))
    write(folder / "esnlive_test.csv", table(range(700, 704)))
    write(folder / "gqa/test_balanced_questions.json", gqa(["900"], lambda key: "n900"))
    write(folder / "notes.txt", "none")
    return folder


def test_held_out_files_are_tests(built, samples, held_out, tmp_path):
    data = shutil.copytree(built.data, tmp_path / "data")
    code, out, err = run("--samples", samples, "--data_dir", data, "--held_out", held_out)
    assert code == 0, err
    assert f"{held_out / 'notes.txt'}: not used" in err and err.count("not used") == 1
    assert len(annotations(data, "vqa", "test")) == 8
    assert len(annotations(data, "snli_ve", "test")) == 12
    assert len(annotations(data, "gqa", "test")) == 1
    assert len(annotations(data, "refcoco", "testA")) == 30
    assert len(annotations(data, "refcoco", "testB")) == 5
    found = reader(data, "refcoco", "testA")
    assert all(len(found.record(i).box_ids) == 5 for i in range(10))
    assert "vqa/test: 5 of 8 images and 0 of 8 records are also in train" in out
    assert "refcoco/testA: 0 of 10 images and 0 of 30 records are also in train" in out
    # What was trained on, and the words, are the same as without.
    for name in NAMES:
        for split in ("train", "val"):
            assert annotations(data, name, split) == annotations(built.data, name, split)
    for file in ("vocab.txt", "answers-vqa.json", "answers-gqa.json"):
        assert (data / file).read_bytes() == (built.data / file).read_bytes()
    # Nobody may train on images that RefCOCO is tested on.
    folder = open_folder(data, "real")
    cleaned = open_stream(folder, TASKS["refcoco+"], "train", batch_size=1, training=True).selection
    trained = {int(i) for i in cleaned.reader.index.record_ids[cleaned.records]}
    before = {int(image) for image, _ in annotations(data, "refcoco+", "train")}
    assert trained == before - set(range(20, 25)) != before
    # The same once more changes nothing.
    code, out, _ = run("--samples", samples, "--data_dir", data, "--held_out", held_out)
    assert code == 0 and out.count("was there") == 2 * len(NAMES) + 6


def test_what_was_trained_on_is_not_tested(built, samples, tmp_path):
    """A model trained before a folder was named has seen some of it: said, and left out."""
    folder, more = open_folder(built.data, "real"), tmp_path / "more"
    task = TASKS["gqa"]
    train = open_stream(folder, task, "train", batch_size=1, training=True)
    seen = trained_on.of_streams([train])
    known = sorted((a.example_id, image) for image, a in annotations(built.data, "gqa", "train"))
    images = dict(known[:3]) | {"900": known[0][1], "901": "n900"}
    write(more / "test_balanced_questions.json", gqa(list(images), images.__getitem__))
    data = shutil.copytree(built.data, tmp_path / "data")
    code, out, err = run("--samples", samples, "--data_dir", data, "--held_out", more)
    assert code == 0, err
    number = len(set(images.values()))
    assert f"gqa/test: {number - 1} of {number} images and 3 of 5 records are also in train" in out

    def ids(**options):
        now = dataclasses.replace(open_folder(data, "real"), trained_on=seen, **options)
        stream = open_stream(now, task, "test", batch_size=8, training=False)
        return sorted(i for i in stream.batch(0)["example_id"] if i), stream.selection.seen

    found, numbers = ids()
    assert found == ["900", "901"]
    assert dataclasses.astuple(numbers)[:5] == (3, 5, number - 1, number, True)
    found, numbers = ids(keep_trained_on=True)
    assert len(found) == 5 and numbers.records == 3 and not numbers.left_out
    with pytest.raises(DataError, match=r"gqa/train: all \d+ records .* --keep_trained_on"):
        everything = dataclasses.replace(folder, trained_on=seen)
        open_stream(everything, task, "train", batch_size=8, training=False)


def test_official_records_of_samples(built):
    """Kept beside the questions that are validated on, out of the samples' own files."""
    for name, program in (("vqa", "vqa"), ("gqa", "gqa")):
        records = reader(built.data, name, "val").official()
        assert records.program == program
        assert records.records.keys() == {
            a.example_id for _, a in annotations(built.data, name, "val")
        }
    people = next(iter(reader(built.data, "vqa", "val").official().records.values()))
    assert people == {"answers": ["yes"] * 7 + ["no"] * 3}
    assert reader(built.data, "vqa", "train").official() is None


def test_what_is_there_is_kept(built, samples, tmp_path):
    data = shutil.copytree(built.data, tmp_path / "data")
    code, out, _ = run("--samples", samples, "--data_dir", data)
    assert code == 0 and out.count("was there") == 2 * len(NAMES)
    changed = shutil.copytree(samples, tmp_path / "samples")
    labels = ("neutral", "neutral", "contradiction")
    write(changed / "snli_ve/esnlive_dev.csv.gz", table(range(500, 540), labels))
    code, _, err = run("--samples", changed, "--data_dir", data)
    assert code == 1 and "esnlive_dev.csv.gz" in err and "--overwrite" in err
    code, _, err = run("--samples", samples, "--data_dir", data, "--words", 9)
    assert code == 1 and "--words: vocab_size 9 is too small" in err
    code, _, err = run("--samples", samples, "--data_dir", data, "--words", 70)
    assert code == 1 and "vocab.txt" in err and "--overwrite" in err
    code, out, err = run("--samples", changed, "--data_dir", data, "--overwrite")
    assert code == 0, err
    both = [a for split in ("train", "val") for _, a in annotations(data, "snli_ve", split)]
    assert sorted(a.label for a in both) == [0] * 40 + [1] * 80
    file = "snli_ve/esnlive_dev.csv.gz"
    noted = read_build_info(built_folder(data, "snli_ve", "real"))["made_of"]["files"]
    assert noted == {file: hashlib.sha256((changed / file).read_bytes()).hexdigest()}


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _spoil_row(path):
    found = json.loads(gzip.decompress(path.read_bytes()))
    found[3]["bbox"] = [1, 2, 0, 4]
    found[4]["img_id"] = "n17"
    write(path, found)


def _other_text(path):
    found = json.loads(gzip.decompress(path.read_bytes()))
    found["55"]["question"] = "is it otherwise?"
    write(path, found)


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("vqav2/vqa_annotatons_valid.gzip", _cut, "vqa_annotatons_valid.gzip: cannot be read"),
        ("vqav2/vqa_annotatons_valid.gzip", Path.unlink, "no vqa_annotatons_valid"),
        ("vqav2/trainval_label2ans.json", Path.unlink, "no trainval_label2ans.json"),
        ("coco/annotations/captions_subset.json", _cut, "captions_subset.json: not JSON"),
    ],
)
def test_bad_files(samples, tmp_path, file, spoil, said):
    folder = shutil.copytree(samples, tmp_path / "samples")
    spoil(folder / file)
    code, _, err = run("--samples", folder, "--data_dir", tmp_path / "data")
    assert code == 1 and said in err


def test_bad_records_are_counted_and_named(samples, tmp_path):
    folder = shutil.copytree(samples, tmp_path / "samples")
    shutil.rmtree(folder / "coco")
    shutil.rmtree(folder / "vqav2")
    _spoil_row(folder / "refcoco/refcoco_val.json.gz")
    _other_text(folder / "gqa/xgqa_en_train_48.json.gz")
    code, out, err = run("--samples", folder, "--data_dir", tmp_path / "data")
    assert code == 0, err
    table = counts(out)
    assert table["refcoco", "train"][3] == 2 and sum(table["gqa", "train"][2:]) == 10
    assert "record 4 (COCO_train2014_000000000002_0): 'bbox' [1, 2, 0, 4] has no positive" in out
    assert "record 5 (n17): 'img_id' must be" in out
    assert "55: another record of the same id" in out
    code, _, err = run("--samples", folder, "--data_dir", tmp_path / "d", "--max_skipped_share", 0)
    assert code == 1 and "xgqa_en_train_48.json.gz: 55: another record" in err


def test_bad_arguments(samples, tmp_path, monkeypatch):
    monkeypatch.delenv(real_samples.SAMPLES_VARIABLE, raising=False)
    out = ("--data_dir", tmp_path / "data")
    assert run(*out)[0] == 2
    assert "no such folder" in run("--samples", tmp_path / "none", *out)[2]
    code, _, err = run("--samples", tmp_path, *out)
    assert code == 1 and f"{tmp_path}: no folder vqav2" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run("--samples", samples, "--held_out", tmp_path / "empty", *out)
    assert code == 1 and "--help" in err
    write(tmp_path / "lone/vqa_questions_test.gzip", {"questions": []})
    code, _, err = run("--samples", samples, "--held_out", tmp_path / "lone", *out)
    assert code == 1 and "vqa_annotatons_test" in err


def test_rows_of_no_use(tmp_path):
    write(tmp_path / "a.json", [{"img_id": 3}])
    with pytest.raises(DataError, match=r"a\.json: no expression.*record 1 \(3\): 'img_id' must"):
        refcoco_rows.read(tmp_path / "a.json")
    both = rows([5], boxes=2)
    both[1]["width"] = 9
    write(tmp_path / "b.json", both)
    (skip,) = refcoco_rows.read(tmp_path / "b.json").skipped
    assert "(9, 48)" in skip.reason and skip.record.startswith("record 2")


def test_real_records(samples_dir):
    """Counts of `SOURCES.md`, and no image on both sides."""
    found = real_sets.read_samples(samples_dir)
    assert list(found) == list(NAMES)
    sizes = {
        name: sum(len(part.annotations) for part in real.splits.values())
        for name, real in found.items()
    }
    assert sizes == {
        "vqa": 57_038 + 1,
        "gqa": 1_944 + 1_490 - 232,
        "coco": 105,
        "refcoco": 10_834,
        "refcoco+": 10_758,
        "refcocog": 4_896,
        "snli_ve": 14_339,
    }
    assert len(found["vqa"].splits["val"].annotations) == 8_977
    assert {name: real.repeated for name, real in found.items() if real.repeated} == {
        "vqa": 21,
        "gqa": 232,
    }
    for name, real in found.items():
        train, val = real.splits["train"], real.splits["val"]
        assert not train.skipped and not val.skipped
        if name != "vqa":
            assert not train.images.keys() & val.images.keys()
            assert 0.18 < len(val.images) / (len(train.images) + len(val.images)) < 0.22
    for name in ("refcoco", "refcoco+"):
        for part in found[name].splits.values():
            assert max(len(image.boxes) for image in part.images.values()) == 9
            assert all(a.box in part.images[a.image_id].boxes for a in part.annotations)
