import json

import pytest

from twelve_in_one.data.annotations import visual_genome_qa
from twelve_in_one.data.builders import answers as answer_lists
from twelve_in_one.data.stored.records import AnnotatedImage, DataError
from twelve_in_one.tasks.metrics.vqa import normalise_answer


def test_no_question_of_the_fixture_is_left_to_train_on(shared_dir):
    folder = shared_dir / "fixtures/loaders/vgqa"
    train = visual_genome_qa.read(folder, "train", num_val=visual_genome_qa.NUM_VAL)
    assert (train.annotations, train.images) == ((), {})


def test_real_records(samples_dir):
    folder = samples_dir / "visual_genome"
    everything = visual_genome_qa.read_all(folder)
    assert everything.skipped == ()
    raw = {
        str(pair["qa_id"]): pair
        for image in json.loads((folder / "question_answers.json").read_text())
        for pair in image["qas"]
    }
    assert [a.example_id for a in everything.annotations] == sorted(raw, key=int) != []
    for annotation in everything.annotations:
        pair = raw[annotation.example_id]
        assert (annotation.text, annotation.image_id) == (pair["question"], str(pair["image_id"]))
        assert annotation.answers == (normalise_answer(pair["answer"]),)
        assert annotation.scores == (1.0,)
    for image in json.loads((folder / "image_data.json").read_text()):
        assert everything.images[str(image["image_id"])] == AnnotatedImage(
            str(image["image_id"]), width=image["width"], height=image["height"]
        )
    # Raw answers are never in the vocabulary: they end in a period and begin with a capital.
    vocabulary = answer_lists.read_vocabulary(samples_dir / "vqav2/trainval_label2ans.json")
    assert not {pair["answer"] for pair in raw.values()} & set(vocabulary)
    index = {answer: label for label, answer in enumerate(vocabulary)}
    known = sum(normalise_answer(pair["answer"]) in index for pair in raw.values())
    assert answer_lists.coverage(everything.annotations, index) == (known, len(raw))
    assert known > len(raw) / 2


def test_roles_of_real_records(samples_dir):
    folder = samples_dir / "visual_genome"
    train, val = (visual_genome_qa.read(folder, split) for split in ("train", "val"))
    everything = visual_genome_qa.read_all(folder).annotations
    assert len(val.annotations) == len(everything) // 5 > 0
    assert train.annotations + val.annotations == everything


def _write(folder, pairs, images):
    (folder / "question_answers.json").write_text(json.dumps([{"id": 1, "qas": pairs}]))
    (folder / "image_data.json").write_text(json.dumps(images))


def _pair(qa_id, image_id=1, answer="A red Shirt.", **fields):
    return dict(qa_id=qa_id, image_id=image_id, question="Q?", answer=answer) | fields


def _image(image_id, **fields):
    return dict(image_id=image_id, width=640, height=480, coco_id=None) | fields


def test_images_and_order(tmp_path):
    images = [_image(1, coco_id=42), _image(2, width=20, height=10), _image(3)]
    _write(tmp_path, [_pair(10), _pair(9, 2, "Two."), _pair(11)], images)
    result = visual_genome_qa.read_all(tmp_path)
    assert [(a.example_id, a.answers) for a in result.annotations] == [
        ("9", ("2",)),
        ("10", ("red shirt",)),
        ("11", ("red shirt",)),
    ]
    assert dict(result.images) == {
        "1": AnnotatedImage("1", width=640, height=480, coco_id=42),
        "2": AnnotatedImage("2", width=20, height=10),
    }


def test_unusable_records_are_reported(tmp_path):
    pairs = [
        _pair(1),
        _pair(1),
        _pair(2, image_id=5),
        _pair(3, image_id=2),
        _pair(4, answer=" "),
        _pair(5, question=["Q?"]),
        _pair(None),
        [],
    ]
    images = [_image(1), _image(1, width=1), _image(2, height=0), _image(3, coco_id="4"), None]
    _write(tmp_path, pairs, images)
    path = tmp_path / "question_answers.json"
    path.write_text(path.read_text()[:-1] + ', {"id": 2}]')
    result = visual_genome_qa.read_all(tmp_path)
    assert [a.example_id for a in result.annotations] == ["1"]
    assert result.images["1"].width == 640
    reported = [(s.file.rsplit("/")[-1], s.record, s.reason.split(";")[0]) for s in result.skipped]
    assert sorted(reported) == sorted(
        [
            ("image_data.json", "1", "its image id occurs twice"),
            ("image_data.json", "2", "size 640 x 0 is not positive"),
            ("image_data.json", "3", "'coco_id' must be a whole number, is '4'"),
            ("image_data.json", "record 5", "must be an object, is a NoneType"),
            ("question_answers.json", "1", "its question id occurs twice"),
            ("question_answers.json", "2", "image 5 is not in image_data.json, or cannot be used"),
            ("question_answers.json", "3", "image 2 is not in image_data.json, or cannot be used"),
            ("question_answers.json", "4", "'answer' is blank"),
            ("question_answers.json", "5", "'question' must be a text, is ['Q?']"),
            (
                "question_answers.json",
                "record 1, question 7",
                "'qa_id' must be a whole number, is None",
            ),
            ("question_answers.json", "record 1, question 8", "must be an object, is a list"),
            ("question_answers.json", "record 2", "no 'qas'"),
        ]
    )


def test_unusable_files(tmp_path):
    with pytest.raises(DataError, match="no question_answers.json or cache/trainval_target.pkl"):
        visual_genome_qa.read(tmp_path, "val")
    _write(tmp_path, [_pair(1)], [])
    with pytest.raises(DataError, match="image_data.json: no image that can be used, 0 skipped$"):
        visual_genome_qa.read(tmp_path, "val")
    _write(tmp_path, [_pair(1)], [_image(n) | {"width": -n} for n in (4, 5, 6, 7, 8)])
    reasons = "4: size -4 x .* is not positive; 5: size .*; 6: size .*; 2 more$"
    with pytest.raises(DataError, match=f"no image that can be used, 5 skipped: {reasons}"):
        visual_genome_qa.read(tmp_path, "val")
    _write(tmp_path, [], [_image(1)])
    with pytest.raises(DataError, match="question_answers.json: no question that can be used"):
        visual_genome_qa.read(tmp_path, "val")
    (tmp_path / "image_data.json").unlink()
    with pytest.raises(DataError, match="no image_data.json"):
        visual_genome_qa.read(tmp_path, "val")
    with pytest.raises(ValueError, match="no test questions"):
        visual_genome_qa.read(tmp_path, "test")
