"""Checks of settings that are dataclasses: all mistakes in one message.

errors = [*wrong(self, ("patience", "cooldown"), whole(0)), *wrong(self, ("kind",), one_of(Kind))]
raise_for("controller", errors)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

# Whether a value passes, and the requirement in words.
Check = tuple[Callable[[Any], bool], str]


def one_of(choices: Any) -> Check:
    """One of the values of a Literal."""
    return lambda value: value in get_args(choices), f"one of {', '.join(get_args(choices))}"


def whole(low: int) -> Check:
    """A whole number of at least `low`, not a bool."""
    return lambda value: type(value) is int and value >= low, f"an int >= {low}"


def number(low: float, high: float = math.inf, *, open: bool = False) -> Check:
    """A finite number in [low, high], or in (low, high) if `open`."""

    def accepts(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return low < value < high if open else low <= value <= high

    brackets = "()" if open else "[]"
    return accepts, f"a finite number in {brackets[0]}{low:g}, {high:g}{brackets[1]}"


def wrong(settings: Any, fields: Sequence[str], check: Check) -> list[str]:
    """A message for every field that does not pass."""
    accepts, meaning = check
    values = ((field, getattr(settings, field)) for field in fields)
    return [f"{f}={value!r} must be {meaning}" for f, value in values if not accepts(value)]


def repeated(names: Sequence[str]) -> list[str]:
    """A message for every task name that occurs twice."""
    return [f"task {n} occurs {c} times" for n in dict.fromkeys(names) if (c := names.count(n)) > 1]


def differing_names(kind: str, found: Any, expected: Sequence[str]) -> list[str]:
    """A message for every missing or unexpected name."""
    return [f"{kind} {name} is missing" for name in expected if name not in found] + [
        f"unknown {kind} {name}" for name in found if name not in expected
    ]


def raise_for(subject: str, errors: Sequence[str]) -> None:
    """Raises a ValueError with all messages, if there are any."""
    if errors:
        raise ValueError(f"{subject}: " + "; ".join(errors))
