"""Official files of questions and captions about videos, and files of strangers."""

import json

import pytest

from twelve_in_one.data.annotations import videos
from twelve_in_one.data.stored.records import DataError


def _questions(folder, records, split="train"):
    (folder / f"{split}_qa.json").write_text(json.dumps(records))


def test_questions(tmp_path):
    good = {"answer": "dog", "category_id": 3, "id": 7, "question": "what  runs ?", "video_id": 12}
    bad = [
        good,  # its id again
        good | {"id": 8, "answer": " "},
        good | {"id": 9, "question": 5},
        {"id": 10},
        "text",
        good | {"id": 11, "video_id": None},
    ]
    _questions(tmp_path, [good, *bad, good | {"id": 12, "video_id": "video3"}])
    found = videos.read_msrvtt_qa(tmp_path, "train")
    assert [(x.example_id, x.video, x.question, x.texts) for x in found.records] == [
        ("7", "video12", "what runs ?", ("dog",)),
        ("12", "video3", "what runs ?", ("dog",)),
    ]
    assert len(found.skipped) == len(bad)
    assert "id 7 is that of an earlier question" in found.skipped[0].reason
    assert found.skipped[1].record == "record 2" and "'answer' is empty" in found.skipped[1].reason
    (tmp_path / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid12\n\nabc vid2\n")
    found = videos.read_msvd_qa(tmp_path, "train")
    assert found.records[0].video == "vid12"
    assert found.names == {"-4wsuPCjDBc_5_15": "vid12", "abc": "vid2"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "no question that can be used, 2 skipped"),
        ("{}", "top level must be a list"),
        ("[{]", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_files_that_hold_no_questions(tmp_path, content, said):
    (tmp_path / "val_qa.json").write_text(content)
    with pytest.raises(DataError, match=f"val_qa.json.*{said}"):
        videos.read_msrvtt_qa(tmp_path, "val")
    with pytest.raises(DataError, match="no split 'dev': train, val, test"):
        videos.read_msrvtt_qa(tmp_path, "dev")
    with pytest.raises(DataError, match="no test_qa.json"):
        videos.read_msrvtt_qa(tmp_path, "test")


def test_captions_of_msrvtt(tmp_path):
    """Its files may be two, one for the test split."""
    for name, of in (("train_val", (("video0", "train"), ("video1", "validate"))),
                     ("test", (("video9", "test"),))):  # fmt: skip
        content = {
            "videos": [{"video_id": video, "split": split} for video, split in of],
            "sentences": [
                {"video_id": video, "caption": text, "sen_id": 0}
                for video, _ in of
                for text in (f"one of {video}", "two", "")
            ],
        }
        (tmp_path / f"{name}_videodatainfo.json").write_text(json.dumps(content))
    for split, video in (("train", "video0"), ("val", "video1"), ("test", "video9")):
        found = videos.read_msrvtt_captions(tmp_path, split)
        (record,) = found.records
        assert record.video == video and record.texts == (f"one of {video}", "two")
        assert len(found.skipped) == 3 and "'caption' is empty" in found.skipped[0].reason
    (tmp_path / "test_videodatainfo.json").write_text('{"videos": 3}')
    with pytest.raises(DataError, match="test_videodatainfo.json: 'videos' must be a list, is 3"):
        videos.read_msrvtt_captions(tmp_path, "test")


def test_captions_of_msvd(tmp_path):
    header = "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
    rows = [
        "ab,1,5,0,clean,3,English,a squirrel eats",
        'ab,1,5,0,clean,3,English,"it eats, fast"',
        "ab,1,5,0,clean,3,German,ein Tier",
        "ab,x,5,0,clean,3,English,nothing",
        "cd,2,9,0,clean,3,English,",
        "cd,2,9,0,clean,3,English,a car",
    ]
    (tmp_path / "corpus.csv").write_text(header + "\n".join(rows))
    mapping = [f"ab_1_5 vid{1200}", f"cd_2_9 vid{1201}"]
    (tmp_path / "youtube_mapping.txt").write_text("\n".join(mapping))
    found = videos.read_msvd_captions(tmp_path, "train")
    assert [(x.video, x.texts) for x in found.records] == [
        ("ab_1_5", ("a squirrel eats", "it eats, fast"))
    ]
    assert len(found.skipped) == 2
    assert videos.read_msvd_captions(tmp_path, "val").records[0].texts == ("a car",)
    (tmp_path / "val_list.txt").write_text("ab_1_5\n")
    assert videos.read_msvd_captions(tmp_path, "val").records[0].video == "ab_1_5"
    (tmp_path / "corpus.csv").unlink()
    lines = "# a comment\nab_1_5 a squirrel eats\ncd_2_9 a car\n\nab_1_5\n"
    (tmp_path / "AllVideoDescriptions.txt").write_text(lines)
    found = videos.read_msvd_captions(tmp_path, "val")
    assert found.records[0].texts == ("a squirrel eats",) and len(found.skipped) == 1
    (tmp_path / "youtube_mapping.txt").write_text("ab_1_5 video1")
    with pytest.raises(DataError, match="youtube_mapping.txt: line 1 is not a name and vidNUMBER"):
        videos.read_msvd_captions(tmp_path, "test")
