"""Settings of every test: eight CPU devices, no silent rank promotion, where the references are."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of the reference arrays: `$TWELVE_IN_ONE_SHARED`, or `shared` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("TWELVE_IN_ONE_SHARED", default))
    if not (path / "fixtures").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no reference arrays at {path}: CI must run with them")
        pytest.skip(f"no reference arrays at {path}; set TWELVE_IN_ONE_SHARED to their folder")
    return path
