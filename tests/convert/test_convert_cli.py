"""The command: what it detects, what it refuses, and what it leaves behind."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from twelve_in_one.checkpoints import weights
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import source
from twelve_in_one.convert.__main__ import main
from twelve_in_one.convert.names import TIED_DECODER
from twelve_in_one.convert.state_dict import from_state_dict
from twelve_in_one.models.two_stream.config import ALL_HEADS, PRETRAINING_HEADS, TASK_HEADS, to_json
from twelve_in_one.models.two_stream.reference_config import to_reference

NO_TASKS = dict(heads=PRETRAINING_HEADS, num_tasks=0)
TASK_TABLE = "bert.embeddings.task_embeddings.weight"


@pytest.fixture
def official(tiny_config, random_tensors, tmp_path):
    """Makes a directory with a two-stream model and the released code's config.json."""

    def make(name="official", **fields):
        config = tiny_config(num_tasks=20) if not fields else tiny_config(**fields)
        directory = tmp_path / name
        directory.mkdir()
        tensors = random_tensors(config)
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(to_reference(config)))
        return directory, config, tensors

    return make


def run(*args):
    return main([str(arg) for arg in args])


def usage_error(capsys, *args):
    with pytest.raises(SystemExit) as error:
        run(*args)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_to_ours_and_back(official, tmp_path, capsys, assert_same):
    directory, config, tensors = official()
    assert run(directory, tmp_path / "ours") == 0
    out = capsys.readouterr().out
    assert "a two-stream state dict" in out and "wrote" in out
    params, stored, unused = weights.load_params(tmp_path / "ours")
    # What the released settings do not say is as the released code has it.
    assert stored.config == dataclasses.replace(config, head_dropout_rate=0.1)
    wanted = from_state_dict(config, tensors)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, wanted.params))
    assert set(unused) == set(wanted.unused)

    assert run(tmp_path / "ours", tmp_path / "back", "--to", "safetensors") == 0
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == to_reference(config)


def test_bin_there_and_back(official, tmp_path, assert_same):
    torch = pytest.importorskip("torch", reason="needs the extra twelve_in_one[torch]")
    directory, config, tensors = official()
    assert run(directory, tmp_path / "a.bin") == 0
    (tmp_path / "config.json").write_text(to_json(config))
    assert run(tmp_path / "a.bin", tmp_path / "ours") == 0
    assert run(tmp_path / "ours", tmp_path / "b.bin") == 0
    assert run(tmp_path / "ours", tmp_path / "b.bin", "--overwrite") == 0
    for name in ("a.bin", "b.bin"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert_same({key: value.numpy() for key, value in content.items()}, tensors)


@pytest.mark.parametrize(
    "fields",
    [
        dict(heads=ALL_HEADS, num_tasks=5),
        dict(heads=TASK_HEADS, num_tasks=0),
        dict(heads=("masked_region", "vqa", "alignment"), num_tasks=20),
        NO_TASKS,
    ],
)
def test_heads_and_task_tokens_are_those_of_the_file(fields, official, tmp_path):
    directory, config, _ = official(**fields)
    assert run(directory, tmp_path / "ours") == 0
    stored = weights.load_params(tmp_path / "ours")[1].config
    assert set(stored.heads) == set(config.heads)
    assert stored.num_tasks == config.num_tasks


def test_a_pretraining_model_as_the_start_of_multi_task_training(official, tmp_path, capsys):
    directory, _, _ = official(**NO_TASKS)
    args = (directory, tmp_path / "start", "--model", "downstream")
    assert run(*args) == 1
    captured = capsys.readouterr()
    assert "nothing was written" in captured.err
    assert TASK_TABLE in captured.out
    assert not (tmp_path / "start").exists()

    allow = ["--allow_missing", "vil_.*", "--allow_missing", "(vision|linguisic)_logit.*"]
    allow += ["--allow_missing", ".*task_embeddings.*", "--allow_missing", "typo.*"]
    assert run(*args, *allow, "--seed", 3) == 0
    assert "note: 'typo.*' allows nothing that occurs" in capsys.readouterr().out
    params, system, _ = weights.load_params(tmp_path / "start")
    config = system.config
    assert (config.heads, config.num_tasks) == (ALL_HEADS, 20)
    assert flatten(params)["trunk", "text_embedding", "task", "embedding"].std() > 0.01


def test_the_pretraining_part_of_a_multi_task_model(official, tmp_path):
    directory, _, _ = official()
    args = (directory, tmp_path / "part", "--model", "pretraining")
    assert run(*args) == 1
    allow = ["--allow_unexpected", "vil_.*", "--allow_unexpected", ".*task_embeddings.*"]
    assert run(*args, *allow, "--allow_unexpected", "(vision|linguisic)_logit.*") == 0
    assert weights.load_params(tmp_path / "part")[1].config.heads == PRETRAINING_HEADS


def test_a_bert(tiny_config, random_tensors, tmp_path, capsys):
    config = tiny_config()
    bert = tmp_path / "bert"
    bert.mkdir()
    prefixes = ("bert.embeddings.", "bert.encoder.layer.")
    tensors = {n: a for n, a in random_tensors(config).items() if n.startswith(prefixes)}
    del tensors[TASK_TABLE]
    save_file(tensors, bert / "model.safetensors")
    raw = {key: value for key, value in to_reference(config).items() if key[:2] not in ("v_", "t_")}
    (bert / "config.json").write_text(json.dumps(raw))
    (tmp_path / "wanted.json").write_text(to_json(config))

    args = (bert, tmp_path / "start", "--config", tmp_path / "wanted.json")
    assert run(*args) == 0
    assert "a BERT" in capsys.readouterr().out
    stored = weights.load_params(tmp_path / "start")[1].config
    assert (stored.heads, stored.num_tasks, stored.text) == (PRETRAINING_HEADS, 0, config.text)

    (bert / "config.json").write_text(json.dumps(raw | {"num_attention_heads": 4}))
    assert run(*args, "--overwrite") == 1
    assert "text.num_heads is 2, the BERT has 4" in capsys.readouterr().err


def test_our_directory_with_other_heads(official, tmp_path):
    directory, _, _ = official(**NO_TASKS)
    assert run(directory, tmp_path / "ours") == 0
    args = (tmp_path / "ours", tmp_path / "more", "--model", "downstream")
    assert run(*args) == 1
    assert run(*args, "--allow_missing", ".*") == 0
    assert weights.load_params(tmp_path / "more")[1].config.heads == ALL_HEADS


def test_without_a_config_only_the_official_size_is_taken(
    official, tmp_path, capsys, monkeypatch, tiny_config
):
    directory, config, _ = official()
    (directory / "config.json").unlink()
    assert run(directory, tmp_path / "ours") == 1
    error = capsys.readouterr().err
    assert "a vocabulary of 41, text width 16, 3 text layers, 2 visual layers" in error
    assert "no shipped size fits" in error
    monkeypatch.setitem(source.SIZES, "small", config)
    assert run(directory, tmp_path / "ours") == 1
    assert "--config small fits" in capsys.readouterr().err
    assert run(directory, tmp_path / "ours", "--config", "small") == 0
    monkeypatch.setitem(source.SIZES, "base_6l", config)
    assert run(directory, tmp_path / "other") == 0
    assert "base_6l, as none is given" in capsys.readouterr().out


def test_refusals_leave_nothing(official, tmp_path, capsys, tiny_config):
    directory, config, tensors = official()
    (tmp_path / "wide.json").write_text(to_json(tiny_config(num_tasks=20, num_vqa_answers=12)))
    before = sorted(os.listdir(tmp_path))
    out = tmp_path / "out"
    assert run(directory, out, "--config", tmp_path / "wide.json") == 1
    assert "(11,), expected (12,)" in capsys.readouterr().out

    save_file(tensors | {"vil_logit.wait": tensors[TIED_DECODER]}, directory / "model.safetensors")
    assert run(directory, out) == 1
    captured = capsys.readouterr()
    assert "vil_logit.wait (did you mean vil_logit.weight)" in captured.out
    assert captured.err.startswith("error: ")

    (directory / "model.safetensors").write_bytes(b"\0" * 20)
    assert run(directory, out) == 1
    assert "truncated or not a safetensors file" in capsys.readouterr().err
    save_file({"conv1.weight": np.ones(3)}, directory / "model.safetensors")
    assert run(directory, out) == 1
    assert "neither a two-stream model nor a BERT" in capsys.readouterr().err
    (directory / "model.safetensors").unlink()
    assert run(directory, out) == 1
    assert "nor does it hold model.safetensors" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_a_full_disk_is_one_message(suffix, official, tmp_path, capsys, monkeypatch):
    directory, _, _ = official()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_tree", full_disk)
    monkeypatch.setattr("twelve_in_one.convert.files.save_file", full_disk)
    assert run(directory, tmp_path / f"out{suffix}") == 1
    assert capsys.readouterr().err.endswith("error: [Errno 28] No space left on device\n")
    assert os.listdir(tmp_path) == ["official"]


def test_dry_run_and_overwrite(official, tmp_path, capsys):
    directory, _, _ = official()
    assert run(directory, tmp_path / "out.safetensors", "--dry_run") == 0
    assert "loaded" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["official"]
    assert run(directory, tmp_path / "out.safetensors") == 0
    assert (tmp_path / "out.safetensors" / "model.safetensors").is_file()
    error = usage_error(capsys, directory, tmp_path / "out.safetensors")
    assert "out.safetensors exists; pass --overwrite" in error
    assert run(directory, tmp_path / "out.safetensors", "--overwrite") == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    capsys.readouterr()
    assert run(directory, tmp_path / "mine", "--overwrite") == 1
    captured = capsys.readouterr()
    assert "mine is a folder with thesis.txt, no model" in captured.err and not captured.out
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_wrong_usage(official, tmp_path, capsys):
    directory, _, _ = official()
    out = tmp_path / "out"
    assert "does not exist" in usage_error(capsys, tmp_path / "absent", out)
    assert "are the same" in usage_error(capsys, directory, directory, "--overwrite")
    assert "malformed" in usage_error(capsys, directory, out, "--allow_missing", "(")
    assert "did you mean base_6l" in usage_error(capsys, directory, out, "--config", "base_6")
    (tmp_path / "bad.json").write_text("{")
    error = usage_error(capsys, directory, out, "--config", tmp_path / "bad.json")
    assert "bad.json" in error
    assert "invalid choice" in usage_error(capsys, directory, out, "--to", "onnx")
    assert not out.exists()


def test_as_a_command_without_torch_or_tensorflow(official, tmp_path):
    directory, _, _ = official()
    code = (
        "import sys, twelve_in_one.convert.__main__ as c\n"
        "code = c.main(sys.argv[1:])\n"
        "bad = {'torch', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else code)"
    )
    args = [sys.executable, "-c", code, str(directory), str(tmp_path / "ours")]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
