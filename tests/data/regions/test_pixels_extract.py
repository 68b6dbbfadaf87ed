"""Extraction of folders: complete, resumable, the same in any number of processes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.regions import extract, extraction
from twelve_in_one.data.regions.extractor import PixelExtractor
from twelve_in_one.data.regions.records import RecordStore
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.world.render import render
from twelve_in_one.world.scenes import sample_scene

EXTRACTOR = PixelExtractor(num_regions=6)


@pytest.fixture
def images(tmp_path):
    """Nine pictures, of which two cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(4)
    for number in range(9):
        path = folder / f"{number}.png"
        Image.fromarray(render(sample_scene(rng), rng)).save(path)
        if number in (2, 7):
            path.write_bytes(path.read_bytes()[:500])
    return extraction.find_images(folder)


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _run(images, out, **options):
    return extraction.extract_folder(images, out, EXTRACTOR, shard_size=4, **options)


def test_store_holds_what_the_extractor_finds(images, tmp_path, capsys):
    skipped = _run(images, tmp_path / "out")
    assert [skip.record for skip in skipped] == ["2", "7"]
    assert all(skip.file == str(images[skip.record]) for skip in skipped)
    assert all(skip.file in skip.reason for skip in skipped)
    with RecordStore(tmp_path / "out") as store:
        assert sorted(store.ids()) == [name for name in images if name not in ("2", "7")]
        for image_id in store.ids():
            got, expected = store.get(image_id), EXTRACTOR.extract(load_image(images[image_id]))
            np.testing.assert_array_equal(got.boxes, expected.boxes)
            np.testing.assert_array_equal(got.features, expected.features.astype(np.float16))
            assert (got.width, got.height) == (expected.width, expected.height)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[-1].startswith("9/9 images, ")


def test_jobs_and_order_of_images_change_nothing(images, tmp_path):
    alone = _run(images, tmp_path / "alone")
    together = _run(dict(reversed(images.items())), tmp_path / "together", jobs=2)
    assert alone == together
    assert _content(tmp_path / "alone") == _content(tmp_path / "together")


@dataclasses.dataclass(frozen=True)
class _Killed:
    """Gives up after some images, as a process that is killed does."""

    inner: PixelExtractor
    left: list
    name = property(lambda self: self.inner.name)
    feature_dim = property(lambda self: self.inner.feature_dim)
    num_regions = property(lambda self: self.inner.num_regions)

    def extract(self, image):
        if not self.left:
            raise KeyboardInterrupt
        self.left.pop()
        return self.inner.extract(image)


@pytest.mark.parametrize("survived", [0, 2, 3, 5, 6])
def test_resumed_run_equals_uninterrupted(images, tmp_path, survived):
    expected = _run(images, tmp_path / "whole")
    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        extraction.extract_folder(images, out, _Killed(EXTRACTOR, [0] * survived), shard_size=4)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert len(kept) == (0 if survived < 3 else 1 if survived < 6 else 2)
    (out / ".regions-00001-of-00003.safetensors.1.partial").write_bytes(b"half a shard")
    assert _run(images, out) == expected
    assert _content(out) == _content(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_finished_run_does_nothing_but_tells_what_is_missing(images, tmp_path):
    first = _run(images, tmp_path / "out")
    again = extraction.extract_folder(
        images, tmp_path / "out", _Killed(EXTRACTOR, []), shard_size=4, jobs=3
    )
    assert first == again


def _times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_changed_folder_equals_one_made_at_once(images, tmp_path, capsys):
    """Pictures that are repaired, changed, added and removed; of the others nothing is read."""
    out = tmp_path / "out"
    _run(images, out)
    before = _times(out)
    assert len(_run(images, out)) == 2 and _times(out) == before
    capsys.readouterr()
    images["2"].write_bytes(images["0"].read_bytes())  # could not be read before
    Image.fromarray(load_image(images["1"])[::-1]).save(images["1"])
    images = images | {"10": shutil.copy(images["3"], tmp_path / "10.png")}
    del images["4"]
    read = 3 + 1  # of which one still cannot be
    extractor = _Killed(EXTRACTOR, [0] * read)
    skipped = extraction.extract_folder(images, out, extractor, shard_size=4)
    assert [skip.record for skip in skipped] == ["7"] and len(extractor.left) == 1
    assert "9/9 images, " in capsys.readouterr().err
    extraction.extract_folder(images, tmp_path / "new", EXTRACTOR, shard_size=4)
    assert _content(out) == _content(tmp_path / "new")
    with RecordStore(out) as store:
        assert sorted(store.ids()) == ["0", "1", "10", "2", "3", "5", "6", "8"]


def test_overwrite_reads_everything(images, tmp_path):
    out = tmp_path / "out"
    extraction.extract_folder(images, out, PixelExtractor(3), shard_size=2)
    assert len(_run(images, out, overwrite=True)) == 2
    _run(images, tmp_path / "new")
    assert _content(out) == _content(tmp_path / "new")


def test_killed_between_shard_and_list(images, tmp_path):
    out = tmp_path / "out"
    _run(images, out)
    wanted = _content(out)
    path = out / "images-00001.json"
    path.unlink()
    _run(images, out)
    assert _content(out) == wanted
    path.write_text("[]")
    with pytest.raises(DataError, match="images-00001.json: top level must be a dict"):
        _run(images, out)


def test_pictures_are_read_as_stored_if_asked(images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(load_image(images["1"]))
    picture.save(images["1"], exif=exif)
    size = picture.size
    for upright, wanted in ((True, size[::-1]), (False, size)):
        out = tmp_path / str(upright)
        _run(images, out, upright=upright)
        assert extraction.turned_images(out) == {"1"}
        with RecordStore(out) as store:
            assert (store.get("1").width, store.get("1").height) == wanted
    with pytest.raises(DataError, match="begun with upright False, not True"):
        _run(images, tmp_path / "False")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extractor": PixelExtractor(7)}, "begun with extractor 'pixels-1-ground-6', not"),
        ({"shard_size": 5}, "begun with shard_size 4, not 5"),
    ],
)
def test_other_parameters_are_refused(images, tmp_path, change, message):
    out = tmp_path / "out"
    _run(images, out)
    arguments = {"images": images, "out": out, "extractor": EXTRACTOR, "shard_size": 4}
    with pytest.raises(DataError, match=message):
        extraction.extract_folder(**arguments | change)


def test_strange_folders_and_arguments(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("")
    with pytest.raises(DataError, match="not empty, but without extraction.json"):
        _run(images, tmp_path / "out")
    with pytest.raises(DataError, match="no images"):
        _run({}, tmp_path / "new")
    with pytest.raises(ValueError, match="must be positive"):
        _run(images, tmp_path / "new", jobs=0)
    with pytest.raises(ValueError, match="image id 'a/b'"):
        _run({"a/b": images["0"]}, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (images["0"].parent / "0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="0.png: same id as 0.jpg"):
        extraction.find_images(images["0"].parent)
    with pytest.raises(DataError, match="no folder with images"):
        extraction.find_images(tmp_path / "nowhere")


def test_command(images, tmp_path, capsys):
    folder, out = images["0"].parent, tmp_path / "out"
    arguments = ["--images", str(folder), "--out", str(out), "--num_regions", "6"]
    assert extract.main(arguments) == 0
    output = capsys.readouterr()
    assert "7 images, 2 skipped" in output.out
    assert "skipped 2: " in output.err
    assert json.loads((out / extraction.PARAMETERS).read_text())["num_regions"] == 6
    assert extract.main([*arguments[:-1], "5"]) == 1
    assert "error: " in capsys.readouterr().err
