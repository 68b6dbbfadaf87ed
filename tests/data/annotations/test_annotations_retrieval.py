import gzip
import json
import re

import pytest
from reference.spoiled_files import read_spoiled

from twelve_in_one.data.annotations import retrieval
from twelve_in_one.data.stored.records import DataError

READERS = {"coco": retrieval.read_coco, "flickr30k": retrieval.read_flickr30k}


def _rows(found):
    return [(a.example_id, a.image_id, a.text) for a in found.annotations]


# (image number, captions, Karpathy's part) of a small dataset in file order.
IMAGES = [
    (9, ["A dog runs.", " Two\u2028lines, one caption "], "train"),
    (120, ["Caf\u00e9 \u2014 closed"], "test"),
    (7, ["Snow.", "Snow.", "More snow"], "restval"),
    (33, ["A boat", "Sea"], "val"),
]
PARTS = {"train": (9, 7), "val": (33,), "test": (120,)}


def _write_karpathy(folder, name, images=IMAGES):
    records = []
    for number, captions, part in images:
        record = {
            "filename": f"COCO_val2014_{number:012}.jpg" if name == "coco" else f"{number}.jpg",
            "split": "train" if (name, part) == ("flickr30k", "restval") else part,
            "sentences": [{"raw": text, "sentid": 0, "tokens": []} for text in captions],
            "imgid": 0,
        }
        if name == "coco":
            record |= {"cocoid": number, "filepath": "val2014"}
        records.append(record)
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": records, "dataset": name}))


def _write_official_coco(folder):
    for year, parts in (("train2014", ["train"]), ("val2014", ["restval", "val", "test"])):
        chosen = [item for item in IMAGES if item[2] in parts]
        images = [
            {"id": n, "file_name": f"COCO_val2014_{n:012}.jpg", "width": 640, "height": 480 + n}
            for n, _, _ in reversed(chosen)
        ]
        captions = [
            {"image_id": n, "id": 0, "caption": text} for n, texts, _ in chosen for text in texts
        ]
        content = {"info": {}, "images": images, "annotations": captions}
        (folder / f"captions_{year}.json").write_text(json.dumps(content))
    for part in ("val", "test"):
        lines = [f"val2014/COCO_val2014_{n:012}.jpg {n}\n" for n in PARTS[part]]
        (folder / f"karpathy_{part}_images.txt").write_text("".join(lines))


def _write_official_flickr30k(folder):
    lines = [f"{n}.jpg#{k}\t{text}\n" for n, texts, _ in IMAGES for k, text in enumerate(texts)]
    (folder / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    for part, numbers in PARTS.items():
        (folder / f"{part}.txt").write_text("".join(f"{n}\n" for n in numbers))


def _write_kaggle_flickr30k(folder, header=True):
    _write_official_flickr30k(folder)
    (folder / "results_20130124.token").unlink()
    lines = ["image_name| comment_number| comment\n"] if header else []
    lines += [f"{n}.jpg| {k}| {text}\n" for n, texts, _ in IMAGES for k, text in enumerate(texts)]
    (folder / "results.csv").write_text("".join(lines), encoding="utf-8-sig")


def _write_lines(folder, name, names):
    for part, file_name in names.items():
        lines = []
        for number, texts, _ in IMAGES:
            if number in PARTS[part]:
                stem = f"COCO_val2014_{number:012}" if name == "coco" else str(number)
                record = {"id": number, "img_path": f"{stem}.jpg", "sentences": texts}
                # VOLTA writes ids as text; the reference counts the images of Flickr30k.
                record["id"] = str(number) if "ann" in file_name else number
                record["id"] = -5 if name == "flickr30k" else record["id"]
                lines.append(json.dumps(record) + "\n")
        (folder / file_name).write_text("\n".join(lines))


LAYOUTS = {
    "karpathy": _write_karpathy,
    "official": lambda folder, name: globals()[f"_write_official_{name}"](folder),
    "reference": lambda folder, name: _write_lines(folder, name, retrieval._REFERENCE_LINES),
    "volta": lambda folder, name: _write_lines(folder, name, retrieval._VOLTA_LINES),
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", READERS)
def test_all_layouts_say_the_same(tmp_path, name, layout, split):
    LAYOUTS[layout](tmp_path, name)
    found = READERS[name](tmp_path, split)
    chosen = [item for item in IMAGES if item[0] in PARTS[split]]
    assert _rows(found) == [
        (f"{n}#{k}", str(n), text) for n, texts, _ in chosen for k, text in enumerate(texts)
    ]
    assert found.skipped == () and found.pairs == {}
    assert list(found.images) == [str(n) for n, _, _ in chosen]
    for number, _, _ in chosen:
        image = found.images[str(number)]
        assert image.image_id == str(number)
        if name == "coco":
            assert image.coco_id == number
            assert image.file_name == f"COCO_val2014_{number:012}.jpg"
            size = (640, 480 + number) if layout == "official" else (0, 0)
            assert (image.width, image.height) == size
        else:
            assert (image.coco_id, image.file_name) == (-1, f"{number}.jpg")


@pytest.mark.parametrize("name", READERS)
def test_first_complete_layout_is_read(tmp_path, name):
    folder = tmp_path / "all"
    folder.mkdir()
    with pytest.raises(DataError, match=r"no layout is complete; needs dataset_.*valid_ann.jsonl"):
        READERS[name](folder, "val")
    written = {}
    for layout, write in LAYOUTS.items():
        (tmp_path / layout).mkdir()
        write(tmp_path / layout, name)
        written[layout] = [folder / file.name for file in (tmp_path / layout).iterdir()]
        for path in written[layout]:
            content = (tmp_path / layout / path.name).read_bytes()
            path.write_bytes(content.replace(b"Sea", layout.encode()))
    for layout, paths in written.items():
        assert READERS[name](folder, "val").annotations[1].text == layout
        for path in paths:
            path.unlink()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", READERS)
def test_files_may_be_compressed(tmp_path, name, layout):
    LAYOUTS[layout](tmp_path, name)
    expected = READERS[name](tmp_path, "train")
    for path in list(tmp_path.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert READERS[name](tmp_path, "train") == expected


def test_incomplete_layout_is_passed_over(tmp_path):
    _write_official_coco(tmp_path)
    (tmp_path / "karpathy_test_images.txt").unlink()
    assert len(retrieval.read_coco(tmp_path, "val").annotations) == 2
    # Without it, images of the test part would count as training images.
    with pytest.raises(DataError, match=r"karpathy_val_images.txt with karpathy_test_images.txt"):
        retrieval.read_coco(tmp_path, "train")
    LAYOUTS["volta"](tmp_path, "coco")
    assert {a.image_id for a in retrieval.read_coco(tmp_path, "train").annotations} == {"9", "7"}


def test_real_flickr30k_lines(samples_dir):
    found = retrieval.read_flickr30k(samples_dir / "flickr30k", "val")
    lines = (samples_dir / "flickr30k/valid_ann.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    assert len(records) == len(found.images) > 0
    assert found.skipped == ()
    assert _rows(found) == [
        (f"{record['id']}#{k}", record["id"], text)
        for record in records
        for k, text in enumerate(record["sentences"])
    ]
    assert all(image.file_name == f"{key}.jpg" for key, image in found.images.items())


def test_real_flickr30k_splits(samples_dir, tmp_path):
    val = retrieval.read_flickr30k(samples_dir / "flickr30k", "val")
    lines = [f"{a.image_id}.jpg#{a.example_id.split('#')[1]}\t{a.text}\n" for a in val.annotations]
    (tmp_path / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    found = {}
    for split in ("train", "val", "test"):
        ids = samples_dir / f"flickr30k/splits/{split}.txt"
        (tmp_path / ids.name).write_bytes(ids.read_bytes())
        found[split] = retrieval.read_flickr30k(tmp_path, split)
        assert len(found[split].images) + len(found[split].skipped) == len(ids.read_text().split())
        assert all("no caption in" in s.reason for s in found[split].skipped)
    # The official lists and Karpathy's differ, but nothing is lost or doubled between the parts.
    rows = [row for part in found.values() for row in _rows(part)]
    assert sorted(rows) == sorted(_rows(val))


def test_real_coco_captions(samples_dir, tmp_path):
    content = json.loads((samples_dir / "coco/annotations/captions_subset.json").read_text())
    listed = {}
    for split in ("val", "test"):
        name = f"karpathy_{split}_images.txt"
        (tmp_path / name).write_bytes((samples_dir / "coco" / name).read_bytes())
        listed[split] = {
            int(line.split()[1]) for line in (tmp_path / name).read_text().splitlines()
        }
    (tmp_path / "captions_val2014.json").write_text(json.dumps(content))
    none = content | {"annotations": []}
    (tmp_path / "captions_train2014.json").write_text(json.dumps(none))

    captioned = {record["image_id"] for record in content["annotations"]}
    assert len(content["annotations"]) == 5 * len(captioned) > 0
    total = 0
    for split in ("train", "val", "test"):
        held_out = listed["val"] | listed["test"]
        ids = captioned - held_out if split == "train" else captioned & listed[split]
        found = retrieval.read_coco(tmp_path, split)
        assert {int(i) for i in found.images} == ids
        wanted = [r for r in content["annotations"] if r["image_id"] in ids]
        assert [(a.image_id, a.text) for a in found.annotations] == [
            (str(r["image_id"]), r["caption"]) for r in wanted
        ]
        assert len({a.example_id for a in found.annotations}) == len(wanted) == 5 * len(ids)
        for record in content["images"]:
            if record["id"] in ids:
                image = found.images[str(record["id"])]
                assert image.file_name == record["file_name"]
                assert (image.width, image.height) == (record["width"], record["height"])
        assert len(found.skipped) == (0 if split == "train" else 5000 - len(ids))
        total += len(wanted)
    assert total == 105


@pytest.mark.parametrize(
    ("changes", "record", "reason"),
    [
        ({"split": None}, "record 0", "'split' must be a text, is None"),
        ({"split": "dev"}, "record 0", "must be in .*, is 'dev'"),
        ({"cocoid": "9x"}, "record 0", "must be a number of decimal digits, is '9x'"),
        ({"cocoid": 10**30}, "record 0", "empty or out of range"),
        ({"filename": 9}, "record 0", "'filename' must be a text, is 9"),
        ({"sentences": []}, "record 0", "'sentences' is empty"),
        ({"sentences": [{"raw": 3}]}, "9#0", "'raw' must be a text, is 3"),
        ({"sentences": [{"raw": " \n"}]}, "9#0", "'raw' is empty"),
        ({"sentences": [{"raw": "a\ud800"}]}, "9#0", "'raw' is not valid Unicode"),
        ({"cocoid": 7}, "7#0", "has been read before"),
    ],
)
def test_broken_records_are_counted(tmp_path, changes, record, reason):
    _write_karpathy(tmp_path, "coco")
    path = tmp_path / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"][0].update(changes)
    path.write_text(json.dumps(content))
    found = retrieval.read_coco(tmp_path, "train")
    assert found.annotations[-1].example_id == "7#2"
    assert (found.skipped[0].file, found.skipped[0].record) == (str(path), record)
    assert re.search(reason, found.skipped[0].reason)


def test_positions_do_not_shift_past_unusable_captions(tmp_path):
    _write_official_coco(tmp_path)
    path = tmp_path / "captions_val2014.json"
    path.write_text(path.read_text().replace('"A boat"', '""'))
    found = retrieval.read_coco(tmp_path, "val")
    assert _rows(found) == [("33#1", "33", "Sea")]
    assert [s.record for s in found.skipped] == ["33#0"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("9.jpg#0 A dog", "must be 'name#number<tab>caption'"),
        ("9.jpg.1#0\tA dog", "decimal digits, is '9.jpg'"),
        ("9.jpg\tA dog", "decimal digits, is ''"),
        ("9.jpg#1\tA dog", "has been read before"),
    ],
)
def test_broken_lines_are_counted(tmp_path, line, reason):
    _write_official_flickr30k(tmp_path)
    path = tmp_path / "results_20130124.token"
    path.write_text(f"{path.read_text('utf-8')}{line}\n\n", "utf-8")
    found = retrieval.read_flickr30k(tmp_path, "train")
    assert len(found.annotations) == 5
    assert len(found.skipped) == 1 and reason in found.skipped[0].reason


@pytest.mark.parametrize("header", [True, False])
def test_kaggle_table_equals_the_official_file(tmp_path, header):
    for name, write in (
        ("official", _write_official_flickr30k),
        ("kaggle", lambda folder: _write_kaggle_flickr30k(folder, header)),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    for split in retrieval.SPLITS:
        wanted = retrieval.read_flickr30k(tmp_path / "official", split)
        found = retrieval.read_flickr30k(tmp_path / "kaggle", split)
        stripped = [(a.example_id, a.text.strip()) for a in wanted.annotations]
        assert [(a.example_id, a.text) for a in found.annotations] == stripped
        assert [s.record for s in found.skipped] == [s.record for s in wanted.skipped]
    # The public file has a line that lacks its second bar.
    path = tmp_path / "kaggle/results.csv"
    path.write_text(f"{path.read_text('utf-8')}7.jpg| 4   A dog runs.\n", "utf-8")
    reasons = [s.reason for s in retrieval.read_flickr30k(tmp_path / "kaggle", "train").skipped]
    assert reasons[0] == (
        "must be 'image_name| comment_number| comment', is '7.jpg| 4   A dog runs.'"
    )


@pytest.mark.parametrize("name", READERS)
def test_broken_list_of_ids_fails(tmp_path, name):
    LAYOUTS["official"](tmp_path, name)
    path = tmp_path / ("karpathy_test_images.txt" if name == "coco" else "train.txt")
    for line in ("val2014/x.jpg 12 3", "12a", "-5", f"{10**30}"):
        path.write_text(f"1\n{line}\n")
        with pytest.raises(DataError, match=rf"{path.name}: line 2: "):
            READERS[name](tmp_path, "train")


@pytest.mark.parametrize("read", READERS.values())
def test_unknown_split(tmp_path, read):
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'testA'"):
        read(tmp_path, "testA")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", READERS)
def test_spoiled_files(tmp_path, name, layout):
    LAYOUTS[layout](tmp_path, name)
    for split in PARTS:
        found = read_spoiled(
            lambda folder, split=split: READERS[name](folder, split),
            tmp_path,
            num=60,
            blank_texts=False,
        )
        assert found["error"] < 60
