"""Trees of parameters by path, and checks of their shapes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

Path = tuple[str, ...]


def flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """{path: leaf} of a nested dict."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def as_dtypes_of(tree: Any, like: Any) -> Any:
    """The arrays in the types of those of an equal tree."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def split(
    tree: Mapping[str, Any], patterns: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves whose "/"-joined path matches none of the patterns (`re.fullmatch`), and the rest.

    Raises:
      ValueError: a pattern matches nothing.
    """
    flat = flatten(tree)
    compiled = [re.compile(pattern) for pattern in patterns]
    matched = {path: [p.fullmatch("/".join(path)) is not None for p in compiled] for path in flat}
    for i, pattern in enumerate(patterns):
        if not any(found[i] for found in matched.values()):
            first = ", ".join("/".join(path) for path in list(flat)[:3])
            raise ValueError(f"{pattern!r} matches no parameter; they are called {first}, ...")
    apart = {path: leaf for path, leaf in flat.items() if any(matched[path])}
    kept = {path: leaf for path, leaf in flat.items() if path not in apart}
    return unflatten(kept), unflatten(apart)


def merge(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split`: leaves of both."""
    both = dict(tree)
    for key, value in other.items():
        both[key] = merge(both[key], value) if key in both else value
    return both


def check_shapes(
    expected: Mapping[Path, tuple[int, ...]], found: Mapping[Path, Any], where: str
) -> None:
    """Compares parameters with those that a config requires.

    Args:
      expected: {path: shape}.
      found: {path: anything with a shape}.
      where: start of the error message.

    Raises:
      ValueError: missing or unexpected paths, or wrong shapes; names the first few.
    """
    errors = [f"no {'/'.join(path)}" for path in expected if path not in found]
    errors += [f"unknown {'/'.join(path)}" for path in found if path not in expected]
    errors += [
        f"{'/'.join(path)} has shape {tuple(leaf.shape)}, expected {expected[path]}"
        for path, leaf in found.items()
        if path in expected and tuple(leaf.shape) != expected[path]
    ]
    if errors and _is_stacked(expected) != _is_stacked(found):
        errors.insert(0, "the layers are stacked in one of the two (`scan_layers`)")
    if errors:
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        listed = "; ".join(errors[:5])
        raise ValueError(f"{where}: the parameters do not fit the config: {listed}{more}")


def _is_stacked(paths: Iterable[Path]) -> bool:
    return any(part.startswith("segment_") for path in paths for part in path)
