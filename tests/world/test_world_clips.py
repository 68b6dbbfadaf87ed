"""Clips of the world: what is asked can be seen, and no single frame tells it."""

import collections
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.annotations import videos
from twelve_in_one.world import clips, make
from twelve_in_one.world.language import clip_texts, words
from twelve_in_one.world.writers import clips as writer


def _runner(seed=0):
    return make._Runner(seed, None, 1, lambda line: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("world") / "msrvtt"
    counts = writer.write(place, 24, _runner())
    assert {split: count.pictures for split, count in counts.items()} == {
        "train": 16,
        "val": 4,
        "test": 4,
    }
    return place


def _many(kind, count=300):
    return [clips.sample(kind, np.random.default_rng([7, i])) for i in range(count)]


def test_official_readers_read_them(folder):
    for split, number in (("train", 16), ("val", 4), ("test", 4)):
        questions = videos.read_msrvtt_qa(folder, split)
        captions = videos.read_msrvtt_captions(folder, split)
        assert not questions.skipped and not captions.skipped
        assert len(questions.records) == number * clip_texts.QUESTIONS
        assert {x.video for x in questions.records} == {x.video for x in captions.records}
        assert all(len(x.texts) == clip_texts.CAPTIONS for x in captions.records)
    frames = sorted((folder / "videos/video3").iterdir())
    assert [path.name for path in frames] == [f"{i:02}.jpg" for i in range(clips.FRAMES)]
    assert np.asarray(Image.open(frames[0])).shape == (clips.SIDE, clips.SIDE, 3)


def test_the_same_seed_makes_the_same_files(folder, tmp_path):
    writer.write(tmp_path / "again", 24, _runner())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            other = tmp_path / "again" / path.relative_to(folder)
            hashes = [hashlib.sha256(x.read_bytes()).digest() for x in (path, other)]
            assert hashes[0] == hashes[1], path


def test_things_move_as_the_answers_say():
    """Seen in the pixels: the difference between first and last frame is where things moved."""
    for kind in ("moves", "count", "turns"):
        for number in range(3):
            rng = np.random.default_rng([11, number])
            scene = clips.sample(kind, rng)
            frames = clips.render(scene, rng).astype(int)
            first, last = (list(scene.frame(i)) for i in (0, clips.FRAMES - 1))
            moved = {event.thing: event.what for event in scene.events}
            for place, (before, after) in enumerate(zip(first, last, strict=True)):
                step = after.x - before.x, after.y - before.y
                wanted = np.array(clips.DIRECTIONS.get(moved.get(place), (0, 0))) * 20
                np.testing.assert_allclose(step, wanted, atol=1e-6)
                changed = np.abs(frames[0] - frames[-1]).sum(-1)
                middle = changed[round(before.y), round(before.x)]
                assert (middle > 60) == (place in moved) or before.shape == "ring"
    for scene in _many("shows", 20):
        seen = [[thing.shape for thing in scene.frame(i)] for i in range(clips.FRAMES)]
        for event in scene.events:
            shape = scene.things[event.thing].shape
            at = [i for i, shapes in enumerate(seen) if shape in shapes]
            assert at == list(range(event.start, event.stop))
        assert scene.events[0].stop <= scene.events[1].start


def test_no_frame_tells_what_moves_or_comes_first():
    """In the frame that stands for a clip, the thing asked for is like the others."""
    frame, still, moving = clips.FRAMES // 2, [], []
    for scene in _many("moves"):
        mover = scene.events[0].thing
        for place, thing in enumerate(scene.frame(frame)):
            across = abs(thing.x - clips.SIDE / 2), abs(thing.y - clips.SIDE / 2)
            (moving if place == mover else still).append(max(across))
    assert abs(np.mean(still) - np.mean(moving)) < 1.0
    seen = collections.Counter()
    for scene in _many("shows", 1000):
        for place, event in enumerate(scene.events):
            seen[place] += event.start <= frame < event.stop
    assert 0.4 < seen[0] / sum(seen.values()) < 0.6 and sum(seen.values()) > 300


def test_words_alone_do_not_answer():
    """Answers to every question are about equally likely."""
    answers = collections.defaultdict(collections.Counter)
    for kind in clips.KINDS:
        for number, scene in enumerate(_many(kind)):
            for question in clip_texts.ask(scene, np.random.default_rng([5, number])):
                answers[question.text.split(" ")[0], kind][question.answer] += 1
    assert set(answers["how", "count"]) == {"one", "two", "three", "zero"}
    for (first, kind), counted in answers.items():
        largest = max(counted.values()) / sum(counted.values())
        assert largest < (0.45 if kind == "count" else 0.35), (first, kind, counted)


def test_texts_name_what_is_there():
    scene = clips.ClipScene(
        "turns",
        "grass",
        tuple(
            clips.Thing(shape, colour, "plain", "small", 30.0, 30.0, 7.0)
            for shape, colour in (("star", "red"), ("ring", "blue"), ("heart", "green"))
        ),
        (clips.Event(2, "up", 0, 3), clips.Event(0, "left", 4, 7)),
    )
    found = {}
    for number in range(60):
        for question in clip_texts.ask(scene, np.random.default_rng(number)):
            found[question.text] = question.answer
    assert found["what moves first?"] == "heart" and found["what colour moves last?"] == "red"
    assert found["what moves after the green heart?"] == "star"
    assert found["where does the thing go that moves last?"] == "left"
    told = clip_texts.describe(scene, np.random.default_rng(1))
    assert all("heart" in text and "star" in text for text in told)
    assert words.NUMBERS[2] == "two"


def test_a_world_may_have_clips(tmp_path):
    sets = make.DecoderSets(clips=20)
    assert sets.arguments() == {"clips": 20}
    with pytest.raises(ValueError, match="clips must be 0, or from 20 to 50,000, got 3"):
        make.DecoderSets(clips=3)
    about = {"version": make.VERSION, "arguments": {"images": 50, "seed": 0, "clips": 20}}
    (tmp_path / make.ABOUT).write_text(json.dumps(about))
    assert make.is_made(tmp_path, 50, 0, 0, sets)
    with pytest.raises(ValueError, match="holds another world"):
        make.is_made(tmp_path, 50, 0)
