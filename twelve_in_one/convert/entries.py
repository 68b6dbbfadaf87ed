"""Turns entries of a file into parameters, by a table of their sources."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from twelve_in_one.checkpoints.report import Report, nearest_names

Path = tuple[str, ...]
Sources = Mapping[Path, tuple[str, ...]]
ToOurs = Callable[[Path, list[np.ndarray], tuple[int, ...]], np.ndarray]


def match(
    sources: Sources,
    tensors: Mapping[str, Any],
    shapes: Mapping[Path, tuple[int, ...]],
    to_ours: ToOurs,
    *,
    unneeded: Iterable[str] = (),
    layout: str = "",
) -> tuple[dict[Path, np.ndarray], Report]:
    """Makes every possible parameter, and accounts for every entry.

    Args:
      sources: {our path: names of the entries to make it from}.
      tensors: {name: array}.
      shapes: of the parameters.
      to_ours: (path, float32 arrays, shape) -> one parameter; raises a ValueError if the sizes of
        the arrays do not fit.
      unneeded: regular expressions of entries that may be present but unused.
      layout: shown after the required shape, in the report.

    Returns:
      The parameters by path, and the report, which may be a failure.
    """
    loaded, missing, wrong, params = [], [], [], {}
    for path, names in sources.items():
        absent = [name for name in names if name not in tensors]
        if absent:
            missing += absent
            continue
        arrays = [np.asarray(tensors[name]).astype(np.float32) for name in names]
        try:
            params[path] = to_ours(path, arrays, shapes[path])
        except ValueError:
            found = " and ".join(str(array.shape) for array in arrays)
            wrong.append((" and ".join(names), found, f"{shapes[path]}{layout}"))
            continue
        loaded += names
    known = {name for names in sources.values() for name in names}
    patterns = [re.compile(pattern) for pattern in unneeded]
    unknown = [name for name in tensors if name not in known]
    unexpected = [n for n in unknown if not any(p.fullmatch(n) for p in patterns)]
    report = Report(
        loaded=tuple(dict.fromkeys(loaded)),
        missing=tuple(dict.fromkeys(missing)),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong),
        unused=tuple(name for name in unknown if name not in unexpected),
        nearest=nearest_names(missing, unexpected) | nearest_names(unexpected, known),
    )
    return params, report


def check_finite(params: Mapping[Path, np.ndarray], sources: Sources) -> None:
    """Refuses parameters with NaN or infinity.

    Raises:
      ValueError: one has some; names the entries that it was made of.
    """
    for path, value in params.items():
        if not np.isfinite(value).all():
            names = ", ".join(sources[path][:4])
            raise ValueError(f"numbers that are not finite, or variances below 0, in {names}")
