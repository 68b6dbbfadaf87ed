"""Readable differences between two configs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from twelve_in_one.config.settings import RunConfig


def differences(before: RunConfig, now: RunConfig, *, ignore: Sequence[str] = ()) -> list[str]:
    """Settings that differ, as "optimizer.b1 is 0.9 there and 0.8 here".

    Args:
      before: one config, "there".
      now: the other, "here".
      ignore: names of settings or sections that may differ, e.g. "log", "data.prefetch".
    """
    return _differing(dataclasses.asdict(before), dataclasses.asdict(now), "", ignore)


def _differing(before: Any, now: Any, name: str, ignore: Sequence[str]) -> list[str]:
    if name in ignore:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else str(key)
            found += _differing(before.get(key), now.get(key), inner, ignore)
        return found
    return [] if before == now else [f"{name} is {before!r} there and {now!r} here"]
