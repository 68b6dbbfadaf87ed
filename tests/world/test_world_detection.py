"""Pictures of named things: their boxes are where they are drawn, and files say what is rare."""

import json

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.images.sources import open_images
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.world import detection


def test_no_shape_and_no_colour_is_new():
    names = detection.shape_names()
    rare = [n for n, how in zip(names, detection.frequencies(names), strict=True) if how == "r"]
    known = set(names) - set(rare)
    assert len(names) == 80 and len(rare) == 20
    for part in (0, 1):
        assert {n.split()[part] for n in rare} <= {n.split()[part] for n in known}
    assert set(detection.frequencies(names)) == {"r", "c", "f"}


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """Five single-coloured pictures with transparent surroundings."""
    folder = tmp_path_factory.mktemp("looks")
    for number, name in enumerate(("blue_cup", "cat", "dog-house", "egg", "fan")):
        pixels = np.zeros((40, 60, 4), np.uint8)
        pixels[10:30, 5 : 20 + 5 * number] = (250, 0, 250, 255)
        place = folder / ("cat/1.png" if name == "cat" else f"{name}.png")
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder


def test_boxes_of_named_pictures_are_exact(looks):
    found = detection.read_looks(looks)
    assert list(found) == ["blue cup", "cat", "dog house", "egg", "fan"]
    assert found["egg"][0].pixels.shape == (20, 30, 4)
    drawn = detection.draw(np.ones(5), tuple(found.values()), np.random.default_rng(3))
    assert len(drawn.classes) == len(drawn.boxes) >= 2
    painted = (drawn.pixels[..., 0] > 200) & (drawn.pixels[..., 1] < 60)
    for x, y, width, height in drawn.boxes:
        inside = painted[int(y) : int(y + height), int(x) : int(x + width)]
        assert inside.mean() > 0.7  # up to others in front
        painted[int(y) : int(y + height), int(x) : int(x + width)] = False
    assert not painted.any()


def test_the_set_is_what_a_detector_reads(tmp_path):
    counts = detection.make(tmp_path / "set", 20, seed=1)
    assert counts == {"train": 14, "val": 2, "test": 4}
    assert detection.is_made(tmp_path / "set", detection.arguments(20, 1))
    with pytest.raises(ValueError, match="holds another set"):
        detection.is_made(tmp_path / "set", detection.arguments(30, 1))
    source = f"lvis:{tmp_path}/set/lvis_v1_{{}}.json,{tmp_path}/set/images"
    ids = set()
    for split, count in counts.items():
        images = open_images(source.format(split))
        assert images.num_examples == count and not images.skipped
        for number in range(count):
            example = images.read(number)
            objects = example.objects
            assert not set(objects.classes) & set(objects.absent) and len(objects.absent) == 20
            ids.add(example.example_id)
    assert len(ids) == 20
    again = tmp_path / "again"
    detection.make(again, 20, seed=1)
    for name in ("lvis_v1_train.json", "images/test_000003.jpg"):
        assert (again / name).read_bytes() == (tmp_path / "set" / name).read_bytes()
    raw = json.loads((again / "lvis_v1_train.json").read_text())
    assert raw["categories"][0]["name"] == "red_circle"


def test_what_is_refused(tmp_path, looks, capsys):
    with pytest.raises(DataError, match="0 names with pictures"):
        detection.read_looks(tmp_path)
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in "abcd":
        Image.new("RGBA", (4, 4)).save(bad / f"{name}.png")
    with pytest.raises(DataError, match="a.png: nothing in it is opaque"):
        detection.read_looks(bad)
    (bad / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="a.png: cannot be read as a picture"):
        detection.read_looks(bad)
    assert detection.main(["--out", str(tmp_path / "x"), "--images", "3"]) == 1
    assert "images must be at least 20, got 3" in capsys.readouterr().err
