import collections
import dataclasses
import hashlib
import json
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.builders.region_inputs import picture_files
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.world import make, tested
from twelve_in_one.world.__main__ import main
from twelve_in_one.world.collections import divide, leaves_open, make_collections
from twelve_in_one.world.language import entailment
from twelve_in_one.world.scene import HEIGHT, WIDTH
from twelve_in_one.world.scenes import sample_scene
from twelve_in_one.world.splits import is_round, make_splits

_SEED = 3


def _make(folder, seed=_SEED, jobs=1):
    lines = []
    make.make(folder, 50, seed, jobs, lines.append)
    assert all(re.fullmatch(r"\S+  [\d,]+/[\d,]+  [\d,]+/s  ETA [\d,]+ s", line) for line in lines)
    return folder


@pytest.fixture(scope="session")
def sets(world):
    """(dataset, split) -> what its reader finds; every dataset and split there is."""
    return {
        (name, split): source.read(world / source.folder, split)
        for name, source in SOURCES.items()
        for split in source.splits
    }


@pytest.fixture(scope="session")
def planned():
    """Splits of a larger world, of which nothing is written."""
    rng = np.random.default_rng(0)
    scenes = tuple(sample_scene(rng) for _ in range(600))
    found = make_collections(scenes, rng)
    return found, make_splits(found, rng)


def _hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _references(world, name):
    file = "refs(umd).p" if name == "refcocog" else "refs(unc).p"
    return pickle.loads((world / "refcoco" / name / file).read_bytes())


def test_same_seed_same_bytes(world, tmp_path):
    assert _hashes(_make(tmp_path / "again", jobs=2)) == _hashes(world)
    other = _hashes(_make(tmp_path / "other", seed=_SEED + 1))
    same = {name for name, digest in _hashes(world).items() if other.get(name) == digest}
    assert not same


@pytest.mark.parametrize("name", SOURCES)
def test_readers_take_everything(world, sets, name):
    pictures, _ = picture_files(world / "images" / SOURCES[name].domain)
    for split in SOURCES[name].splits:
        found = sets[name, split]
        assert found.annotations, split
        assert not found.skipped
        assert found.images.keys() <= pictures.keys()
        for image in found.images.values():
            assert (image.width or WIDTH, image.height or HEIGHT) == (WIDTH, HEIGHT)
            for x1, y1, x2, y2 in image.boxes:
                assert 0 <= x1 < x2 <= WIDTH
                assert 0 <= y1 < y2 <= HEIGHT


def test_about_tells_the_sizes(world, sets):
    about = _json(world / make.ABOUT)
    assert about["version"] == make.VERSION
    assert about["arguments"] == {"images": 50, "seed": _SEED}
    counts = about["counts"]
    for name, split, official in (
        ("refcoco", "testA", "testA"),
        ("guesswhat", "val", "valid"),
        ("nlvr2", "test", "test1"),
        ("snli_ve", "train", "train"),
        ("visual7w", "test", "test"),
    ):
        assert counts[name][official]["records"] == len(sets[name, split].annotations)
    asked = sum(len(sets["vgqa", split].annotations) for split in ("train", "val"))
    assert counts["visual_genome"]["all"]["records"] == asked


def test_pictures_are_sound(world):
    files = [path for path in (world / "images").rglob("*") if path.is_file()]
    for path in files:
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (WIDTH, HEIGHT))
    assert len({path.read_bytes() for path in files}) == 50
    with Image.open(world / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 300


def test_every_named_file_exists(world):
    images = world / "images"
    named = [
        f"coco/{image['filepath']}/{image['filename']}"
        for image in _json(world / "coco/dataset_coco.json")["images"]
    ]
    for file in world.glob("refcoco/*/instances.json"):
        named += [f"coco/train2014/{i['file_name']}" for i in _json(file)["images"]]
    for file in world.glob("guesswhat/*.jsonl"):
        for game in _json_lines(file):
            name = game["image"]["file_name"]
            named.append(f"coco/{name.split('_')[1]}/{name}")
    flickr = _json(world / "flickr30k/dataset_flickr30k.json")["images"]
    named += [f"flickr30k/{image['filename']}" for image in flickr]
    for file in world.glob("snli_ve/*.jsonl"):
        named += [f"flickr30k/{record['Flikr30kID']}" for record in _json_lines(file)]
    for image in _json(world / "visual_genome/image_data.json"):
        named.append("visual_genome/" + image["url"].split("/", 4)[-1])
    for image in _json(world / "visual7w/dataset_v7w_pointing.json")["images"]:
        named.append(f"visual_genome/VG_100K/{image['filename'].removeprefix('v7w_')}")
    for file in world.glob("gqa/*.json"):
        folder = "gqa" if file.name.startswith("testdev") else "VG_100K"
        named += [f"visual_genome/{folder}/{q['imageId']}.jpg" for q in _json(file).values()]
    for file in world.glob("nlvr2/*.json"):
        for record in _json_lines(file):
            pair = record["identifier"].rsplit("-", 1)[0]
            named += [f"nlvr2/{file.stem}/{pair}-img{side}.jpg" for side in (0, 1)]
    for file, prefix in (("Train_GCC-training", ""), ("Validation_GCC-1.1.0-Validation", "val-")):
        lines = (world / f"conceptual_captions/{file}.tsv").read_text().splitlines()
        named += [f"conceptual_captions/{prefix}{number}.jpg" for number in range(len(lines))]
    absent = {name for name in named if not (images / name).is_file()}
    assert not absent
    for part in ("train2014", "val2014", "test2015"):
        for record in _json(world / f"vqa/v2_OpenEnded_mscoco_{part}_questions.json")["questions"]:
            name = f"COCO_{part}_{record['image_id']:012d}.jpg"
            named.append(f"coco/{part}/{name}")
            assert (images / named[-1]).is_file()
    # And every picture has a use.
    files = {str(path.relative_to(images)) for path in images.rglob("*.jpg")}
    assert files == set(named)


def test_twins_are_the_same_photo(world):
    files, _ = picture_files(world / "images/visual_genome")
    coco, _ = picture_files(world / "images/coco")
    twins, own = 0, set()
    for image in _json(world / "visual_genome/image_data.json"):
        content = files[str(image["image_id"])].read_bytes()
        if image["coco_id"] is None:
            own.add(content)
        else:
            assert content == coco[str(image["coco_id"])].read_bytes()
            twins += 1
    assert twins == len(own)
    assert own.isdisjoint({path.read_bytes() for path in coco.values()})


def test_official_keys(world):
    record = _json(world / "vqa/v2_mscoco_val2014_annotations.json")["annotations"][0]
    assert set(record) == {
        "question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer",
        "answers",
    }  # fmt: skip
    assert [answer["answer_id"] for answer in record["answers"]] == list(range(1, 11))
    assert {a["answer_confidence"] for a in record["answers"]} <= {"yes", "maybe", "no"}
    assert not (world / "vqa/v2_mscoco_test2015_annotations.json").exists()
    for name in ("refcoco", "refcoco+", "refcocog"):
        found = _references(world, name)
        assert {r["split"] for r in found} == (
            {"train", "val", "test"} if name == "refcocog" else {"train", "val", "testA", "testB"}
        )
        assert set(found[0]) == {
            "ref_id", "ann_id", "category_id", "image_id", "file_name", "split", "sent_ids",
            "sentences",
        }  # fmt: skip
        ids = [i for r in found for i in r["sent_ids"]]
        assert len(set(ids)) == len(ids)
        assert len({r["ref_id"] for r in found}) == len(found)
    karpathy = _json(world / "coco/dataset_coco.json")["images"]
    assert {image["split"] for image in karpathy} == {"train", "restval", "val", "test"}
    for image in karpathy:
        assert image["sentids"] == [s["sentid"] for s in image["sentences"]]
        assert (image["filepath"] == "train2014") == (image["split"] == "train")


def test_ids_are_unique(world):
    instances = {}
    for file in world.glob("refcoco/*/instances.json"):
        content = _json(file)
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert len(set(ids)) == len(ids)
        for annotation in content["annotations"]:
            # The same thing has the same id in all three datasets.
            assert instances.setdefault(annotation["id"], annotation) == annotation
    boxes = _json(world / "visual7w/dataset_v7w_pointing.json")["boxes"]
    assert len({box["box_id"] for box in boxes}) == len(boxes)
    games = [g for file in world.glob("guesswhat/*.jsonl") for g in _json_lines(file)]
    assert len({game["id"] for game in games}) == len(games)
    turns = [turn["id"] for game in games for turn in game["qas"]]
    assert len(set(turns)) == len(turns)
    for game in games:
        for thing in game["objects"]:
            if thing["id"] in instances:
                assert instances[thing["id"]]["bbox"] == thing["bbox"]
    coco = [i["cocoid"] for i in _json(world / "coco/dataset_coco.json")["images"]]
    assert coco == sorted(set(coco))


def test_areas_are_those_of_the_outlines(world):
    content = _json(world / "refcoco/refcocog/instances.json")
    names = {category["id"]: category["name"] for category in content["categories"]}
    shares = collections.defaultdict(list)
    for annotation in content["annotations"]:
        width, height = annotation["bbox"][2:]
        shares[names[annotation["category_id"]]].append(annotation["area"] / (width * height))
        xs, ys = annotation["segmentation"][0][::2], annotation["segmentation"][0][1::2]
        x, y = annotation["bbox"][:2]
        assert (min(xs), min(ys)) == pytest.approx((x, y), abs=0.02)
        assert (max(xs), max(ys)) == pytest.approx((x + width, y + height), abs=0.02)
    for shape, expected in (("triangle", 0.5), ("diamond", 0.5), ("circle", np.pi / 4)):
        assert shares[shape] == pytest.approx([expected] * len(shares[shape]), abs=0.03)


def test_labels_are_balanced(sets):
    for split in ("train", "val", "test"):
        labels = collections.Counter(a.label for a in sets["snli_ve", split].annotations)
        assert labels[0] == labels[1] == labels[2] > 0
        truths = collections.defaultdict(list)
        for annotation in sets["nlvr2", split].annotations:
            number = annotation.image_id.split("-")[1]
            truths[number, annotation.text].append(annotation.label)
        assert truths
        assert all(sum(labels) * 2 == len(labels) for labels in truths.values())


def test_no_dataset_tests_on_what_it_trains_on(sets):
    for name, source in SOURCES.items():
        tested = {i for split in source.test_splits for i in sets[name, split].images}
        trained = set(sets[name, "train"].images) | set(sets[name, "val"].images)
        assert tested.isdisjoint(trained)


def test_datasets_leak_into_each_other(sets):
    def ids(name, *splits):
        return {i for split in splits for i in sets[name, split].images}

    trained = {name: ids(name, "train", "val") for name in SOURCES}
    for name, test in (("refcoco", "testA"), ("refcoco+", "testB"), ("refcocog", "test")):
        assert ids(name, test) <= trained["vqa"] & trained["coco"]
    assert ids("coco", "test") <= trained["vqa"]
    assert ids("guesswhat", "test") <= trained["vqa"]
    assert ids("visual7w", "test") <= trained["vgqa"]
    assert ids("snli_ve", "test") <= trained["flickr30k"] | ids("flickr30k", "test")


def test_splits_of_a_larger_world(planned):
    found, splits = planned

    def ids(part, key="image_id"):
        return {getattr(picture, key) for picture in part}

    tested = ids(splits.refcocog["test"])
    refcoco_tested = ids((*splits.refcoco["testA"], *splits.refcoco["testB"]))
    assert tested & refcoco_tested
    assert tested & ids(splits.refcoco["train"]) or tested - refcoco_tested
    assert ids(splits.refcoco["train"]) & ids(splits.refcocog["train"])
    assert ids(splits.karpathy["test"]) & ids(splits.guesswhat["train"])
    entailed = ids(splits.snli_ve["test"])
    assert entailed & ids(splits.flickr30k["train"])
    assert entailed & ids(splits.flickr30k["test"])
    assert all(leaves_open(p.scene) for part in splits.snli_ve.values() for p in part)
    genome = ids(splits.visual7w["test"], "coco_id")
    assert genome & ids(found.coco["train2014"])
    assert ids(splits.visual7w["test"]) & ids(splits.gqa["train"])
    assert -1 in genome  # and some are in no part of COCO
    for pictures in splits.visual7w.values():
        assert all(len(picture.scene.things) >= 4 for picture in pictures)
    for split, kind in (("testA", True), ("testB", False)):
        for picture in splits.refcoco[split]:
            assert sum(is_round(thing) == kind for thing in picture.scene.things) >= 2
    # Large enough to be ranked and scored: 60 of 2,000.
    assert min(len(splits.karpathy["test"]), len(splits.flickr30k["test"])) >= 0.03 * 600
    for field in dataclasses.fields(splits):
        division = getattr(splits, field.name)
        members = [p.image_id for part in division.values() for p in part]
        assert len(set(members)) == len(members), field.name
        assert all(
            list(part) == sorted(part, key=lambda p: p.image_id) for part in division.values()
        )
    assert len(ids(found.all(), "position")) == 600
    files = [picture.file for picture in found.all()]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("total", [7, 50, 2000])
def test_divide(total):
    shares, least = {"a": 0.7, "b": 0.25, "c": 0.05}, {"a": 2, "b": 1, "c": 2}
    counts = divide(total, shares, least)
    assert sum(counts.values()) == total
    assert all(counts[name] >= least[name] for name in shares)
    if total > 40:
        assert all(abs(counts[name] - total * shares[name]) <= 1 for name in shares)
    with pytest.raises(ValueError, match="4 cannot be divided"):
        divide(4, shares, least)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "49"], "images must be from 50 to 50,000, got 49"),
        (["--images", "50001"], "images must be from 50 to 50,000, got 50001"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--more_captions", "-1"], "more_captions must be from 0 to 50,000, got -1"),
    ],
)
def test_arguments_are_checked(tmp_path, capsys, arguments, message):
    assert main(["--out", str(tmp_path / "raw"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "raw"), "--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


def test_more_captions_leave_the_datasets_alone(world, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "more"), "--images", "50", "--more_captions", "20"]
    assert main([*arguments, "--seed", str(_SEED), "--jobs", "1"]) == 0
    before, after = _hashes(world), _hashes(tmp_path / "more")
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed <= {name for name in before if "conceptual" in name or "/" not in name}, (
        "but what counts and shows all"
    )
    lines = [
        len((folder / "conceptual_captions" / "Train_GCC-training.tsv").read_text().splitlines())
        + len(list((folder / "images" / "conceptual_captions").glob("val-*")))
        for folder in (world, tmp_path / "more")
    ]
    assert lines[1] - lines[0] == 20
    assert main([*arguments[:-2], "--seed", str(_SEED)]) == 1
    assert "holds another world" in capsys.readouterr().err


@pytest.fixture
def with_tested(monkeypatch, tmp_path):
    """The world with pictures that are only tested on, fewer than there are of large worlds."""
    few = {"train2014": 8, "val2014": 4, "visual_genome": 2, "gqa_testdev": 2, "flickr30k": 6}
    monkeypatch.setattr(tested, "_COUNTS", few | {"nlvr2": 8})
    monkeypatch.setattr(tested, "_GALLERY", 5)
    monkeypatch.setattr(tested, "EXAMPLES", 40)
    monkeypatch.setattr(tested, "MIN_IMAGES", 50)
    return _make(tmp_path / "tested")


def test_tested_pictures_leave_the_rest_alone(world, sets, with_tested):
    before, after = _hashes(world / "images"), _hashes(with_tested / "images")
    new = after.keys() - before.keys()
    assert before.items() <= after.items()
    twins = [name for name in new if "VG_100K" in name]
    assert len({after[name] for name in new}) == 30
    assert len(new) == 30 + len(twins) - 2  # two are Visual Genome's alone
    known = {Path(name).stem for name in new}
    for name, source in SOURCES.items():
        files = (with_tested / "images" / source.domain).rglob("*.jpg")
        # COCO's ids are the numbers that end its files' names.
        stems = {
            str(int(p.stem[-12:])) if source.domain == "coco" else p.stem: p.stem for p in files
        }
        tested_on = set(source.test_splits) or {"test" if name == "gqa" else "val"}
        if name == "conceptual_captions":
            tested_on = set()
        for split in source.splits:
            found = source.read(with_tested / source.folder, split)
            assert not found.skipped
            assert found.images.keys() <= stems.keys()
            old = [a for a in found.annotations if a in set(sets[name, split].annotations)]
            here = {stems[image] for image in found.images}
            if split in tested_on:
                assert here & known, (name, split)
                assert len(found.annotations) > len(old)
            else:
                assert here.isdisjoint(known), (name, split)
                assert found.annotations == sets[name, split].annotations, (name, split)
            if name not in ("snli_ve", "refcoco", "refcoco+", "refcocog"):  # balanced, numbered
                assert tuple(old) == sets[name, split].annotations, (name, split)


def test_small_worlds_have_no_tested_pictures():
    assert tested.count(tested.MIN_IMAGES - 1) == 0
    assert tested.count(tested.MIN_IMAGES) == tested.count(50_000) > 0


def test_a_world_is_made_once(world, tmp_path, capsys):
    before = _hashes(world)
    same = ["--out", str(world), "--images", "50"]
    assert main([*same, "--seed", str(_SEED), "--jobs", "1"]) == 0
    assert "holds this world already: nothing to do" in capsys.readouterr().out
    assert main([*same, "--seed", str(_SEED + 1)]) == 1
    assert "holds another world" in capsys.readouterr().err
    assert _hashes(world) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--out", str(tmp_path), "--images", "50"]) == 1
    assert "is not empty and no generated world" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_leaves_no_world(tmp_path, number):
    out = tmp_path / "raw"
    root = Path(__file__).parents[2]
    # What a shell starts in the background ignores interrupts, and so would what is started here.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from twelve_in_one.world.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "--out", str(out), "--images", "400", "--jobs", "2"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".raw.*/raw/images/*/*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.wait()
    assert not out.exists()
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [50, 110, 120])
def test_every_part_of_snli_ve_has_hypotheses(images):
    """Also in small worlds, of which one picture may be all that is tested on."""
    rng = np.random.default_rng(images)
    scenes = tuple(sample_scene(rng) for _ in range(images))
    splits = make_splits(make_collections(scenes, rng), rng)
    for part in splits.snli_ve.values():
        for picture in part:
            found = [entailment.hypothesis(picture.scene, rng, "neutral") for _ in range(60)]
            assert any(found), picture
