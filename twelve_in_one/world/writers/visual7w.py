"""Visual7W pointing: which of four things does a question mean?"""

from pathlib import Path

import numpy as np

from twelve_in_one.world.language import which
from twelve_in_one.world.language.which import Which
from twelve_in_one.world.scene import Scene
from twelve_in_one.world.splits import Division
from twelve_in_one.world.writers.output import Count, Counts, Run, whole_box, write_json

PER_PICTURE, PER_TESTED = 9, 15
_TRIES = 3  # for each question that is wanted


def write(folder: Path, division: Division, run: Run) -> Counts:
    """Writes dataset_v7w_pointing.json; boxes have whole pixels and their own ids.

    Pictures without a possible question are left out.

    Args:
      folder: to write to.
      division: "train", "val" and "test" -> pictures.
      run: hands out the work.
    """
    counts, boxes, images = {}, [], []
    question_id = 1
    for split, pictures in division.items():
        before = question_id
        items = [(p.scene, PER_TESTED if p.only_tested else PER_PICTURE) for p in pictures]
        asked = run(f"visual7w/{split}", _ask, items)
        asked_about = [pair for pair in zip(pictures, asked, strict=True) if pair[1]]
        for picture, found in asked_about:
            boxes += [
                {
                    "box_id": picture.object_id + index,
                    "image_id": picture.image_id,
                    "name": thing.shape,
                }
                | whole_box(thing)
                for index, thing in enumerate(picture.scene.things)
            ]
            questions = []
            for question in found:
                others = [index for index in question.choices if index != question.answer]
                questions.append(
                    {
                        "qa_id": question_id,
                        "image_id": picture.image_id,
                        "question": question.question,
                        "answer": picture.object_id + question.answer,
                        "multiple_choices": [picture.object_id + index for index in others],
                        "type": "which",
                    }
                )
                question_id += 1
            images.append(
                {
                    "image_id": picture.image_id,
                    # Visual7W distributes Visual Genome's pictures under its own names.
                    "filename": f"v7w_{picture.name}",
                    "split": split,
                    "qa_pairs": questions,
                }
            )
        counts[split] = Count(question_id - before, len(asked_about))
    content = {"dataset": "visual7w-pointing", "boxes": boxes, "images": images}
    write_json(folder / "dataset_v7w_pointing.json", content)
    return counts


def _ask(item: tuple[Scene, int], rng: np.random.Generator) -> list[Which]:
    """Up to the given number of questions of different wording."""
    scene, count = item
    found: dict[str, Which] = {}
    for _ in range(_TRIES * count):
        question = which.which(scene, rng)
        if question is not None:
            found.setdefault(question.question, question)
        if len(found) == count:
            break
    return list(found.values())
