"""Data that a run asks for is what it is trained on, or the run ends before it begins."""

import pytest

from twelve_in_one.config import check, defaults
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.training import prepare


@pytest.fixture
def config(small_world):
    """Of the small world, which is there already."""
    config = defaults.world_config()
    config.data.dir, config.data.raw_dir = str(small_world.data), str(small_world.raw)
    return config


def test_another_world_is_not_taken_for_the_one_that_is_asked_for(config, tmp_path):
    config.data.world_images = 0  # whatever is there
    prepare.prepare(check.check(config), tmp_path)
    config.data.world_images, config.data.world_seed = 500, 7
    with pytest.raises(DataError, match=r"holds another world, .*'seed': 7"):
        prepare.prepare(check.check(config), tmp_path)


def test_files_to_be_tested_on_need_some_to_train_on(config, tmp_path):
    config.data.held_out_dir = str(tmp_path)
    with pytest.raises(DataError, match="set TWELVE_IN_ONE_SAMPLES"):
        prepare.prepare(check.check(config), tmp_path)


@pytest.mark.parametrize("name", ["samples_dir", "held_out_dir"])
def test_folders_that_are_not_there_are_named(config, tmp_path, name):
    config.data.samples_dir = config.data.held_out_dir = str(tmp_path)
    config.data[name] = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"config.data.{name}=.*nowhere: no such folder"):
        prepare.prepare(check.check(config), tmp_path)
