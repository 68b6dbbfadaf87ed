"""Released state dicts to our parameters and back, on {name: array} mappings.

This module touches no files. Arrays are anything with `shape` and `dtype` that `np.asarray` reads,
so a mapping may read its tensors lazily; both directions handle one tensor at a time and make
views where possible.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError, nearest_names
from twelve_in_one.checkpoints.trees import Path, check_shapes, flatten, unflatten
from twelve_in_one.convert.names import TIED_DECODER, WORD_TABLE, Entry, table
from twelve_in_one.models.two_stream.config import TwoStreamConfig

# Index buffers that newer versions of the BERT code save; they hold arange(positions).
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


class Loaded(NamedTuple):
    """A state dict in our layout.

    Attributes:
      params: nested dict of float32 arrays, unrolled layout.
      unused: {released name: float32 array} without a parameter here; `to_state_dict` writes them
        back.
      report: the outcome for every entry.
    """

    params: dict[str, Any]
    unused: dict[str, np.ndarray]
    report: Report


def normalise_name(name: str) -> str:
    """`name` without a leading "module.", and with "gamma" and "beta" as "weight" and "bias"."""
    parent, dot, last = name.removeprefix("module.").rpartition(".")
    return parent + dot + _OLD_NAMES.get(last, last)


def normalise_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`tensors` under normalised names.

    Raises:
      ValueError: two names that become one; names both.
    """
    original: dict[str, str] = {}
    for name in tensors:
        normal = normalise_name(name)
        if normal in original:
            raise ValueError(f"entries {original[normal]!r} and {name!r} both stand for {normal!r}")
        original[normal] = name
    return {normal: tensors[name] for normal, name in original.items()}


def from_state_dict(
    config: TwoStreamConfig,
    tensors: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter,
) -> Loaded:
    """Our parameters from the entries of a released state dict.

    Float32 values are kept bit for bit and stay views of the given arrays where possible; other
    floating-point types are converted to float32.

    Args:
      config: the model; its `scan_layers` is not read.
      tensors: {released name: array}.
      allow_missing: regular expressions; an absent entry whose whole name matches one is
        initialised as in a new model: N(0, initializer_range) for matrices and tables, biases 0,
        norm scales 1. The numbers come from NumPy and depend on `seed` and the name only.
      allow_unexpected: regular expressions; an unknown entry whose whole name matches one is
        skipped, and listed as unused.
      seed: for initialised entries.
      progress: wraps the iteration over entries, for display.

    Raises:
      StateDictError: missing or unexpected entries that no expression allows, or wrong shapes;
        carries the report.
      ValueError: a malformed expression, two names for one entry, or a value beyond float32.
    """
    missing_ok, unexpected_ok = _compile(allow_missing), _compile(allow_unexpected)
    tensors = normalise_names(tensors)
    entries = table(config)
    loaded, initialised, missing, wrong_shape, not_used = [], [], [], [], []
    params: dict[Path, np.ndarray] = {}
    unused: dict[str, np.ndarray] = {}
    notes, converted = [], {}
    for entry in progress(entries):
        if entry.name not in tensors:
            if entry.path is None:
                continue
            if any(pattern.fullmatch(entry.name) for pattern in missing_ok):
                params[entry.path] = entry.to_ours(initial_value(config, entry, seed))
                initialised.append(entry.name)
            else:
                missing.append(entry.name)
            continue
        tensor = tensors[entry.name]
        if tuple(tensor.shape) != entry.shape or not _is_float(tensor.dtype):
            found = _describe(tensor)
            wrong_shape.append((entry.name, found, str(entry.shape)))
            continue
        if tensor.dtype != np.float32:
            converted.setdefault(str(tensor.dtype), []).append(entry.name)
        array = _to_float32(entry.name, np.asarray(tensor))
        if entry.path is not None:
            params[entry.path] = entry.to_ours(array)
            loaded.append(entry.name)
            continue
        not_used.append(entry.name)
        if entry.name == TIED_DECODER and WORD_TABLE in tensors:
            if _same_bits(array, _to_float32(WORD_TABLE, np.asarray(tensors[WORD_TABLE]))):
                continue
            notes.append(
                f"{TIED_DECODER} differs from {WORD_TABLE}, with which the model shares it: the "
                "word table is used, the decoder is only kept for writing the file back"
            )
        unused[entry.name] = array

    known = {entry.name for entry in entries}
    unknown = [name for name in tensors if name not in known and name not in _BUFFERS]
    unexpected = [n for n in unknown if not any(p.fullmatch(n) for p in unexpected_ok)]
    not_used += [n for n in tensors if n not in known and n not in unexpected]
    notes += [f"{len(n)} entries converted from {d} to float32" for d, n in converted.items()]
    report = Report(
        loaded=tuple(loaded),
        initialised=tuple(initialised),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong_shape),
        unused=tuple(not_used),
        notes=tuple(notes),
        nearest=nearest_names(missing, unexpected) | nearest_names(unexpected, known),
    )
    if not report.ok:
        raise StateDictError(report)
    return Loaded(unflatten(params), unused, report)


def to_state_dict(
    config: TwoStreamConfig,
    params: dict[str, Any],
    unused: Mapping[str, np.ndarray] | None = None,
    *,
    release: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """The released state dict of our parameters, in the order of `names.table`.

    Args:
      config: the model; its `scan_layers` is not read.
      params: nested dict in the unrolled layout.
      unused: from `Loaded.unused`. Other entries that our model does not use are drawn as for a new
        model, always with the same numbers; the decoder is the word table.
      release: remove each parameter from `params` as it is yielded, so that a copying
        caller never holds two whole models. The tied decoder keeps the word table to the end.

    Yields:
      (released name, float32 array), views where possible.

    Raises:
      ValueError: parameters that are not those of `config`, or heads that the released code does
        not have; raised before anything is yielded.
    """
    if config.own_heads:
        raise ValueError(
            f"heads {', '.join(name for name, *_ in config.own_heads)} are those of data sets of "
            "your own, for which the released code has no names: export as params or jax"
        )
    entries = table(config)
    flat = flatten(params)
    expected = {entry.path: entry.our_shape for entry in entries if entry.path is not None}
    check_shapes(expected, flat, "cannot make a state dict")
    word = next(entry for entry in entries if entry.name == WORD_TABLE)
    if release:
        params.clear()
    return _released(config, entries, flat, word, unused or {}, release)


def _released(
    config: TwoStreamConfig,
    entries: Sequence[Entry],
    flat: dict[Path, Any],
    word: Entry,
    unused: Mapping[str, np.ndarray],
    release: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    word_table = word.from_ours(np.asarray(flat[word.path]))
    for entry in entries:
        if entry.name == WORD_TABLE:
            yield entry.name, word_table
        elif entry.path is not None:
            yield entry.name, entry.from_ours(np.asarray(flat[entry.path]))
        elif entry.name in unused:
            yield entry.name, unused[entry.name]
        elif entry.name == TIED_DECODER:
            yield entry.name, word_table
        else:
            yield entry.name, initial_value(config, entry, seed=0)
        if release:
            flat.pop(entry.path, None)


def initial_value(config: TwoStreamConfig, entry: Entry, seed: int) -> np.ndarray:
    """The value of `entry` in a new model: float32 in the released layout.

    It depends on the seed and the entry's name, not on which other entries are drawn.
    """
    if entry.name.endswith("bias"):
        return np.zeros(entry.shape, np.float32)
    if len(entry.shape) == 1:
        return np.ones(entry.shape, np.float32)
    rng = np.random.default_rng((seed, zlib.crc32(entry.name.encode())))
    return rng.standard_normal(entry.shape, np.float32) * np.float32(config.initializer_range)


def _compile(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"malformed regular expression {pattern!r}: {error}") from error
    return compiled


def _is_float(dtype: Any) -> bool:
    # bfloat16 is an extension type, which NumPy itself does not count as floating.
    return np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16"


def _describe(tensor: Any) -> str:
    shape = str(tuple(tensor.shape))
    return shape if _is_float(tensor.dtype) else f"{tensor.dtype} {shape}"


def _to_float32(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.float32:
        return array
    try:
        with np.errstate(over="raise"):
            return array.astype(np.float32)
    except FloatingPointError as error:
        raise ValueError(f"{name}: a {array.dtype} value is too large for float32") from error


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equality that distinguishes -0.0 from 0.0 and treats equal NaNs as equal."""
    bits = (np.ascontiguousarray(x).view(np.uint32) for x in (a, b))
    return np.array_equal(*bits)
