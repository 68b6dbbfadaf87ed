import json
import pickle

import numpy as np
import pytest

from twelve_in_one.data.builders import answers
from twelve_in_one.data.stored.records import Annotation, AnnotationSet, DataError


def _records(counts, first_id=0):
    """Annotation records: each answer as often as `counts` says."""
    given = [answer for answer, count in counts.items() for _ in range(count)]
    return [
        dict(question_id=first_id + i, multiple_choice_answer=answer)
        for i, answer in enumerate(given)
    ]


def test_vqa_vocabulary():
    records = _records({"Yes": 5, "yes.": 4, "the": 10, "blue": 9, "no": 8, "two": 6, "2": 3})
    assert answers.vqa_vocabulary(records) == ("", "2", "blue", "yes")
    # The eight questions of "no", listed again, are still eight questions.
    assert answers.vqa_vocabulary(records + records) == ("", "2", "blue", "yes")
    other_questions = _records({"no": 1}, first_id=1000)
    assert "no" in answers.vqa_vocabulary(records + other_questions)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no answer occurs in 9 of the 0 questions"),
        (_records({"a cat": 8}), "no answer occurs in 9 of the 8 questions"),
        ([{"question_id": 1}], "annotation 1: no 'multiple_choice_answer'"),
        ([{"question_id": 1, "multiple_choice_answer": 2}], "annotation 1: .*must be a text, is 2"),
        ([{"question_id": [], "multiple_choice_answer": "a"}], "annotation 1: 'question_id' must"),
        ([None], "annotation 1: must be an object, is a NoneType"),
    ],
)
def test_vqa_vocabulary_errors(records, message):
    with pytest.raises(DataError, match=message):
        answers.vqa_vocabulary(records)


def _set(*given):
    annotations = [Annotation(str(i), "1", "Q?", answer) for i, answer in enumerate(given)]
    return AnnotationSet(tuple(annotations), {})


def test_gqa_vocabulary():
    sets = [_set(("b",), ("c",), (), ("a",)), _set(("c",), ("d",), ("b",))]
    assert answers.gqa_vocabulary(sets) == ("b", "c", "a", "d")
    assert answers.gqa_vocabulary(sets, num=3) == ("b", "c", "a")
    with pytest.raises(DataError, match="5 answers wanted, the annotations have 4"):
        answers.gqa_vocabulary(sets, num=5)
    with pytest.raises(DataError, match="the annotations have 0"):
        answers.gqa_vocabulary([_set(())])
    with pytest.raises(ValueError, match="num must be positive, got 0"):
        answers.gqa_vocabulary(sets, num=0)


LIST = ["red", "", "c'est ça", "two words"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("v.json", json.dumps(LIST).encode()),
        ("v.json", json.dumps({answer: i for i, answer in enumerate(LIST)}).encode()),
        ("v.json", json.dumps({a: LIST.index(a) for a in reversed(LIST)}).encode()),
        ("v.txt", "\n".join(LIST).encode()),
        ("v.txt", ("\n".join(LIST) + "\n").encode()),
        ("v.txt", ("\r\n".join(LIST) + "\r\n").encode()),
        ("v.pkl", pickle.dumps(LIST)),
        ("v.pkl", pickle.dumps({answer: i for i, answer in enumerate(LIST)}, protocol=2)),
    ],
)
def test_read_vocabulary(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert answers.read_vocabulary(tmp_path / name) == tuple(LIST)


def test_write_vocabulary(tmp_path):
    path = tmp_path / "vocabulary.json"
    answers.write_vocabulary(path, LIST)
    assert answers.read_vocabulary(path) == tuple(LIST)
    assert json.loads(path.read_text()) == LIST
    assert len(path.read_text().splitlines()) == len(LIST) + 2
    with pytest.raises(DataError, match="'a' is answer 0 and 1"):
        answers.write_vocabulary(path, ["a", "a"])
    with pytest.raises(ValueError, match=r"must end in \.json"):
        answers.write_vocabulary(tmp_path / "vocabulary.txt", LIST)
    assert answers.read_vocabulary(path) == tuple(LIST)


def test_published_lists_agree(samples_dir):
    for dataset, number in (("vqav2", 3_129), ("gqa", 1_842)):
        as_list = answers.read_vocabulary(samples_dir / dataset / "trainval_label2ans.json")
        as_dict = answers.read_vocabulary(samples_dir / dataset / "trainval_ans2label.json")
        assert as_list == as_dict
        assert len(as_list) == number


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v.json", "[]", "the vocabulary is empty"),
        ("v.json", "{}", "the vocabulary is empty"),
        ("v.json", '"red"', "must hold a list or a mapping, holds a str"),
        ("v.json", "[1", "not JSON"),
        ("v.json", '["a", 1]', "entry 1: 'answer' must be a text, is 1"),
        ("v.json", '["\\ud800"]', "entry 0: 'answer' is not valid Unicode"),
        ("v.json", '["a", "b", "a"]', "'a' is answer 0 and 2"),
        ("v.json", '{"a": 0, "b": 2}', "class 2 of answer 'b' is repeated or not one of 0 to 1"),
        ("v.json", '{"a": 0, "b": 0}', "class 0 of answer 'b' is repeated"),
        ("v.json", '{"a": true, "b": 0}', "class True of answer 'a'"),
        ("v.json", '{"a": "0"}', "class '0' of answer 'a'"),
        ("v.txt", "a\nb\n\n\n", "'' is answer 2 and 3"),
        ("v.txt", "a\nb\t12\n", r"line 2 must be an answer and nothing else, is 'b\\t12'; keep"),
        ("v.csv", "a", r"must end in \.json, \.txt or \.pkl"),
        ("v.pkl", "no pickle", "v.pkl"),
    ],
)
def test_unusable_vocabularies(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        answers.read_vocabulary(tmp_path / name)


def test_missing_vocabularies(tmp_path):
    for name in ("v.json", "v.txt", "v.pkl", "v.json.gz"):
        with pytest.raises(DataError, match=name):
            answers.read_vocabulary(tmp_path / name)


def test_soft_targets():
    index = {"a": 2, "b": 0, "c": 1}
    target = answers.soft_targets(("x", "b", "a"), (1.0, 0.3, 0.9), index, 4)
    assert target.dtype == np.float32
    np.testing.assert_array_equal(target, np.array([0.3, 0, 0.9, 0], np.float32))
    assert not answers.soft_targets(("x",), (1.0,), index, 4).any()
    assert answers.soft_targets((), (), index, 3).shape == (3,)
    with pytest.raises(ValueError, match="zip"):
        answers.soft_targets(("a",), (), index, 4)
    with pytest.raises(ValueError, match=r"class 2 of answer 'a' must be in \[0, 2\)"):
        answers.soft_targets(("a",), (1.0,), index, 2)


def test_coverage():
    annotations = _set(("a", "x"), ("x",), (), ("x", "b")).annotations
    assert answers.coverage(annotations, {"a": 0, "b": 1}) == (2, 4)
    assert answers.coverage([], {}) == (0, 0)
