"""NLVR2: sentences about pairs of pictures, each true of some pairs and false of as many."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twelve_in_one.world.collections import PairSet
from twelve_in_one.world.language import pairs
from twelve_in_one.world.scene import Scene
from twelve_in_one.world.writers.output import Count, Counts, Run, address, write_json_lines

PER_SET, PER_TESTED = 24, 48  # sentences
_MOST_USES = 2  # of a sentence where it is true, and where it is false
_TRIES = 40  # for each sentence that is wanted


class _Sentence(NamedTuple):
    """A sentence and its truth by the number of the pair in its set."""

    text: str
    truths: dict[int, bool]


def write(folder: Path, sets: Mapping[str, tuple[PairSet, ...]], run: Run) -> Counts:
    """Writes {train,dev,test1}.json, JSON lines in the order of the identifiers.

    Args:
      folder: to write to.
      sets: "train", "dev" and "test1" -> sets of pairs.
      run: hands out the work.
    """
    counts = {}
    for split, groups in sets.items():
        items = [
            (
                [(left.scene, right.scene) for left, right in group],
                PER_TESTED if group[0][0].only_tested else PER_SET,
            )
            for group in groups
        ]
        records = []
        for number, (group, sentences) in enumerate(
            zip(groups, run(f"nlvr2/{split}", _judge, items), strict=True)
        ):
            shapes = Counter(t.shape for pair in group for p in pair for t in p.scene.things)
            topic = shapes.most_common(1)[0][0]
            for place, sentence in enumerate(sentences):
                for pair, truth in sentence.truths.items():
                    left, right = group[pair]
                    record = {
                        "identifier": f"{split}-{number}-{pair}-{place}",
                        "sentence": sentence.text,
                        "label": str(truth),
                        "left_url": address(left),
                        "right_url": address(right),
                        "synset": topic,
                        "query": f"{topic}s{number}",
                        "writer": "0",
                        "validation": {"1": str(truth)},
                    }
                    # Only the large training part is spread over folders.
                    records.append(record | ({"directory": 0} if split == "train" else {}))
        write_json_lines(folder / f"{split}.json", records)
        counts[split] = Count(len(records), sum(2 * len(group) for group in groups))
    return counts


def _judge(
    item: tuple[list[tuple[Scene, Scene]], int], rng: np.random.Generator
) -> list[_Sentence]:
    """The given number of sentences, each true of some pairs and false of equally many."""
    group, count = item
    found: dict[str, _Sentence] = {}
    for _ in range(_TRIES * count):
        sentence = pairs.sentence(rng)
        truths = np.array([sentence.truth(left, right) for left, right in group])
        true, false = (rng.permutation(np.flatnonzero(t)) for t in (truths, ~truths))
        uses = min(len(true), len(false), _MOST_USES)
        if uses and sentence.text not in found:
            used = sorted([*true[:uses].tolist(), *false[:uses].tolist()])
            found[sentence.text] = _Sentence(sentence.text, {i: bool(truths[i]) for i in used})
        if len(found) == count:
            break
    return list(found.values())
