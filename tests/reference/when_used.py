"""Modules that are imported when they are first used: every worker collects the tests of all."""

import importlib
import importlib.util
from typing import Any

import pytest


class _WhenUsed:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest", "setup", "teardown")):  # looked for by pytest
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def when_used(name: str) -> Any:
    """The module `name`; where it is not installed, the tests that ask for it are skipped."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    return _WhenUsed(name)
