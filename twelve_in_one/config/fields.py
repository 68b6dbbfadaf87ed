"""Fields of settings with limits, which `check.py` reads from their metadata."""

import dataclasses
from typing import Any


def at_least(low: float, default: Any = dataclasses.MISSING) -> Any:
    """A number from `low` up."""
    return dataclasses.field(default=default, metadata={"low": low})


def share(default: float) -> Any:
    """A number from 0 to 1."""
    return dataclasses.field(default=default, metadata={"low": 0.0, "high": 1.0})


def one_of(*values: str, default: Any = dataclasses.MISSING) -> Any:
    """One of some names."""
    return dataclasses.field(default=default, metadata={"choices": values})


def path(default: Any = dataclasses.MISSING) -> Any:
    """The path of a file or folder, or ""; "~" is expanded."""
    return dataclasses.field(default=default, metadata={"path": True})
