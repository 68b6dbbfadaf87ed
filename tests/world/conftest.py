"""A small world that several test modules look at."""

import pytest

from twelve_in_one.world import make


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The world of 50 pictures and seed 3. Do not write to its folder."""
    folder = tmp_path_factory.mktemp("world") / "raw"
    make.make(folder, 50, 3, 1, lambda line: None)
    return folder
