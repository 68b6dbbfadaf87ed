"""Questions with short answers: VQA v2, Visual Genome QA and GQA."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from twelve_in_one.data.annotations import visual_genome_qa, vqa
from twelve_in_one.data.annotations.question_answering import HELD_OUT, num_held_out
from twelve_in_one.world.collections import Picture, Pictures
from twelve_in_one.world.language import questions
from twelve_in_one.world.language.questions import Question
from twelve_in_one.world.scene import HEIGHT, WIDTH, Scene, Thing
from twelve_in_one.world.splits import Division
from twelve_in_one.world.writers.output import (
    Count,
    Counts,
    Run,
    address,
    info,
    whole_box,
    write_json,
)

VQA_PER_PICTURE, GENOME_PER_PICTURE, GQA_PER_PICTURE = 9, 30, 28
VQA_PER_TESTED = 18  # of a picture that is only tested on
_TRIES = 3  # for each question that is wanted
_FIRST_GENOME_ID = 986_768
# GQA's ids are digits sorted as text: those of train before val, and all equally long.
_FIRST_GQA_IDS = {"train": 1_000_000, "val": 17_000_000, "testdev": 201_000_000}

Style = Literal["vqa", "vg", "gqa"]


def write_vqa(folder: Path, parts: Division, run: Run) -> Counts:
    """Writes the question files of all three parts, and annotations except for test2015.

    Args:
      folder: to write to.
      parts: "train2014", "val2014" and "test2015" -> pictures.
      run: hands out the work.
    """
    counts = {}
    for part, pictures in parts.items():
        items = [(p.scene, VQA_PER_TESTED if p.only_tested else VQA_PER_PICTURE) for p in pictures]
        asked = run(f"vqa/{part}", _ask_people, items)
        question_records, annotations, further = [], [], []
        for picture, pairs in zip(pictures, asked, strict=True):
            for question_id, (question, confidences) in enumerate(pairs, 1000 * picture.image_id):
                ids = {"image_id": picture.image_id, "question_id": question_id}
                question_records.append(ids | {"question": question.text})
                annotations.append(ids | _annotation(question, confidences))
                if picture.only_tested:
                    further.append(question_id)
        head = {"info": info("Questions"), "license": {}, "data_type": "mscoco"}
        head["data_subtype"] = part
        task = {"task_type": "Open-Ended", "questions": question_records}
        write_json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", head | task)
        if part != "test2015":
            name = f"v2_mscoco_{part}_annotations.json"
            write_json(folder / name, head | {"annotations": annotations})
        if further:
            ids = [record["question_id"] for record in question_records]
            _write_held_out(folder, sorted(ids), len(further), vqa.NUM_VAL)
        counts[part] = Count(len(question_records), len(pictures))
    return counts


def write_visual_genome(folder: Path, pictures: Pictures, pointed_at: Pictures, run: Run) -> Counts:
    """Writes question_answers.json and image_data.json.

    Question ids rise with the pictures' ids, so the last questions, used for validation by readers,
    are about separate pictures.

    Args:
      folder: to write to.
      pictures: to ask about.
      pointed_at: further pictures, which only Visual7W asks about.
      run: hands out the work.
    """
    asked = run("visual_genome", _ask_vg, [picture.scene for picture in pictures])
    question_id = _FIRST_GENOME_ID
    records, further = [], 0
    for picture, found in zip(pictures, asked, strict=True):
        pairs = []
        further += len(found) * picture.only_tested
        for question in found:
            pairs.append(
                {
                    "qa_id": question_id,
                    "image_id": picture.image_id,
                    "question": question.text,
                    # Visual Genome answers in sentences.
                    "answer": f"{question.answer[:1].upper()}{question.answer[1:]}.",
                    "q_objects": [_object(picture, index) for index in question.objects],
                    "a_objects": [],
                }
            )
            question_id += 1
        records.append({"id": picture.image_id, "qas": pairs})
    write_json(folder / "question_answers.json", records)
    if further:
        ids = list(range(_FIRST_GENOME_ID, question_id))
        _write_held_out(folder, ids, further, visual_genome_qa.NUM_VAL)
    images = [
        {
            "image_id": picture.image_id,
            "width": WIDTH,
            "height": HEIGHT,
            "coco_id": None if picture.coco_id < 0 else picture.coco_id,
            "flickr_id": None,
            "url": address(picture),
        }
        for picture in (*pictures, *pointed_at)
    ]
    write_json(folder / "image_data.json", images)
    return {"all": Count(question_id - _FIRST_GENOME_ID, len(pictures))}


def write_gqa(folder: Path, division: Division, run: Run) -> Counts:
    """Writes the balanced questions of "train", "val" and "testdev".

    Pictures of testdev are not Visual Genome's; their ids begin with "n".
    """
    counts = {}
    for split, pictures in division.items():
        asked = run(f"gqa/{split}", _ask_gqa, [picture.scene for picture in pictures])
        number = _FIRST_GQA_IDS[split]
        records = {}
        for picture, found in zip(pictures, asked, strict=True):
            image_id = picture.name.removesuffix(".jpg")
            for question in found:
                question_id = f"{number:08d}"
                records[question_id] = {"imageId": image_id} | _gqa_record(question, question_id)
                number += 1
        write_json(folder / f"{split}_balanced_questions.json", records)
        counts[split] = Count(len(records), len(pictures))
    return counts


def _write_held_out(folder: Path, ids: list[int], further: int, official: int) -> None:
    """Makes readers also validate on the last `further` questions, and not change training."""
    held_out = further + num_held_out(len(ids) - further, official)
    write_json(folder / HELD_OUT, ids[-held_out:])


def _ask(scene: Scene, rng: np.random.Generator, style: Style, count: int) -> list[Question]:
    """Up to `count` questions of different wording."""
    found: dict[str, Question] = {}
    for _ in range(_TRIES * count):
        question = questions.ask(scene, rng, style)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def _ask_people(
    item: tuple[Scene, int], rng: np.random.Generator
) -> list[tuple[Question, tuple[str, ...]]]:
    """The given number of questions, each with the certainty of its ten answerers."""
    scene, count = item
    return [
        (question, tuple(_confidence(question, answer, rng) for answer in question.human_answers))
        for question in _ask(scene, rng, "vqa", count)
    ]


def _confidence(question: Question, answer: str, rng: np.random.Generator) -> str:
    if answer == question.answer:
        return "yes" if rng.random() < 0.9 else "maybe"
    return "maybe" if rng.random() < 0.7 else "no"


def _ask_vg(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return _ask(scene, rng, "vg", GENOME_PER_PICTURE)


def _ask_gqa(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return _ask(scene, rng, "gqa", GQA_PER_PICTURE)


def _annotation(question: Question, confidences: tuple[str, ...]) -> dict[str, Any]:
    return {
        "question_type": question.question_type,
        "answer_type": question.answer_type,
        "multiple_choice_answer": question.answer,
        "answers": [
            {"answer": answer, "answer_confidence": confidence, "answer_id": number}
            for number, (answer, confidence) in enumerate(
                zip(question.human_answers, confidences, strict=True), 1
            )
        ],
    }


def _object(picture: Picture, index: int) -> dict[str, Any]:
    thing: Thing = picture.scene.things[index]
    box = whole_box(thing)
    return {
        "object_id": picture.object_id + index,
        "x": box["x"],
        "y": box["y"],
        "w": box["width"],
        "h": box["height"],
        "names": [thing.shape],
        "synsets": [],
    }


def _gqa_record(question: Question, question_id: str) -> dict[str, Any]:
    return {
        "question": question.text,
        "answer": question.answer,
        "fullAnswer": f"{question.answer[:1].upper()}{question.answer[1:]}.",
        "isBalanced": True,
        "semantic": [],
        "semanticStr": "",
        "entailed": [],
        "equivalent": [question_id],
        "groups": {"global": None, "local": None},
        "types": {
            "structural": question.question_type,
            "semantic": ("global", "attr", "rel")[min(len(question.objects), 2)],
            "detailed": f"{question.question_type}{len(question.objects)}",
        },
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
    }
