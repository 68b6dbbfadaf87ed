"""Paths on the command line, and that every command takes them so."""

import argparse
from pathlib import Path

import pytest

from twelve_in_one import evaluate, export
from twelve_in_one.convert import __main__ as convert
from twelve_in_one.data import build, real_samples
from twelve_in_one.data.regions import extract
from twelve_in_one.paths import local_path
from twelve_in_one.predict import __main__ as predict
from twelve_in_one.world import __main__ as world

BUCKET = "gs://bucket/folder"
BUILD = ["vqa", "--manual_dir", "raw", "--data_dir", "data"]
ASK = ["answer", "--image", "a.png", "--text", "what", "--model"]


def test_paths_of_a_file_system_are_taken():
    assert local_path("a/b:c") == Path("a/b:c")
    with pytest.raises(argparse.ArgumentTypeError, match="gs://b/x: mount the bucket, and give"):
        local_path("gs://b/x")


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
