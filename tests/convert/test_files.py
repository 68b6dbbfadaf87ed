"""State dict files: read lazily, written whole or not at all, and never executed."""

import collections
import json
import os
import pathlib
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from twelve_in_one.convert.files import read_state_dict, write_safetensors, write_torch
from twelve_in_one.models.two_stream.reference_config import from_reference

ARRAYS = {
    "module.a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -0.0, np.nan], np.float16),
    "c": np.ones((), np.float64),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs the extra twelve_in_one[torch]")


def assert_reads(path, arrays):
    tensors = read_state_dict(path)
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        read = np.asarray(tensors[name])
        assert read.dtype == array.dtype
        assert read.tobytes() == array.tobytes()


class Hostile:
    """Runs a command that makes a file when it is unpickled in the ordinary way."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


# ---- PyTorch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nesting", [None, "model_state_dict", "state_dict", "model"])
def test_pytorch_files(zipped, nesting, torch, tmp_path):
    content = collections.OrderedDict((k, torch.from_numpy(v)) for k, v in ARRAYS.items())
    content._metadata = {"": {"version": 1}}  # as the state dicts of modules have it
    if nesting:
        content = {nesting: content, "epoch": 3, "optimizer": {"state": {}, "name": "adamw"}}
    path = tmp_path / "model.bin"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_reads(path, ARRAYS)


def test_bfloat16_parameters_of_pytorch(torch, tmp_path):
    array = np.array([[1.0, -2.5], [3e38, 0.1]], ml_dtypes.bfloat16)
    tensor = torch.nn.Parameter(torch.tensor(array.astype(np.float32)).to(torch.bfloat16))
    torch.save({"a": tensor}, tmp_path / "model.pt")
    assert_reads(tmp_path / "model.pt", {"a": array})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_hostile_pickle_is_not_executed(zipped, nested, torch, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "model.bin"
    hostile = Hostile(marker)
    content = {"a": torch.ones(2), "b": [hostile] if nested else hostile}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model.bin wants to load \w+\.system, .* refused"):
        read_state_dict(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is indeed hostile
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_are_named(zipped, torch, tmp_path):
    path = tmp_path / "model.bin"
    content = {"a": torch.ones(2), "where": pathlib.PurePosixPath("x")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model.bin wants to load pathlib\.\S*PurePosixPath"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_pytorch_file(zipped, share, torch, tmp_path):
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="model.bin is truncated or not a PyTorch checkpoint"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content",
    [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid", b"PK\x03\x04nothing"],
)
def test_files_that_are_no_checkpoint(content, torch, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="model.bin is truncated or not a PyTorch checkpoint"):
        read_state_dict(tmp_path / "model.bin")


def test_values_that_are_no_dense_tensors_are_named(torch, tmp_path):
    path = tmp_path / "model.bin"
    for content, message in (
        ({"a": torch.ones(2), "epoch": 3}, "model.bin: 'epoch' is a int, not a dense tensor"),
        ({"a": torch.ones(2).to_sparse()}, "'a' is a torch.sparse_coo, not a dense tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' has the dtype complex64"),
        ([torch.ones(2)], "model.bin holds a list, not a state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_state_dict(path)


def test_only_writing_needs_pytorch(torch, tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_reads(tmp_path / "model.bin", {"a": np.ones(2, np.float32)})
    with pytest.raises(ImportError, match=r"pip install 'twelve_in_one\[torch\]'"):
        write_torch(tmp_path / "new.bin", [])
    assert os.listdir(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("zipped", [True, False])
def test_views_and_what_training_scripts_save_beside_weights(zipped, torch, tmp_path):
    table = torch.arange(24.0).reshape(4, 6)
    tensors = {"tied": table, "turned": table.T, "part": table[1:3, ::2], "none": table[:0]}
    beside = {"size": table.size(), "dtype": torch.float16, "where": torch.device("cpu")}
    path = tmp_path / "model.pt"
    torch.save({"state_dict": tensors, **beside}, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 4000  # the numbers are there once
    assert_reads(path, {name: tensor.numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("rebuilt", "message"),
    [
        ((0, (3, 3), (3, 1)), r"a tensor \(3, 3\) beyond the 4 numbers"),
        ((3, (2,), (1,)), r"a tensor \(2,\) beyond the 4 numbers"),
        ((0, (1 << 39,), (0,)), "beyond the 4 numbers of its storage"),
        ((-1, (1,), (1,)), "odd sizes"),
    ],
)
def test_a_pickle_that_lies_about_a_tensor(rebuilt, message, torch, tmp_path):
    class Lie:
        def __init__(self, storage):
            self.storage = storage

        def __reduce__(self):
            rest = (False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, (self.storage, *rebuilt, *rest)

    storage = torch.arange(4.0)._typed_storage()
    for zipped in (True, False):
        torch.save({"a": Lie(storage)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=f"m.pt is truncated or not .*{message}"):
            read_state_dict(tmp_path / "m.pt")


def test_what_is_written_pytorch_reads(torch, tmp_path):
    shared = np.arange(40_000, dtype=np.float32).reshape(200, 200)
    shared.flags.writeable = False  # as what JAX lends
    arrays = {"a": shared, "b": shared[::-1].T, "c": shared}
    path = tmp_path / "new" / "model.bin"
    write_torch(path, arrays.items())
    content = torch.load(path, weights_only=True)
    assert list(content) == ["a", "b", "c"]
    for name, array in arrays.items():
        assert content[name].is_contiguous()
        np.testing.assert_array_equal(content[name].numpy(), array)
    assert content["a"].data_ptr() == content["c"].data_ptr()
    assert path.stat().st_size < 2.1 * shared.nbytes  # the tied array is there once


def failing(arrays):
    yield from arrays.items()
    raise RuntimeError("the model does not fit")


def test_a_failed_pytorch_write_leaves_nothing(torch, tmp_path, monkeypatch):
    path = tmp_path / "model.bin"
    with pytest.raises(RuntimeError, match="does not fit"):
        write_torch(path, failing(ARRAYS))
    assert os.listdir(tmp_path) == []

    def full_disk(content, file):
        file.write_bytes(b"some")
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="model.bin: cannot be written: PytorchStreamWriter failed"):
        write_torch(path, ARRAYS.items())
    assert os.listdir(tmp_path) == []


# ---- safetensors ------------------------------------------------------------------------------


def test_safetensors_files(tmp_path):
    arrays = dict(sorted(ARRAYS.items())) | {"d": np.ones((2, 0), ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "model.safetensors")
    tensors = read_state_dict(tmp_path / "model.safetensors")
    assert_reads(tmp_path / "model.safetensors", {name: arrays[name] for name in tensors})
    assert set(tensors) == set(arrays)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_safetensors_file(keep, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(ARRAYS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is truncated or not a safetensors"):
        read_state_dict(path)


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": 1}', b"\xff\xff"])
def test_a_damaged_safetensors_header(header, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="model.safetensors is truncated or not a safetensors"):
        read_state_dict(path)


def test_a_type_that_safetensors_has_and_numpy_not(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    with pytest.raises(ValueError, match="model.safetensors: 'a' has the dtype F8_E4M3"):
        read_state_dict(path)


def test_a_safetensors_directory(tmp_path, tiny_config):
    config = tiny_config(num_tasks=20, head_dropout_rate=0.1)  # as the released code has it
    directory = tmp_path / "exported"
    write_safetensors(directory, {"a": ARRAYS["module.a.weight"].T}.items(), config)
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(
        load_file(directory / "model.safetensors")["a"], ARRAYS["module.a.weight"].T
    )
    assert from_reference(json.loads((directory / "config.json").read_text())) == config
    with pytest.raises(FileExistsError):
        write_safetensors(directory, [], config)


def test_a_failed_safetensors_write_leaves_nothing(tmp_path, tiny_config):
    with pytest.raises(RuntimeError, match="does not fit"):
        write_safetensors(tmp_path / "exported", failing(ARRAYS), tiny_config())
    assert os.listdir(tmp_path) == []


def test_an_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.bin"):
        read_state_dict(tmp_path / "absent.bin")
