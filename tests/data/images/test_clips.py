"""Frames of videos and folders; batches of clips; files that are damaged, empty, short, long."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.images import clips
from twelve_in_one.data.images.image_set import ImageExample
from twelve_in_one.data.images.load import load_bytes
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.sources import open_image_stream, open_images
from twelve_in_one.data.stored.records import DataError

SIDE = 16


@pytest.fixture(autouse=True)
def told_anew():
    clips._note.cache_clear()


def _frame(number, side=SIDE):
    """Its number is its brightness."""
    return np.full((side, side, 3), 10 * number, np.uint8)


def _folder(path, count):
    path.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(_frame(number)).save(path / f"frame{number}.png")
    return path


def _video(path, count, turn=0):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.gop_size = "yuv420p", 5
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(_frame(number % 25, 32), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _numbers(path, count, **options):
    """The frames that are read, by their brightness."""
    found = clips.frames_of(ImageExample(b"", "x", clip=path), count, **options)
    return [round(float(load_bytes(data, "x", min_side=1).mean()) / 10) for data in found]


def test_which_frames():
    assert clips.pick(8, 4, 0, None).tolist() == [1, 3, 5, 7]
    assert clips.pick(8, 8, 0, None).tolist() == list(range(8))
    assert clips.pick(3, 6, 0, None).tolist() == [0, 0, 1, 1, 2, 2]
    assert clips.pick(1, 3, 0, None).tolist() == [0, 0, 0]
    assert clips.pick(20, 3, 4, None).tolist() == [5, 9, 13]  # 9 frames, 11 are left
    assert clips.pick(6, 4, 3, None).tolist() == [0, 3, 5, 5]
    rng = np.random.default_rng(0)
    drawn = np.array([clips.pick(20, 4, 0, rng) for _ in range(200)])
    assert (drawn // 5 == np.arange(4)).all() and len(np.unique(drawn)) == 20
    first = {int(clips.pick(20, 3, 4, rng)[0]) for _ in range(200)}
    assert first == set(range(12))


def test_folders(tmp_path, caplog):
    """Frames are in the order of their numbers: 10 after 9."""
    assert _numbers(_folder(tmp_path / "clip", 12), 6) == [1, 3, 5, 7, 9, 11]
    one = _folder(tmp_path / "one", 1)
    with caplog.at_level(logging.WARNING):
        assert _numbers(one, 3) == [0, 0, 0]
        assert _numbers(one, 3) == [0, 0, 0]
    assert caplog.text.count(f"{one}: has 1 frame, of which 3 are made by repetition") == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no picture, so the clip has no frame"):
        _numbers(tmp_path / "empty", 3)
    picture = ImageExample(b"picture", "x")
    assert clips.frames_of(picture, 3) == (b"picture",) * 3
    assert clips.still_of(picture) == b"picture"


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_video_files(tmp_path, suffix):
    path = _video(tmp_path / f"a.{suffix}", 12)
    assert _numbers(path, 6) == [1, 3, 5, 7, 9, 11]
    assert _numbers(path, 3, stride=2) == [3, 5, 7]
    assert _numbers(path, 24) == [number for number in range(12) for _ in (0, 1)]


def test_long_files_are_not_decoded_from_their_beginning(tmp_path, monkeypatch):
    path = _video(tmp_path / "a.mp4", 50)
    near, decoded = _numbers(path, 5), []
    monkeypatch.setattr(clips, "LONG", 20)
    plain = clips._decoded

    def counted(file, stream):
        for frame in plain(file, stream):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(clips, "_decoded", counted)
    assert _numbers(path, 5) == near == [5, 15, 0, 10, 20]  # of 25 brightnesses
    assert len(decoded) <= 5 * 6  # groups of five frames


def test_damaged_files(tmp_path, caplog):
    whole = _video(tmp_path / "whole.avi", 20).read_bytes()
    begin = whole.index(b"movi")  # after the headers, which state 20 frames
    short = tmp_path / "short.avi"
    short.write_bytes(whole[: begin + (len(whole) - begin) // 2])
    with caplog.at_level(logging.WARNING):
        found = _numbers(short, 4)
    assert len(found) == 4 and found[0] == 2 and found == sorted(found) and found[-1] < 17
    assert f"{short}: ends after" in caplog.text or "repetition" in caplog.text
    for name, data in (("page.mp4", b"<html></html>"), ("empty.mp4", b"")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: cannot be read as a video"):
            _numbers(path, 4)


def _write_set(folder):
    """Four clips, of which one is damaged and one lacks its video."""
    for number, count in ((0, 8), (1, 3), (2, 8)):
        _folder(folder / f"videos/video{number}", count)
    (folder / "videos/video2/frame5.png").write_bytes(b"\x89PNG\r\n\x1a\nspoiled")
    records = [
        {"id": i, "video_id": video, "question": f"what is {i}?", "answer": f"answer {i}"}
        for i, video in enumerate([0, 0, 1, 2, 2, 3])
    ]
    (folder / "train_qa.json").write_text(json.dumps(records))


def test_batches(tmp_path, caplog):
    _write_set(tmp_path)
    images = open_images(f"msrvtt_qa:{tmp_path}[train]")
    assert images.num_examples == 5 and images.size.images == 3
    assert [skip.reason for skip in images.skipped] == [f"no video video3 below {tmp_path}"]
    assert "1 left out" in caplog.text
    recipe = Preprocess(8, frames=4, random_crop=True)
    stream = open_image_stream(
        images, size=8, batch_size=6, training=False, preprocess=recipe, max_unreadable_share=1.0
    )
    batch = stream.batch(0)
    assert batch["images"].shape == (6, 4, 8, 8, 3) and batch["_mask"].sum() == 3
    for row, name in enumerate(batch["example_id"]):
        if not batch["_mask"][row]:
            assert not batch["images"][row].any()
            continue
        example = next(x for x in map(images.read, range(5)) if x.example_id.encode() == name)
        wanted = {"video0": [1, 3, 5, 7], "video1": [0, 1, 1, 2]}[example.image_id]
        values = (batch["images"][row].mean((1, 2, 3)) + 1) * 127.5 / 10
        np.testing.assert_allclose(values, wanted, atol=0.01)
    assert len(stream.unreadable) == 2  # both questions about the damaged clip
    assert "frame5.png" in str(stream.unreadable.skipped()) or "3" in str(
        stream.unreadable.skipped()
    )
    (made,) = stream.as_dataset()
    np.testing.assert_array_equal(made["images"], batch["images"])


def test_frames_share_their_random_box(tmp_path):
    """A gradient in a clip in which nothing moves: all frames stay equal."""
    folder = tmp_path / "videos/video0"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    for number in range(4):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    record = {"id": 1, "video_id": 0, "question": "what?", "answer": "this"}
    (tmp_path / "train_qa.json").write_text(json.dumps([record]))
    recipe = Preprocess(8, frames=3, random_frames=True, random_crop=True, flip=True)
    stream = open_image_stream(
        f"msrvtt_qa:{tmp_path}[train]", size=8, batch_size=4, training=True, preprocess=recipe
    )
    images = stream.batch(0)["images"]
    assert (images == images[:, :1]).all()
    assert len(np.unique(images[:, 0].reshape(4, -1), axis=0)) == 4


def test_sets_without_videos(tmp_path):
    record = {"id": 1, "video_id": 5, "question": "what?", "answer": "this"}
    (tmp_path / "train_qa.json").write_text(json.dumps([record]))
    with pytest.raises(DataError, match=r"none of its 1 videos is below .*, as video5.mp4"):
        open_images(f"msrvtt_qa:{tmp_path}[train]")
    with pytest.raises(DataError, match=r"should be msrvtt_qa:FOLDER\[SPLIT\]"):
        open_images(f"msrvtt_qa:{tmp_path}")
