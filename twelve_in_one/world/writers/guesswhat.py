"""GuessWhat?!: dialogues of questions and answers about one thing of a picture."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twelve_in_one.world.collections import Picture
from twelve_in_one.world.language import dialogue
from twelve_in_one.world.scene import SHAPES, Scene
from twelve_in_one.world.splits import Division
from twelve_in_one.world.writers.output import (
    Count,
    Counts,
    Run,
    bounding_box,
    image_record,
    write_json_lines,
)

PER_PICTURE, PER_TESTED = 3, 10
# How games end; questions and answers of lost games are equally good.
_OUTCOMES, _OUTCOME_SHARES = ("success", "failure", "incomplete"), (0.85, 0.1, 0.05)


class _Game(NamedTuple):
    target: int
    status: str
    turns: tuple[tuple[str, str], ...]


def write(folder: Path, division: Division, run: Run) -> Counts:
    """Writes guesswhat.{train,valid,test}.jsonl.

    Args:
      folder: to write to.
      division: "train", "valid" and "test" -> pictures of COCO.
      run: hands out the work.
    """
    counts = {}
    game_id = turn_id = 1
    for split, pictures in division.items():
        records = []
        items = [(p.scene, PER_TESTED if p.only_tested else PER_PICTURE) for p in pictures]
        played = run(f"guesswhat/{split}", _play, items)
        for picture, games in zip(pictures, played, strict=True):
            objects = [_object(picture, index) for index in range(len(picture.scene.things))]
            for game in games:
                turns = [
                    {"question": question, "answer": answer, "id": i}
                    for i, (question, answer) in enumerate(game.turns, turn_id)
                ]
                turn_id += len(turns)
                records.append(
                    {
                        "id": game_id,
                        "status": game.status,
                        "questioner_id": 0,
                        "timestamp": "2016-07-08 15:10:17",
                        "qas": turns,
                        "image": image_record(picture),
                        "object_id": picture.object_id + game.target,
                        "objects": objects,
                    }
                )
                game_id += 1
        write_json_lines(folder / f"guesswhat.{split}.jsonl", records)
        counts[split] = Count(len(records), len(pictures))
    return counts


def _play(item: tuple[Scene, int], rng: np.random.Generator) -> list[_Game]:
    """A game about each of a few things; several about each if there are fewer than games."""
    scene, count = item
    games = []
    for target in np.resize(rng.permutation(len(scene.things)), count).tolist():
        turns = dialogue.game(scene, target, rng)
        status = _OUTCOMES[rng.choice(len(_OUTCOMES), p=_OUTCOME_SHARES)]
        games.append(_Game(target, status, tuple(turns)))
    return games


def _object(picture: Picture, index: int) -> dict[str, Any]:
    thing = picture.scene.things[index]
    x, y, width, height = box = bounding_box(thing)
    return {
        "id": picture.object_id + index,
        "category": thing.shape,
        "category_id": SHAPES.index(thing.shape) + 1,
        "bbox": box,
        "area": round(width * height, 2),
        "segment": [[x, y, x + width, y, x + width, y + height, x, y + height]],
    }
