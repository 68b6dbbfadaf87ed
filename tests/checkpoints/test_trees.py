"""Splitting and joining trees of parameters by the names of their leaves."""

import numpy as np
import pytest

from twelve_in_one.checkpoints.frozen import digest
from twelve_in_one.checkpoints.trees import flatten, merge, split

TREE = {"a": {"x": np.float32(1), "y": np.float32(2)}, "b": {"x": np.float32(3)}}


@pytest.mark.parametrize("patterns, apart", [
    ((), set()), (("a/.*",), {"a/x", "a/y"}), ((".*/x",), {"a/x", "b/x"}),
    ((".*",), {"a/x", "a/y", "b/x"}), (("a/x", "b/x"), {"a/x", "b/x"}),
])  # fmt: skip
def test_split_and_merge(patterns, apart):
    kept, rest = split(TREE, patterns)
    assert {"/".join(path) for path in flatten(rest)} == apart
    assert set(flatten(kept)) == set(flatten(TREE)) - set(flatten(rest))
    assert merge(kept, rest) == merge(rest, kept) == TREE


def test_a_pattern_must_match_a_whole_name():
    with pytest.raises(ValueError, match="'a' matches no parameter; they are called a/x, a/y, b/x"):
        split(TREE, ("a",))


def test_a_digest_knows_names_shapes_types_and_numbers():
    base = {"a": {"w": np.arange(4, dtype=np.float32)}}
    others = [
        {"a": {"v": base["a"]["w"]}},
        {"a": {"w": base["a"]["w"].reshape(2, 2)}},
        {"a": {"w": base["a"]["w"].view(np.int32)}},
        {"a": {"w": base["a"]["w"] + np.float32(1e-7)}},
        {"a": {"w": np.float32(3)}},
    ]
    assert digest(base) == digest({"a": {"w": base["a"]["w"].copy()}})
    assert len({digest(tree) for tree in (base, *others)}) == 6
