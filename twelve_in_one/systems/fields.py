"""Frozen dataclasses from nested dicts, as configs and JSON hold them."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any


def build(cls: type, fields: Mapping[str, Any]) -> Any:
    """`cls` from its fields; sections are dicts, and lists stand for tuples.

    Raises:
      ValueError: unknown or missing fields, or values that `cls` refuses.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    needed = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    wrong = sorted(fields.keys() - known), sorted(needed - fields.keys())
    if any(wrong):
        raise ValueError(
            f"{cls.__name__}: unknown fields {', '.join(wrong[0]) or 'none'}; missing fields "
            f"{', '.join(wrong[1]) or 'none'}"
        )
    values = {
        name: build(hints[name], value)
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping)
        else _frozen(value)
        for name, value in fields.items()
    }
    return cls(**values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
