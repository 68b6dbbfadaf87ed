"""Paths on the command line, and that every command takes them so."""

import argparse
import dataclasses
import operator
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twelve_in_one import evaluate, export
from twelve_in_one.config import check, defaults
from twelve_in_one.config.paths import local_path
from twelve_in_one.config.settings import DataOptions, InitFrom, RunConfig
from twelve_in_one.convert import __main__ as convert
from twelve_in_one.data import build, real_samples
from twelve_in_one.data.regions import extract, open_store
from twelve_in_one.predict import __main__ as predict
from twelve_in_one.world import __main__ as world

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "gs://bucket/folder"
BUILD = ["vqa", "--manual_dir", "raw", "--data_dir", "data"]
ASK = ["answer", "--image", "a.png", "--text", "what", "--model"]


def test_paths_of_a_file_system_are_taken():
    assert local_path("a/b:c") == Path("a/b:c")
    with pytest.raises(argparse.ArgumentTypeError, match="gs://b/x: mount the bucket, and give"):
        local_path("gs://b/x")


def test_the_home_folder(tmp_path, monkeypatch):
    """Behind "=" and ":" no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run") == tmp_path / "run"
    assert local_path("a~/~") == Path("a~/~")
    (tmp_path / "a.npy").touch()
    for spec in ("~", "npy:~", "npy:~/"):
        with open_store(spec) as store:
            assert list(store.ids()) == ["a"]
    args = build.parse_arguments(["vqa", "--manual_dir=~/raw", "--data_dir=~/data"])
    assert (args.manual_dir, args.images) == (tmp_path / "raw", tmp_path / "raw" / "images")
    asked = predict.parse_arguments(["answer", "--model=~", "--image=~/a.png", "--text=what"])
    assert asked.image == [f"{tmp_path}/a.png"]


PATHS = ("data.dir", "data.raw_dir", "data.samples_dir", "data.held_out_dir",
         "data.world_pictures", "data.world_other_pictures", "init_from.path",
         "compilation_cache")  # fmt: skip


def test_the_home_folder_in_a_config(tmp_path, monkeypatch):
    """What is checked is expanded, and what is written into the workdir as it was given."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = defaults.world_config()
    config.update_from_flattened_dict({name: f"~/{name}" for name in PATHS})
    run = check.check(config)
    for name in PATHS:
        assert operator.attrgetter(name)(run) == f"{tmp_path}/{name}"
    assert config.data.dir == "~/data.dir"
    marked = {
        f"{prefix}{field.name}"
        for cls, prefix in ((RunConfig, ""), (DataOptions, "data."), (InitFrom, "init_from."))
        for field in dataclasses.fields(cls)
        if field.metadata.get("path")
    }
    assert marked == set(PATHS)


def test_the_home_folder_of_a_run(tmp_path, monkeypatch, capsys):
    """The config's file, the workdir and a setting, through the command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(ROOT / "configs" / "world.py", tmp_path / "mine.py")
    argv = ["--config=~/mine.py:debug", "--workdir=~/run", "--config.init_from.path=~/nothing"]
    command = [sys.executable, "-m", "twelve_in_one.train", *argv, "--config.data.world_images=0"]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert ended.returncode == 1
    assert f"config.init_from.path: there is no {tmp_path}/nothing" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "main, argv",
    [
        (world.main, ["--out", BUCKET]),
        (build.main, ["vqa", "--data_dir", "data", "--manual_dir", BUCKET]),
        (build.main, ["vqa", "--manual_dir", "raw", "--data_dir", BUCKET]),
        (build.main, [*BUILD, "--images", BUCKET]),
        (build.main, [*BUILD, "--vqa_answers", BUCKET]),
        (build.main, [*BUILD, "--gqa_answers", BUCKET]),
        (build.main, [*BUILD, "--vocab", BUCKET]),
        (real_samples.main, ["--data_dir", BUCKET]),
        (real_samples.main, ["--data_dir", "data", "--samples", BUCKET]),
        (real_samples.main, ["--data_dir", "data", "--held_out", BUCKET]),
        (real_samples.main, ["--data_dir", "data", "--vocab", BUCKET]),
        (extract.main, ["--out", "out", "--images", BUCKET]),
        (extract.main, ["--images", "in", "--out", BUCKET]),
        (evaluate.main, ["--workdir", BUCKET]),
        (evaluate.main, ["--model", BUCKET]),
        (evaluate.main, ["--workdir", "run", "--data_dir", BUCKET]),
        (evaluate.main, ["--workdir", "run", "--submissions", BUCKET]),
        (evaluate.main, ["--workdir", "run", "--output", BUCKET]),
        (export.main, ["--to", "out", "--format", "jax", "--from", BUCKET]),
        (export.main, ["--from", "run", "--format", "jax", "--to", BUCKET]),
        (predict.main, [*ASK, BUCKET]),
        (predict.main, [*ASK, "run", "--requests", BUCKET]),
        (predict.main, [*ASK, "run", "--picture", BUCKET]),
        (convert.main, [BUCKET, "out"]),
        (convert.main, ["in", BUCKET]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value.__module__,
)
def test_every_command_refuses_addresses(main, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert f"{BUCKET}: mount the bucket, and give its path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_samples_of_the_environment_are_a_path_too(monkeypatch, capsys):
    monkeypatch.setenv(real_samples.SAMPLES_VARIABLE, BUCKET)
    with pytest.raises(SystemExit):
        real_samples.main(["--data_dir", "data"])
    assert "mount the bucket" in capsys.readouterr().err
