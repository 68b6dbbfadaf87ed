import gzip
import json
import pickle
import shutil
from collections import Counter

import pytest

from twelve_in_one.data.annotations import question_answering, vqa
from twelve_in_one.data.builders import answers as answer_lists
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.metrics.vqa import accuracy, normalise_answer

# The real records: questions of train2014, here in the place of train2014 and val2014.


@pytest.fixture(scope="module")
def official(samples_dir, tmp_path_factory):
    """The sample under the official names; only its file names differ from the official layout."""
    folder = tmp_path_factory.mktemp("vqa")
    for ours, official_split in (("train", "train2014"), ("valid", "val2014")):
        for name, official_name in (
            (f"vqa_questions_{ours}", f"v2_OpenEnded_mscoco_{official_split}_questions"),
            (f"vqa_annotatons_{ours}", f"v2_mscoco_{official_split}_annotations"),
        ):
            source = samples_dir / f"vqav2/{name}.gzip"
            shutil.copyfile(source, folder / f"{official_name}.json.gz")
    return folder


@pytest.fixture(scope="module")
def real(official):
    return {split: vqa.read_split(official, split) for split in ("train2014", "val2014")}


@pytest.fixture(scope="module")
def human_answers(official):
    """The ten answers by question id, read with nothing but the standard library."""
    by_id = {}
    for path in official.glob("*annotations.json.gz"):
        for record in json.loads(gzip.decompress(path.read_bytes()))["annotations"]:
            by_id[str(record["question_id"])] = [given["answer"] for given in record["answers"]]
    return by_id


def test_all_real_questions_are_read(real, human_answers):
    read = [a.example_id for found in real.values() for a in found.annotations]
    assert sorted(read) == sorted(human_answers) != []
    for annotation_set in real.values():
        assert annotation_set.skipped == ()
        ids = [int(a.example_id) for a in annotation_set.annotations]
        assert ids == sorted(set(ids))
        assert set(annotation_set.images) == {a.image_id for a in annotation_set.annotations}
        for image_id, image in list(annotation_set.images.items())[:100]:
            assert (image.image_id, image.coco_id) == (image_id, int(image_id))
        for annotation in annotation_set.annotations:
            # In the data set, the question id is made of the image id and three digits.
            assert annotation.example_id[:-3] == annotation.image_id
            assert annotation.text
            given = human_answers[annotation.example_id]
            assert list(annotation.answers) == list(dict.fromkeys(given))


def test_roles_split_the_real_questions(official, real, samples_dir, tmp_path):
    for path in official.glob("*val2014*"):
        (tmp_path / path.name).symlink_to(path)
    source = samples_dir / "coco/annotations"  # a few questions as train2014
    for name, official_name in (
        ("vqav2_questions_subset", "v2_OpenEnded_mscoco_train2014_questions"),
        ("vqav2_annotations_subset", "v2_mscoco_train2014_annotations"),
    ):
        (tmp_path / f"{official_name}.json").symlink_to(source / f"{name}.json")
    train, val = vqa.read(tmp_path, "train"), vqa.read(tmp_path, "val")
    number = len(real["val2014"].annotations)
    # The sample is too small to lose so many, and a fifth of it is held out.
    assert vqa.NUM_VAL < number < 4 * vqa.NUM_VAL
    assert len(val.annotations) == number // 5
    assert set(val.images) == {a.image_id for a in val.annotations}
    first = vqa.read_split(tmp_path, "train2014")
    assert first.annotations
    own = {a.example_id for a in first.annotations}
    rest = [a for a in real["val2014"].annotations if a.example_id not in own]
    assert list(train.annotations + val.annotations) == [*first.annotations, *rest]
    _, official_val = question_answering.hold_out(
        real["val2014"], vqa.NUM_VAL, vqa.NUM_VAL, tmp_path
    )
    assert official_val.annotations == real["val2014"].annotations[-vqa.NUM_VAL :]


def test_scores_are_official_accuracies(real, human_answers):
    """Scores count raw answers, the official accuracy compares normalised ones.

    The two agree where that is no difference: 19 in 20 of the questions have ten answers that
    are their own normal form. Elsewhere normalising can only bring answers together ("2", "two"),
    so that an answer which is its own normal form is never scored above its accuracy.
    """
    num_equal = num_below = 0
    for annotation in real["val2014"].annotations:
        given = human_answers[annotation.example_id]
        plain = all(normalise_answer(answer) == answer for answer in given)
        for answer, score in zip(annotation.answers, annotation.scores, strict=True):
            if normalise_answer(answer) != answer:
                continue
            official_score = accuracy(answer, given)
            if plain:
                assert score == pytest.approx(official_score, abs=1e-12)
            else:
                assert score <= official_score + 1e-12
                num_below += score < official_score - 1e-12
        num_equal += plain
    assert num_equal > 0.9 * len(real["val2014"].annotations)
    assert num_below > 0


def test_vocabularies_on_real_questions(official, samples_dir, real, human_answers):
    published = answer_lists.read_vocabulary(samples_dir / "vqav2/trainval_label2ans.json")
    index = {answer: label for label, answer in enumerate(published)}
    annotations = [a for part in real.values() for a in part.annotations]
    known = sum(not index.keys().isdisjoint(given) for given in human_answers.values())
    assert answer_lists.coverage(annotations, index) == (known, len(human_answers))
    assert known > 0.95 * len(human_answers)

    records = [r for split in real for r in vqa.annotation_records(official, split)]
    ours = answer_lists.vqa_vocabulary(records)
    # Of a twelfth of the questions, all that is frequent enough is in the published list.
    assert ours and set(ours) <= set(published)
    asked = Counter(normalise_answer(r["multiple_choice_answer"]) for r in records)
    assert [asked[answer] for answer in ours] == sorted(
        (count for count in asked.values() if count >= 9), reverse=True
    )
    assert answer_lists.vqa_vocabulary(reversed(records)) == ours


# Hand-made files.


def _write(folder, questions, annotations, split="val2014"):
    path = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    path.write_text(json.dumps({"info": {}, "questions": questions}))
    path = folder / f"v2_mscoco_{split}_annotations.json"
    path.write_text(json.dumps({"info": {}, "annotations": annotations}))


def _question(question_id, image_id=7, **fields):
    return dict(question_id=question_id, image_id=image_id, question=f"Q{question_id}?") | fields


def _annotation(question_id, given=("a",) * 10, image_id=7, **fields):
    answers = [{"answer": answer, "answer_id": i} for i, answer in enumerate(given, 1)]
    return dict(question_id=question_id, image_id=image_id, answers=answers) | fields


def test_answers_are_raw_and_in_the_order_of_first_mention(tmp_path):
    given = ["Two", "2", "Two", "cat", "two ", "2", "Two", "Two", "2", "a  cat"]
    _write(tmp_path, [_question(1)], [_annotation(1, given)])
    (annotation,) = vqa.read_split(tmp_path, "val2014").annotations
    assert annotation.answers == ("Two", "2", "cat", "two ", "a  cat")
    assert annotation.scores == (1.0, 0.9, 0.3, 0.3, 0.3)
    assert (annotation.example_id, annotation.image_id, annotation.text) == ("1", "7", "Q1?")


def test_unusable_records_are_reported(tmp_path):
    questions = [
        _question(3),
        _question(3, question="Again?"),
        _question(2),
        _question(4),
        _question(5, question=None),
        _question("6"),
        _question(8, image_id=9),
        "no object",
    ]
    annotations = [
        _annotation(3),
        _annotation(2, given=()),
        _annotation(5),
        _annotation(8),
        _annotation(9),
        _annotation(3, ["other"] * 10),
        _annotation(1 << 70),
        _annotation(10, answers=[{"answer": 1}]),
    ]
    _write(tmp_path, questions, annotations)
    result = vqa.read_split(tmp_path, "val2014")
    assert [(a.example_id, a.text, a.answers) for a in result.annotations] == [("3", "Q3?", ("a",))]
    reported = {
        (skipped.file.split("_")[-1].split(".")[0], skipped.record): skipped.reason
        for skipped in result.skipped
    }
    expected = {
        ("annotations", "2"): "'answers' is empty",
        ("annotations", "3"): "its question id occurs twice",
        ("annotations", "record 7"): "'question_id' is negative or out of range",
        ("annotations", "10"): "'answer' must be a text, is 1",
        ("questions", "3"): "its question id occurs twice",
        ("questions", "2"): "it has no usable annotation",
        ("questions", "4"): "it has no usable annotation",
        ("questions", "5"): "'question' must be a text, is None",
        ("questions", "6"): "'question_id' must be a whole number, is '6'",
        ("questions", "8"): "image 9, but 7 in its annotation",
        ("questions", "record 8"): "must be an object, is a str",
        ("annotations", "5"): "no usable question in",
        ("annotations", "8"): "no usable question in",
        ("annotations", "9"): "no usable question in",
    }
    assert reported.keys() == expected.keys()
    for key, reason in expected.items():
        assert reported[key].startswith(reason)
    assert len(result.skipped) == len(expected)


def test_a_question_of_train_and_val_counts_once(tmp_path):
    _write(tmp_path, [_question(1), _question(2)], [_annotation(1), _annotation(2)], "train2014")
    _write(tmp_path, [_question(2), _question(3)], [_annotation(2), _annotation(3)], "val2014")
    train = vqa.read(tmp_path, "train", num_val=0)
    assert [a.example_id for a in train.annotations] == ["1", "2", "3"]
    assert [(s.record, s.reason) for s in train.skipped] == [
        ("2", "its question id occurs in the first file too")
    ]


def test_official_annotations_come_before_caches(tmp_path):
    _write(tmp_path, [_question(1)], [_annotation(1)])
    cache = tmp_path / "cache"
    cache.mkdir()
    target = dict(question_id=1, image_id=7, labels=[1, 0], scores=[0.6, 1])
    (cache / "val_target.pkl").write_bytes(pickle.dumps([target, target | {"labels": [2, 0]}]))
    (cache / "trainval_label2ans.pkl").write_bytes(pickle.dumps(["x", "y"]))
    assert vqa.read_split(tmp_path, "val2014").annotations[0].answers == ("a",)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    result = vqa.read_split(tmp_path, "val2014")
    assert (result.annotations[0].answers, result.annotations[0].scores) == (("y", "x"), (0.6, 1.0))
    assert [s.reason for s in result.skipped] == ["label 2 is no index into 2 answers"]


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        ("{", "{}", "no 'annotations'"),
        ("{", '{"annotations": []}', "not JSON"),
        ("[]", '{"annotations": []}', "top level must be an object"),
        ('{"question": []}', '{"annotations": []}', "no 'questions'; keys: question"),
        ('{"questions": {}}', '{"annotations": []}', "'questions' must be a list"),
        ('{"questions": []}', '{"annotations": []}', "no question that can be used, 0 skipped"),
        ('{"questions": [1]}', '{"annotations": []}', "no question that can be used, 1 skipped"),
    ],
)
def test_unusable_files(tmp_path, questions, annotations, message):
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(questions)
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(annotations)
    with pytest.raises(DataError, match=message):
        vqa.read(tmp_path, "val")


def test_missing_files_and_unknown_splits(tmp_path):
    with pytest.raises(
        DataError, match="no v2_mscoco_val2014_annotations.json or cache/val_target"
    ):
        vqa.read(tmp_path, "val")
    with pytest.raises(ValueError, match="'train', 'val' or 'test', got 'minval'"):
        vqa.read(tmp_path, "minval")
    with pytest.raises(ValueError, match="got 'trainval'"):
        vqa.read_split(tmp_path, "trainval")
    _write(tmp_path, [_question(1)], [_annotation(1)])
    with pytest.raises(ValueError, match="num_val must not be negative, got -1"):
        vqa.read(tmp_path, "val", num_val=-1)


def _write_questions(folder, split, answers_of):
    """Questions 1, 2, ... about image 7 with the given human answers."""
    questions = [{"question_id": n, "image_id": 7, "question": "what?"} for n in answers_of]
    annotations = [
        {"question_id": n, "image_id": 7, "answers": [{"answer": answer} for answer in given]}
        for n, given in answers_of.items()
    ]
    for name, key, records in (
        (f"v2_OpenEnded_mscoco_{split}_questions", "questions", questions),
        (f"v2_mscoco_{split}_annotations", "annotations", annotations),
    ):
        (folder / f"{name}.json").write_text(json.dumps({key: records}))


def test_fewer_than_ten_answers_are_scored_by_their_share_and_noted(tmp_path):
    ten = ["cat"] * 3 + ["dog"] * 7
    _write_questions(tmp_path, "train2014", {1: ["cat"], 2: ["cat", "dog", "cat"], 3: ten})
    late = {n: ["cat"] for n in (11, 12, 13)} | {14: ten, 15: ten, 16: ["dog"]}
    _write_questions(tmp_path, "val2014", late)
    train, val = vqa.read(tmp_path, "train"), vqa.read(tmp_path, "val", num_val=2)
    scores = {a.example_id: dict(zip(a.answers, a.scores, strict=True)) for a in train.annotations}
    assert scores["1"] == {"cat": 1.0}
    assert scores["2"] == pytest.approx({"cat": 2 / 3, "dog": 1 / 3})
    assert scores["3"] == scores["14"] == {"cat": 0.9, "dog": 1.0}
    # Each split names its own questions, wherever it is cut.
    assert train.notes == {vqa.FEW_ANSWERS: frozenset({"1", "2", "11", "12", "13"})}
    assert val.notes == {vqa.FEW_ANSWERS: frozenset({"16"})}
    assert vqa.read(tmp_path, "train", num_val=6).notes == {vqa.FEW_ANSWERS: frozenset({"1", "2"})}
    assert vqa.read_split(tmp_path, "train2014").notes.keys() == {vqa.FEW_ANSWERS}
