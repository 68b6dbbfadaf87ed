"""SNLI-VE: does a picture entail a sentence, contradict it, or neither?"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from twelve_in_one.world.language import entailment
from twelve_in_one.world.scene import Scene
from twelve_in_one.world.splits import Division
from twelve_in_one.world.writers.captions import PER_PICTURE, Described
from twelve_in_one.world.writers.output import Count, Counts, Run, write_json_lines

LABELS = ("contradiction", "neutral", "entailment")
PER_LABEL = 12  # hypotheses of a picture
_TRIES = 3  # for each hypothesis that is wanted


class _Hypothesis(NamedTuple):
    """A sentence about a picture of the split; `rank` counts those of a picture and label."""

    picture: int
    label: str
    rank: int
    text: str


def write(folder: Path, division: Division, described: Described, run: Run) -> Counts:
    """Writes snli_ve_{train,dev,test}.jsonl with equally many hypotheses of each label.

    Args:
      folder: to write to.
      division: "train", "dev" and "test" -> pictures of Flickr30k.
      described: captions of the pictures, which the records quote as premises.
      run: hands out the work.
    """
    counts = {}
    for split, pictures in division.items():
        records = []
        found = run(f"snli_ve/{split}", _hypotheses, [picture.scene for picture in pictures])
        for hypothesis in _balanced(found):
            picture = pictures[hypothesis.picture]
            captions = described[picture.image_id][:PER_PICTURE]
            number = hypothesis.rank % len(captions)
            caption_id = f"{picture.name}#{number}"
            round_, letter = hypothesis.rank // len(captions) + 1, hypothesis.label[0]
            records.append(
                {
                    "Flikr30kID": picture.name,
                    "Flickr30K_ID": str(picture.image_id),
                    "annotator_labels": [hypothesis.label],
                    "captionID": caption_id,
                    "gold_label": hypothesis.label,
                    "pairID": f"{caption_id}r{round_}{letter}",
                    "sentence1": captions[number],
                    "sentence2": hypothesis.text,
                }
            )
        write_json_lines(folder / f"snli_ve_{split}.jsonl", records)
        counts[split] = Count(len(records), len({r["Flikr30kID"] for r in records}))
    return counts


def _hypotheses(scene: Scene, rng: np.random.Generator) -> dict[str, list[str]]:
    """Different hypotheses by label; there may be fewer than wanted, or none."""
    found: dict[str, list[str]] = {}
    for label in LABELS:
        texts: dict[str, None] = {}
        for _ in range(_TRIES * PER_LABEL):
            text = entailment.hypothesis(scene, rng, label)
            if text is not None:
                texts[text] = None
            if len(texts) == PER_LABEL:
                break
        found[label] = list(texts)
    return found


def _balanced(found: list[dict[str, list[str]]]) -> list[_Hypothesis]:
    """As many of each label as of the rarest, spread over the pictures, in their order."""
    by_label = [
        [
            _Hypothesis(picture, label, rank, texts[label][rank])
            for rank in range(PER_LABEL)
            for picture, texts in enumerate(found)
            if rank < len(texts[label])
        ]
        for label in LABELS
    ]
    size = min(map(len, by_label))
    kept = [hypothesis for hypotheses in by_label for hypothesis in hypotheses[:size]]
    return sorted(kept, key=lambda h: (h.picture, h.rank, LABELS.index(h.label)))
