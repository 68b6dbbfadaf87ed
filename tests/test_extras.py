"""What every command says where the data extra is not installed."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from twelve_in_one import configs, evaluate, extras, train
from twelve_in_one.data import build, real_samples, text_baselines
from twelve_in_one.report import __main__ as report
from twelve_in_one.world import __main__ as world

ROOT = Path(__file__).resolve().parents[1]


def normal(name):
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_modules_are_those_of_the_extra(extra):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = tomllib.loads(text)["project"]["optional-dependencies"][extra]
    wanted = {normal(re.match(r"[\w-]+", line)[0]) for line in lines} - {"tensorflow-cpu"}
    assert len(extras.EXTRAS[extra]) == len(wanted)
    installed = importlib.metadata.packages_distributions()
    for module in extras.EXTRAS[extra]:
        if module not in installed:
            pytest.skip(f"{module} is not installed")
        # TensorFlow comes from one of two distributions, by the platform.
        found = {normal(name).replace("tensorflow-cpu", "tensorflow") for name in installed[module]}
        assert found & wanted, module


@pytest.fixture
def without(monkeypatch):
    """Makes modules missing."""

    def make(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return make


def test_all_that_is_missing_is_named_with_the_way_out(without):
    extras.require("training", "data")
    without("tensorflow", "PIL")
    with pytest.raises(ImportError, match="training needs PIL, tensorflow, not installed here: pi"):
        extras.require("training", "data")


def test_training_from_python(without, tmp_path):
    without("tensorflow")
    with pytest.raises(ImportError, match=r"pip install 'twelve_in_one\[data\]'"):
        train.train(configs.get("world:debug"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluate.main, ["--workdir", "run"]),
        (build.main, ["all", "--manual_dir", "raw", "--data_dir", "data"]),
        (real_samples.main, ["--samples", ".", "--data_dir", "data"]),
        (text_baselines.main, ["--data_dir", "data"]),
        (report.main, ["--workdir", "run"]),
        (world.main, ["--out", "raw"]),
    ],
)
def test_commands(main, arguments, without, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    without("tensorflow")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "pip install 'twelve_in_one[data]'" in error and "Traceback" not in error
    assert not any(tmp_path.iterdir())
