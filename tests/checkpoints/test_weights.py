"""Parameters on disk: any layout and any number of devices read them; failures leave nothing."""

import dataclasses
import json
import os
import zipfile

import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints import weights
from twelve_in_one.checkpoints.weights import (
    is_checkpoint,
    load_params,
    replacing,
    save_params,
)
from twelve_in_one.models.two_stream.encoder import stack_layers
from twelve_in_one.models.two_stream.trunk import abstract_params
from twelve_in_one.parallel import sharding
from twelve_in_one.systems.vilbert import Vilbert


@pytest.fixture
def config(tiny_config):
    # The two text layers before the connection repeat, so that stacking does something.
    return tiny_config(
        visual=dict(num_layers=1), text_connections=(2,), visual_connections=(0,), heads=("vqa",)
    )


@pytest.fixture
def params(config, random_params):
    return random_params(config)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_relative_paths(tmp_path, monkeypatch, config, params):
    monkeypatch.chdir(tmp_path)
    save_params("model", params, Vilbert(config), {"b": np.ones(1, np.float32)})
    restored, _, unused = load_params("model")
    assert_equal(restored, params)
    assert list(unused) == ["b"]


def test_round_trip(tmp_path, config, params):
    unused = {"a.layer.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1)}
    save_params(tmp_path / "new" / "model", params, Vilbert(config), unused)
    assert os.listdir(tmp_path / "new") == ["model"]
    assert is_checkpoint(tmp_path / "new" / "model")
    loaded, loaded_config, loaded_unused = load_params(tmp_path / "new" / "model")
    assert_equal(loaded, params)
    assert loaded_config == Vilbert(config)
    assert set(loaded_unused) == set(unused)
    for name, array in unused.items():
        np.testing.assert_array_equal(loaded_unused[name], array)


def test_texts_are_put_beside_and_watched(tmp_path, config, params):
    save_params(tmp_path / "model", params, Vilbert(config), texts={"words.txt": "a\nb"})
    assert (tmp_path / "model" / "words.txt").read_text() == "a\nb\n"
    assert_equal(load_params(tmp_path / "model")[0], params)
    (tmp_path / "model" / "words.txt").unlink()
    with pytest.raises(ValueError, match=r"words.txt is missing"):
        load_params(tmp_path / "model")


def test_views_and_jax_arrays_are_written_as_they_read(tmp_path, config, params):
    views = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf.T).T, params)
    save_params(tmp_path / "views", views, Vilbert(config))
    assert_equal(load_params(tmp_path / "views")[0], params)
    save_params(tmp_path / "jax", jax.tree.map(jax.numpy.asarray, params), Vilbert(config))
    loaded, _, unused = load_params(tmp_path / "jax")
    assert_equal(loaded, params)
    assert unused == {}


def test_both_layouts_of_layers_read_either(tmp_path, config, params):
    scanned = dataclasses.replace(config, scan_layers=True)
    stacked_params = stack_layers(config, params)
    assert any(name.startswith("segment_") for name in stacked_params["trunk"]["encoder"])
    save_params(tmp_path / "model", stacked_params, Vilbert(scanned))
    loaded, loaded_config, _ = load_params(tmp_path / "model")
    assert loaded_config == Vilbert(config)
    assert_equal(loaded, params)
    loaded, loaded_config, _ = load_params(tmp_path / "model", scan_layers=True)
    assert loaded_config == Vilbert(scanned)
    assert_equal(loaded, stacked_params)


@pytest.mark.parametrize(
    "layout, scan_layers", [("dp", False), ("fsdp_tp", False), ("fsdp_tp", True)]
)
def test_any_mesh_restores(layout, scan_layers, tmp_path, config, params):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    placed = jax.device_put(params, sharding.replicated(one))
    save_params(tmp_path / "model", placed, Vilbert(config))

    target = dataclasses.replace(config, scan_layers=scan_layers)
    mesh = sharding.make_mesh(model=2)
    shardings = sharding.param_shardings(abstract_params(target), mesh, layout)
    loaded, _, _ = load_params(tmp_path / "model", shardings=shardings, scan_layers=scan_layers)
    assert_equal(loaded, stack_layers(config, params) if scan_layers else params)
    for leaf, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == wanted

    if layout == "fsdp_tp":  # and back from eight devices to the host
        save_params(tmp_path / "again", loaded, Vilbert(target))
        assert_equal(load_params(tmp_path / "again")[0], params)


def test_existing_directories_are_only_replaced_on_request(tmp_path, config, params):
    path = tmp_path / "model"
    save_params(path, params, Vilbert(config), {"old": np.ones(1)})
    with pytest.raises(FileExistsError, match="model exists"):
        save_params(path, params, Vilbert(config))
    doubled = jax.tree.map(lambda leaf: leaf * 2, params)
    save_params(path, doubled, Vilbert(config), overwrite=True)
    loaded, _, unused = load_params(path)
    assert_equal(loaded, doubled)
    assert unused == {}
    assert os.listdir(tmp_path) == ["model"]


def test_parameters_of_another_model_are_not_written(tmp_path, config, params):
    wrong = dataclasses.replace(config, vocab_size=50)
    with pytest.raises(
        ValueError, match=r"word/embedding has shape \(41, 16\), expected \(50, 16\)"
    ):
        save_params(tmp_path / "model", params, Vilbert(wrong))
    scanned = dataclasses.replace(config, scan_layers=True)
    with pytest.raises(ValueError, match="the layers are stacked in one of the two"):
        save_params(tmp_path / "model", params, Vilbert(scanned))
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(
    tmp_path, config, params, monkeypatch
):
    path = tmp_path / "model"
    save_params(path, params, Vilbert(config))

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_tree", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_params(path, params, Vilbert(config), overwrite=True)
    assert os.listdir(tmp_path) == ["model"]
    assert_equal(load_params(path)[0], params)


def test_what_orbax_raises_becomes_one_error(tmp_path, config, params, caplog):
    objects = dict(params, trunk=np.array([object()]))
    with pytest.raises(OSError, match="model cannot be written: "):
        weights.save_tree(tmp_path / "params", objects, "model")
    assert not [record for record in caplog.records if "orbax" in record.pathname]


def test_a_directory_that_is_no_checkpoint(tmp_path):
    with pytest.raises(
        ValueError, match="is not a checkpoint directory: it should hold config.json"
    ):
        load_params(tmp_path)
    assert not is_checkpoint(tmp_path / "absent")


def test_a_config_that_does_not_fit_the_arrays(tmp_path, config, params):
    path = tmp_path / "model"
    save_params(path, params, Vilbert(config))
    file = path / "config.json"
    text = file.read_text()
    sizes = json.loads((path / "files.json").read_text())

    def rewrite(new_text):
        file.write_text(new_text)
        (path / "files.json").write_text(json.dumps(sizes | {"config.json": len(new_text)}))

    rewrite(json.dumps(json.loads(text) | {"num_vqa_answers": 12}))
    with pytest.raises(
        ValueError, match=r"heads/vqa/logits/bias has shape \(11,\), expected \(12,\)"
    ):
        load_params(path)
    rewrite("{")
    with pytest.raises(ValueError, match="config.json: "):
        load_params(path)


def test_a_copy_that_broke_off_is_found_out(tmp_path, config, params):
    path = tmp_path / "model"
    save_params(path, params, Vilbert(config))
    largest = max(path.glob("params/**/d/*"), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"{largest.name} has {len(content) - 1} bytes, should"):
        load_params(path)
    largest.unlink()
    with pytest.raises(ValueError, match=rf"{largest.name} is missing"):
        load_params(path)
    (path / "files.json").unlink()
    with pytest.raises(ValueError, match="is incomplete: files.json"):
        load_params(path)


def test_a_failure_removes_the_folders_that_it_made(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "file"):
        assert (tmp_path / "a" / "b").is_dir()
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "files.json").touch()
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "model", overwrite=True):
        pass  # nothing was written, so there is nothing to rename
    assert os.listdir(tmp_path / "model") == ["files.json"]
    with replacing(tmp_path / "model", overwrite=True) as temporary:
        temporary.write_text("a file in place of a directory")
    assert (tmp_path / "model").is_file()
    assert os.listdir(tmp_path) == ["model"]


def test_replacing_a_file(tmp_path):
    path = tmp_path / "deep" / "file"
    with replacing(path) as temporary:
        write_state_dict(temporary, "one")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path, overwrite=True) as temporary:
        write_state_dict(temporary, "two")
        raise RuntimeError
    assert b"one" in path.read_bytes()
    with replacing(path, overwrite=True) as temporary:
        write_state_dict(temporary, "three")
    assert b"three" in path.read_bytes()
    assert os.listdir(path.parent) == ["file"]


def write_state_dict(path, content):
    """As `torch.save` arranges it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("files.json", "config.json", "params/x"),
        ("config.json", "params/x"),
        ("config.json", "model.safetensors"),
        ("config.json", "signature.json", "run.py"),
    ],
)
def test_empty_folders_and_models_are_replaced(tmp_path, names):
    path = tmp_path / "out"
    path.mkdir()
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    with replacing(path, overwrite=True) as temporary:
        temporary.mkdir()
    assert os.listdir(path) == []


@pytest.mark.parametrize(
    "names, listed",
    [
        (("thesis.txt",), "a folder with thesis.txt, no model"),
        (("d", "a", "c", "b"), "a folder with a, b, c ..., no model"),
        # A run: its model is in a folder of it.
        (("config.json", "model/config.json", "checkpoints/1/x"), "with checkpoints, config.json,"),
        (("config.json", "index.html"), "a folder with config.json, index.html, no model"),
    ],
)
def test_other_folders_are_not_replaced(tmp_path, names, listed):
    path = tmp_path / "mine"
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    message = f"{path} is .*{listed}.*delete it first"
    with pytest.raises(FileExistsError, match=message), replacing(path, overwrite=True):
        pytest.fail("was to be replaced")
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_are_not_replaced(tmp_path):
    for name, content in (("thesis.txt", b"text"), ("thesis.docx", None)):
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("word/document.xml", "text")
        else:
            path.write_bytes(content)
        message = f"{name} is another file, no model"
        with pytest.raises(FileExistsError, match=message), replacing(path, overwrite=True):
            pytest.fail("was to be replaced")
        assert path.exists()
    (tmp_path / "empty").touch()
    with replacing(tmp_path / "empty", overwrite=True) as temporary:
        temporary.mkdir()
