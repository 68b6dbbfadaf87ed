"""Values of settings, checked against the dataclasses that declare them."""

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from twelve_in_one.config.paths import expand
from twelve_in_one.systems import fields as system_fields
from twelve_in_one.systems.base import System


def section(cls: type, raw: Any, path: str, errors: list[str]) -> Any:
    """`raw` as the dataclass `cls`, or None; errors are added to the list."""
    values = values_of(cls, raw, path, errors)
    return None if values is None else cls(**values)


def values_of(
    cls: type, raw: Any, path: str, errors: list[str], system: type[System] | None = None
) -> dict[str, Any] | None:
    """`raw` as arguments of the dataclass `cls`, or None; errors are added to the list.

    For a system's config, whose fields carry no limits, sections stay dicts.
    """
    if not isinstance(raw, Mapping):
        errors.append(f"{path}: should be a section, got {raw!r}")
        return None
    prefix = f"{path}." if path else ""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    count = len(errors)
    for name in raw:
        if name not in fields:
            errors.append(f"{prefix}{name}: no such setting{near(name, fields)}")
    values = {}
    for name, field in fields.items():
        if name not in raw:
            if field.default is dataclasses.MISSING:
                errors.append(f"{prefix}{name}: missing")
        elif (kind := system_fields.section_type(hints[name], raw[name])) is not None:
            path = f"{prefix}{name}"
            if system is None:
                values[name] = section(kind, raw[name], path, errors)
            else:
                values[name] = values_of(kind, raw[name], path, errors, system)
        else:
            low = field.metadata.get("low") if system is None else _low(system, name, hints[name])
            values[name] = _value(raw[name], field, hints[name], low, f"{prefix}{name}", errors)
    return None if len(errors) > count else values


def _low(system: type[System], name: str, hint: Any) -> float | None:
    """The least value of a field of a system's config."""
    zero = name in (*system.data_decides, *system.may_be_zero)
    return None if name in system.may_be_negative else {int: 0 if zero else 1, float: 0.0}.get(hint)


def _value(
    value: Any, field: dataclasses.Field, hint: Any, low: Any, path: str, errors: list[str]
) -> Any:
    if typing.get_origin(hint) is types.UnionType:  # "X | None"
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    high, choices = (field.metadata.get(limit) for limit in ("high", "choices"))
    if kind is typing.Literal:
        kind, choices = type(inner[0]), inner
    if kind is tuple and isinstance(value, (list, tuple)):
        of = inner[0] if hasattr(inner[0], "_fields") else tuple  # a named tuple
        value = tuple(_row(of, item) if isinstance(item, list | tuple) else item for item in value)
        if inner[0] is not Any and not all(is_a(item, inner[0]) for item in value):
            errors.append(f"{path}: should hold {inner[0].__name__} only, got {value!r}")
        return value
    if field.metadata.get("path") and isinstance(value, str):
        value = expand(value)
    if kind is float and is_a(value, int) and abs(value) <= sys.float_info.max:
        value = float(value)
    if not is_a(value, kind):
        errors.append(f"{path}: should be {kind.__name__}, got {value!r}")
    elif kind is float and not math.isfinite(value):
        errors.append(f"{path}: should be finite, got {value}")
    elif low is not None and value < low:
        errors.append(f"{path}: should be at least {low}, got {value}")
    elif high is not None and value > high:
        errors.append(f"{path}: should be at most {high}, got {value}")
    elif choices is not None and value not in choices:
        errors.append(f"{path}: {value!r} is not one of {', '.join(map(str, choices))}")
    return value


def _row(kind: Any, item: Any) -> tuple[Any, ...]:
    fits = kind is not tuple and len(item) == len(kind._fields)
    return kind(*item) if fits else tuple(item)


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; True and False are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def near(name: Any, known: Any) -> str:
    """What somebody may have meant, for the end of a message."""
    found = difflib.get_close_matches(str(name), list(known), n=3)
    return f"; did you mean {', '.join(found)}?" if found else f"; known: {', '.join(known)}"
