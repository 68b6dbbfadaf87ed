"""Random released state dicts, and arrays recorded from Hugging Face's models."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twelve_in_one.convert.names import TIED_DECODER, WORD_TABLE, table
from twelve_in_one.models.two_stream.config import TwoStreamConfig

StateDict = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def random_tensors() -> Callable[..., StateDict]:
    """Makes every entry of a released state dict: `random_tensors(config, seed=0)`."""

    entries = functools.cache(table)

    def make(config: TwoStreamConfig, seed: int = 0) -> StateDict:
        rng = np.random.default_rng(seed)
        tensors = {e.name: rng.standard_normal(e.shape, np.float32) for e in entries(config)}
        if TIED_DECODER in tensors:
            tensors[TIED_DECODER] = tensors[WORD_TABLE]
        return tensors

    return make


@pytest.fixture(scope="session")
def assert_same() -> Callable[[StateDict, StateDict], None]:
    """Checks that two state dicts have the same names and bits."""

    def check(ours: StateDict, theirs: StateDict) -> None:
        assert set(ours) == set(theirs)
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype == np.float32, name
            assert ours[name].tobytes() == array.tobytes(), name

    return check


@pytest.fixture(scope="session")
def hf_recorded() -> Callable[[str], StateDict]:
    """Reads `tests/reference/NAME.npz`: `hf_recorded("hf_vision")`."""

    @functools.cache
    def read(name: str) -> StateDict:
        path = Path(__file__).parents[1] / "reference" / f"{name}.npz"
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    return read
