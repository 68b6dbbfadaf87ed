"""Clips with questions as in MSRVTT-QA and captions as in MSRVTT; a clip is a folder of frames."""

from pathlib import Path

import numpy as np

from twelve_in_one.world import clips
from twelve_in_one.world.collections import divide
from twelve_in_one.world.language import clip_texts
from twelve_in_one.world.language.clip_texts import Question
from twelve_in_one.world.writers.output import Count, Counts, Run, write_json, write_picture

MIN_CLIPS = 20  # for every split to have one of each kind
_SHARES = {"train": 0.8, "val": 0.05, "test": 0.15}
_STATED = {"train": "train", "val": "validate", "test": "test"}


def write(folder: Path, count: int, run: Run) -> Counts:
    """Writes `count` clips below `folder`/videos, their questions and their captions.

    Splits have clips of their own, all kinds equally often.
    """
    sizes = divide(count, _SHARES, dict.fromkeys(_SHARES, len(clips.KINDS)))
    items = [
        (clips.KINDS[number % len(clips.KINDS)], folder / f"videos/video{number}")
        for number in range(count)
    ]
    made = run("clips", _clip, items)
    counts, start, question_id = {}, 0, 0
    videos, sentences = [], []
    for split, size in sizes.items():
        questions = []
        for number in range(start, start + size):
            asked, captions = made[number]
            for question in asked:
                questions.append(
                    {
                        "answer": question.answer,
                        "category_id": clips.KINDS.index(items[number][0]),
                        "id": question_id,
                        "question": question.text,
                        "video_id": number,
                    }
                )
                question_id += 1
            name = f"video{number}"
            videos.append(
                {"video_id": name, "id": number, "split": _STATED[split], "category": 0, "url": ""}
            )
            for caption in captions:
                sentence = {"caption": caption, "video_id": name, "sen_id": len(sentences)}
                sentences.append(sentence)
        write_json(folder / f"{split}_qa.json", questions)
        counts[split] = Count(len(questions), size)
        start += size
    write_json(folder / "videodatainfo.json", {"videos": videos, "sentences": sentences})
    return counts


def _clip(item: tuple[str, Path], rng: np.random.Generator) -> tuple[list[Question], list[str]]:
    kind, folder = item
    scene = clips.sample(kind, rng)
    folder.mkdir(parents=True)
    for number, frame in enumerate(clips.render(scene, rng)):
        write_picture(frame, [folder / f"{number:02}.jpg"])
    return clip_texts.ask(scene, rng), clip_texts.describe(scene, rng)
