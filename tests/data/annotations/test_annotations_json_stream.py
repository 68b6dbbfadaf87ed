import json

import numpy as np
import pytest

from twelve_in_one.data.formats.json_stream import elements, members
from twelve_in_one.data.stored.records import DataError

DOCUMENTS = [
    "[]",
    " [ ] ",
    "{}",
    '[1, "a", {"b": [2, {}]}, null]',
    '\n{ "a" : 1 , "k" : [ 1 , [2] , "x" ], "z": {"k": [0]}}\t',
    '{"k": []}',
    '{"k": {}}',
    '{"a": [1], "b": 2}',
    "[1,]",
    "[,1]",
    "[1 2]",
    "[1",
    "[",
    "",
    "7",
    "[1]x",
    '{"k": [1]} {}',
    '{"k": [1],}',
    '{"k" [1]}',
    "{1: [1]}",
    "{k: [1]}",
    '{"k": [1]',
    '{"k": [1}',
    "\ufeff[1]",
    "[NaN, Infinity, 1e999]",
    "[" + "9" * 5000 + "]",
    "[" * 100_000,
    '["\x00"]',
    '["\\ud800"]',
]


def _outcome(function, *arguments):
    try:
        return repr(list(function(*arguments)))
    except DataError as error:
        assert "somewhere" in str(error)
        return DataError


def _expected(text, kind, take):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return DataError
    return repr(take(value)) if isinstance(value, kind) else DataError


def _list_under_k(value):
    return value["k"]


def _check(text):
    assert _outcome(elements, text, "somewhere") == _expected(text, list, list)
    as_dict = _outcome(lambda *arguments: dict(members(*arguments)).items(), text, "somewhere")
    assert as_dict == _expected(text, dict, lambda v: list(v.items()))
    under = _expected(text, dict, lambda v: v["k"] if isinstance(v.get("k"), list) else ...)
    got = _outcome(elements, text, "somewhere", "k")
    assert got == (DataError if under == "Ellipsis" else under)


@pytest.mark.parametrize("text", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_accepts_what_json_accepts(text):
    _check(text)


def test_mutated_documents():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = list(DOCUMENTS[rng.integers(3, 8)])
        for _ in range(rng.integers(1, 4)):
            place = rng.integers(len(text) + 1)
            text[place : place + rng.integers(2)] = rng.choice(list('[]{}:," 1ak'))
        text = "".join(text)
        if text.count('"k"') < 2:  # of repeated keys, json.loads takes the last
            _check(text)


def test_repeated_keys():
    assert list(members('{"a": 1, "a": 2}', "somewhere")) == [("a", 1), ("a", 2)]
    with pytest.raises(DataError, match="somewhere: 'k' occurs twice"):
        list(elements('{"k": [1], "k": []}', "somewhere", "k"))


def test_one_record_at_a_time():
    walk = elements('[{"a": 1}, {"a": 2}, oops', "somewhere")
    assert [next(walk), next(walk)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="somewhere: not JSON: Expecting value: line 1 column 22"):
        next(walk)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("{}", None, "somewhere: top level must be a list, begins with '{}'"),
        ("[]", "k", "somewhere: top level must be an object"),
        ('{"a": 1}', "k", "somewhere: no 'k'; keys: a"),
        ('{"k": {"a": 1}}', "k", "somewhere: 'k' must be a list, begins with"),
    ],
)
def test_messages(text, key, message):
    with pytest.raises(DataError, match=message):
        list(elements(text, "somewhere", key))
