"""Location of the recorded arrays: the whole set, or the part kept next to this file."""

import os
from pathlib import Path

import pytest

COPIES = Path(__file__).with_name("arrays")


def shared_folder() -> Path:
    """`$TWELVE_IN_ONE_SHARED`, or `shared` next to the checkout; it need not exist."""
    default = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("TWELVE_IN_ONE_SHARED", default))


def recorded_folder() -> Path:
    """Folder of the arrays in every checkout, or of the whole set that they come from."""
    whole = shared_folder() / "fixtures"
    return whole if whole.is_dir() else COPIES


@pytest.fixture(scope="session")
def recorded_dir() -> Path:
    """See `recorded_folder`."""
    if os.environ.get("CI") == "true" and recorded_folder() == COPIES:
        pytest.fail(f"no reference arrays at {shared_folder()}: CI must run with them")
    return recorded_folder()
