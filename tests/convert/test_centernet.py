"""CenterNet from its files in TensorFlow.js' layout, against TensorFlow's own run of its graph.

`tests/reference/centernet.npz` holds random weights of a narrow network in the layout of
@vladmandic/human 3.3.6, and the outputs of that package's graph with them, run by TensorFlow 2.21.
"""

import io
import json
import tarfile

import jax
import numpy as np
import pytest
from reference.small_detector import NARROW

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert import centernet
from twelve_in_one.data.formats.tfjs import read_weights
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.detection.centernet import CenterNet, find_peaks


@pytest.fixture(scope="module")
def recorded(hf_recorded):
    return hf_recorded("centernet")


@pytest.fixture
def files(recorded):
    """Name -> bytes of the two files."""
    return {
        "centernet.json": recorded["listing"].tobytes(),
        "centernet.bin": recorded["numbers"].tobytes(),
    }


def _folder(path, files):
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def _package(path, files, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {"README.md": b"#", **files}.items():
            member = tarfile.TarInfo(f"package/models/{name}")
            member.size, member.type = len(data) if kind == tarfile.REGTYPE else 0, kind
            archive.addfile(member, io.BytesIO(data))
    return path


def test_network_gives_what_the_graph_gives(recorded, files, tmp_path):
    tensors = read_weights(_package(tmp_path / "human.tgz", files), "centernet")
    loaded = centernet.from_tfjs(NARROW, tensors)
    assert {*loaded.report.loaded, *loaded.report.unused} == set(tensors)
    expected = recorded["detections"]

    @jax.jit
    def run(params, pixels):
        maps = CenterNet(NARROW).apply({"params": params}, pixels)
        return maps, find_peaks(maps, len(expected))

    with jax.default_matmul_precision("highest"):
        maps, peaks = run(loaded.params, recorded["image"][None])
    heat = jax.nn.sigmoid(maps.heat)
    pairs = ((heat, "heat"), (maps.distances, "distances"), (maps.deep, "deep"))
    for ours, name in pairs:
        atol = 1e-5 * np.abs(recorded[name]).max()
        np.testing.assert_allclose(ours[0], recorded[name], rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(peaks.boxes[0], expected[:, :4], rtol=0, atol=2e-3)
    np.testing.assert_allclose(peaks.scores[0], expected[:, 4], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(peaks.classes[0], expected[:, 5])


def test_folder_and_archive_hold_the_same(files, tmp_path):
    found = [
        read_weights(path, "centernet")
        for path in (
            _folder(tmp_path / "node_modules" / "human" / "models", files).parents[1],
            _package(tmp_path / "human.tgz", files),
        )
    ]
    assert list(found[0]) == list(found[1])
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["tower_0/TopKV2/k"] == 20 and found[0]["tower_0/mul/y"].dtype == np.float32


def test_every_entry_is_accounted_for(files, tmp_path):
    tensors = read_weights(_folder(tmp_path / "a", files), "centernet")
    tensors["tower_0/extern1/Conv2D_wieghts"] = tensors.pop("tower_0/extern1/Conv2D_weights")
    tensors["CenternetHead/centernet_wh_output/biases"] = np.zeros(5, np.float32)
    with pytest.raises(StateDictError) as error:
        centernet.from_tfjs(NARROW, tensors)
    report = error.value.report
    assert report.missing == ("tower_0/extern1/Conv2D_weights",)
    assert report.unexpected == ("tower_0/extern1/Conv2D_wieghts",)
    assert [name for name, *_ in report.wrong_shape] == ["CenternetHead/centernet_wh_output/biases"]
    tensors["tower_0/extern1/hard_swish/add/y"] = np.float32(2)
    with pytest.raises(DataError, match=r"extern1/hard_swish/add/y is \[2.\], .* it is 3.0"):
        centernet.from_tfjs(NARROW, tensors)
    with pytest.raises(StateDictError, match="wrong shape"):  # of the published size
        centernet.read(_folder(tmp_path / "b", files))


def _listing(files, change):
    listing = json.loads(files["centernet.json"])
    change(listing["weightsManifest"][0])
    return {**files, "centernet.json": json.dumps(listing).encode()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group.update(paths=["../centernet.bin"]), "no name of a file beside it"),
        (lambda group: group.update(paths=["shard1.bin"]), "shard1.bin"),
        (lambda group: group["weights"].pop(), "bytes, of which"),
        (lambda group: group["weights"][0].update(shape=[1 << 40, 1 << 40]), "ends at byte"),
        (lambda group: group["weights"][0].update(shape=[-1]), r"has the shape \[-1\]"),
        (lambda group: group["weights"][0].update(shape=[True]), r"has the shape \[True\]"),
        (lambda group: group["weights"][1].update(dtype="string"), "stored as string; float32, "),
        (lambda group: group["weights"][0].update(quantization={"dtype": "uint8"}), "as uint8"),
        (lambda group: group["weights"][0].update(quantization=3), "must be an object, is a int"),
        (lambda group: group["weights"][1].update(name="tower_0/mul_3/y"), "is there twice"),
        (lambda group: group.pop("paths"), "no 'paths'"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_damaged_listings_are_refused(files, tmp_path, kind, change, message):
    make = {"folder": _folder, "archive": _package}[kind]
    path = make(tmp_path / "x", _listing(files, change))
    with pytest.raises(DataError, match=message) as error:
        read_weights(path, "centernet")
    assert str(path) in str(error.value)


def test_other_files_are_refused(files, tmp_path):
    def refused(path, message):
        with pytest.raises(DataError, match=message) as error:
            read_weights(path, "centernet")
        assert str(path) in str(error.value)

    refused(tmp_path / "nowhere", "no such file or folder")
    refused(_folder(tmp_path / "empty", {}), "one centernet.json is needed in it, there is none")
    two = _folder(tmp_path / "two" / "a", files).parent
    refused(_folder(two / "b", files).parent, "there is 2 of them")
    refused(_package(tmp_path / "links.tgz", files, tarfile.SYMTYPE), "there is none")
    refused(_folder(tmp_path / "text", {"centernet.json": b"<html>"}), "not JSON")
    refused(_folder(tmp_path / "list", {"centernet.json": b"[1]"}), "must be an object")
    whole = _package(tmp_path / "whole.tgz", files)
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(cut, "damaged, or no .tgz of an npm package")
    cut.write_bytes(b"<html>")
    refused(cut, "damaged, or no .tgz of an npm package")
