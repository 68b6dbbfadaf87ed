"""Records of a user and COCO's captions as sets of pictures; folders of named pictures."""

import json
import logging

import pytest

from twelve_in_one.data.images.sources import open_images
from twelve_in_one.data.stored.records import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo, encode):
    """Forty pictures in three folders, with questions, captions and COCO's files about them."""
    folder = tmp_path_factory.mktemp("records")
    data = encode(photo, "PNG")
    questions, images, captions = [], [], []
    for i in range(40):
        part = "first" if i < 20 else "second"
        place = folder / f"coco_{part}" / "images"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(data + bytes([i]))
        for asked, answers in (("what?", {"cup": 1.0, "mug": 0.3}), ("how many?", {"two": 1.0})):
            questions.append({"image": f"{i:03}.png", "question": asked, "answers": answers})
        images.append({"id": i, "file_name": f"{i:03}.png", "width": 4, "height": 4})
        captions += [
            {"id": 10 * i + n, "image_id": i, "caption": f"cup {i} seen {n} times"}
            for n in range(1 + i % 2)
        ]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, questions)))
    for part, rows in (("first", slice(0, 20)), ("second", slice(20, 40))):
        ids = {image["id"] for image in images[rows]}
        content = {
            "images": images[rows],
            "annotations": [c for c in captions if c["image_id"] in ids],
        }
        (folder / f"coco_{part}" / "captions.json").write_text(json.dumps(content))
    return folder


def _all(images):
    return [images.read(number) for number in range(images.num_examples)]


def test_questions_are_split_by_picture(folder):
    place = f"jsonl:{folder}/asked.jsonl,{folder}/coco_*/images"
    parts = {split: open_images(f"{place}[{split}]") for split in ("train", "val", "test")}
    found = {split: _all(images) for split, images in parts.items()}
    named = {split: {x.image_id for x in examples} for split, examples in found.items()}
    assert sum(map(len, named.values())) == len(set.union(*named.values())) == 40
    assert len(named["train"]) > 20 and named["val"] and named["test"]
    for split, images in parts.items():
        assert images.num_examples == 2 * len(named[split])
        assert images.size == (images.num_examples, len(named[split]))
        # Those of a picture stand together.
        for first, last in zip(images.first_of_image, images.first_of_image[1:], strict=False):
            assert len({x.image_id for x in found[split][first:last]}) == 1 and last - first == 2
    example = next(x for x in found["train"] if x.question == "what?")
    assert (example.texts, example.scores) == (("cup", "mug"), (1.0, 0.3))
    assert example.data[-1] == int(example.image_id[:3])
    assert open_images(place).num_examples == 80


def test_captions_of_several_files(folder):
    place = f"coco:{folder}/coco_*/captions.json,{folder}/coco_*/images"
    images = open_images(place)
    assert (images.num_examples, images.size.pairs) == (40, 60)
    example = next(x for x in _all(images) if x.image_id == "031.png")
    assert sorted(example.texts) == ["cup 31 seen 0 times", "cup 31 seen 1 times"]
    names = {x.image_id for x in _all(open_images(f"{place}[train]"))}
    assert 20 < len(names) < 40


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("jsonl:{folder}/asked.jsonl", "should be jsonl:FILE,FOLDER.SPLIT."),
        ("jsonl:{folder}/asked.jsonl,{folder}/coco_first/images[dev]", "a split of train, val"),
        ("jsonl:{folder}/none.jsonl,{folder}", "none.jsonl: no such file"),
        ("jsonl:{folder}/asked.jsonl,{folder}/none", "none: no such folder of pictures"),
        ("jsonl:{folder}/asked.jsonl,{folder}/coco_first/images", "040 of 80|40 of 80 records"),
        ("coco:{folder}/coco_first/captions.json,{folder}/coco_second/images", "records cannot"),
    ],
)
def test_what_cannot_be_opened(folder, source, message):
    with pytest.raises(DataError, match=message):
        open_images(source.format(folder=folder))


def test_records_without_text_to_learn(folder, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"image": "001.png", "label": "cup"}\n')
    with pytest.raises(DataError, match="neither a 'question' nor a 'caption', but image, label"):
        open_images(f"jsonl:{path},{folder}/coco_first/images")


def test_a_record_that_is_left_out_is_named(folder, tmp_path, caplog):
    lines = (folder / "asked.jsonl").read_text().splitlines()
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join([*lines, '{"image": "no.png", "question": "what?", "answer": "a"}']))
    with caplog.at_level(logging.WARNING):
        images = open_images(f"jsonl:{path},{folder}/coco_*/images")
    assert images.num_examples == 80
    assert "line 81: picture 'no.png': no such file" in caplog.text


def test_folders_of_named_pictures(tmp_path, photo, encode):
    data = encode(photo, "PNG")
    for style in ("flat", "round"):
        (tmp_path / style).mkdir()
        for name in ("cup", "fork", "spoon", "plate", "bowl"):
            (tmp_path / style / f"{name}.png").write_bytes(data)
    flat = open_images(tmp_path / "flat")
    assert flat.labels == ("bowl", "cup", "fork", "plate", "spoon")
    for example in _all(flat):
        assert example.example_id == f"{flat.labels[example.label]}.png"
    both = f"folder:{tmp_path}/{{flat,round}}"
    train, val = open_images(f"{both}[:80%]"), open_images(f"{both}[80%:]")
    ids = [{x.example_id for x in _all(part)} for part in (train, val)]
    assert (len(ids[0]), len(ids[1])) == (8, 2) and len(ids[0] | ids[1]) == 10
    assert "flat/cup.png" in ids[0] | ids[1] and train.labels == val.labels == flat.labels
    with pytest.raises(DataError, match="no example of 10"):
        open_images(f"{both}[:0%]")
    (tmp_path / "flat" / "cup.jpg").write_bytes(data)
    with pytest.raises(DataError, match="cup.png: cup.jpg has the same name"):
        open_images(tmp_path / "flat")
