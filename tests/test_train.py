"""The default job in its debug size: what it writes, what it reports, what it refuses."""

import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import app

from twelve_in_one import checkpoint, train
from twelve_in_one.data import scenes
from twelve_in_one.models.config import named_size
from twelve_in_one.models.two_stream import TwoStreamModel, init_params
from twelve_in_one.tasks.base import trunk_inputs
from twelve_in_one.tasks.twelve import TWELVE

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "scenes.py"
NAMES = [task.name for task in TWELVE]


def get_config(mode="debug"):
    spec = importlib.util.spec_from_file_location("configs_scenes", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(mode)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The debug job, all twelve tasks: its config, its folder, its results and what it printed."""
    config, workdir = get_config(), tmp_path_factory.mktemp("job") / "new" / "workdir"
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text: printed.append(text))
        results = train.train(config, workdir)
    return config, workdir, results, "\n".join(printed)

def test_x(job):
    print(job)
