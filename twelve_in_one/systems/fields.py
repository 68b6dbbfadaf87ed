"""Frozen dataclasses from nested dicts, as configs and JSON hold them."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

# Fields of configs of image encoders that may be 0, which means without.
OF_ENCODERS = ("num_registers", "num_classes", "window", "cropped_positions", "frames")


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
    kinds = {name: section_type(hints[name], value) for name, value in fields.items()}
    values = {
        name: build(kinds[name], value)
        if kinds[name] is not None and isinstance(value, Mapping)
        else _frozen(value)
        for name, value in fields.items()
    }
    return cls(**values)


def section_type(hint: Any, raw: Any) -> type | None:
    """The dataclass that the fields of a section are of; None if the type is of no section.

    Of "A | B" it is the one that knows most of the fields; the first one if several do.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    if not all(dataclasses.is_dataclass(kind) for kind in kinds):
        return None
    given = set(raw) if isinstance(raw, Mapping) else set()
    known = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    return max(zip(kinds, known, strict=True), key=lambda pair: len(pair[1] & given))[0]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
