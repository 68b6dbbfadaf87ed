"""One value or many: pairing the arguments of a prediction."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Once:
    """A list that counts as one value."""

    value: Any


def is_list(value: Any) -> bool:
    """Whether an argument stands for several."""
    return isinstance(value, list | tuple)


def paired(**values: Any) -> tuple[list[list[Any]], bool]:
    """All arguments as lists of equal length, and whether none of them was a list.

    Raises:
      ValueError: two lists differ in length.
    """
    lengths = {name: len(value) for name, value in values.items() if is_list(value)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ValueError(f"lists must be of one length, got {listed}")
    count = next(iter(lengths.values()), 1)
    columns = []
    for name, value in values.items():
        if name in lengths:
            columns.append(list(value))
        else:
            columns.append([value.value if isinstance(value, Once) else value] * count)
    return columns, not lengths


def boxes_of_each(image: Any, boxes: Any) -> Any:
    """Boxes for `paired`: one set for one image, a list of sets for a list of images.

    Raises:
      ValueError: several images without one set each; names the first that has None.
    """
    if boxes is None:
        return None
    if not is_list(image):
        return Once(boxes)
    if not is_list(boxes) or len(boxes) != len(image):
        got = f"{len(boxes)} elements" if is_list(boxes) else type(boxes).__name__
        raise ValueError(f"{len(image)} images need a list of the boxes of each, got {got}")
    for number, one in enumerate(boxes):
        if one is None:
            raise ValueError(f"boxes of image {number} are None: pass some, or leave boxes out")
    return list(boxes)


def chosen_mask(choices: Sequence[int] | None, count: int) -> np.ndarray:
    """bool[count], the boxes that may be chosen: all if None.

    Raises:
      ValueError: no choices, or a position without a box.
    """
    mask = np.ones(count, bool)
    if choices is None:
        return mask
    wanted = np.asarray(choices)
    if wanted.ndim != 1 or not wanted.size or wanted.dtype.kind not in "iu":
        raise ValueError(f"choices must be positions among the {count} boxes, got {choices!r}")
    if wanted.min() < 0 or wanted.max() >= count:
        raise ValueError(f"choices {wanted.tolist()} must be from 0 to {count - 1}")
    mask[:] = False
    mask[wanted] = True
    return mask
