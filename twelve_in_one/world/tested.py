"""Pictures for testing only: without them tests could not show a difference of one point.

The shares of a world leave most tasks some hundred test examples, and a score on so few is
uncertain by several points. Worlds large enough for training therefore have a fixed
number of further pictures, about which each dataset says more than about others, so every task
is tested on at least `EXAMPLES`. They come after the others in every order: the others' contents
and texts do not change, and neither does any training split.

Datasets share these pictures, too, but no training split has them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from twelve_in_one.world.collections import (
    Collections,
    Pair,
    Picture,
    Pictures,
    further_ids,
    leaves_open,
    nlvr2_pair,
)
from twelve_in_one.world.scene import Scene
from twelve_in_one.world.splits import MIN_CHOICES, Splits, is_round

EXAMPLES = 2000
MIN_IMAGES = 2000  # of a world that has them

_COUNTS = {
    "train2014": 200,
    "val2014": 115,
    "visual_genome": 52,
    "gqa_testdev": 58,
    "flickr30k": 56,
    "nlvr2": 120,
}
_POINTED_AT = 150  # of train2014, which are Visual Genome's as well
# Captions are ranked among at least this many pictures. Each additional picture has to be scored
# with every caption, so there are more captions per picture instead.
_GALLERY = 40
_PAIRS_PER_SET = 4


def count(images: int) -> int:
    """Number of scenes that `add` needs for a world of this many pictures."""
    return sum(_COUNTS.values()) if images >= MIN_IMAGES else 0


def add(
    collections: Collections,
    splits: Splits,
    scenes: Sequence[Scene],
    first: int,
    rng: np.random.Generator,
) -> tuple[Collections, Splits]:
    """Both with the further pictures.

    Args:
      collections: of the other pictures.
      splits: of `collections`.
      scenes: `count` of them; nothing changes if there are none.
      first: position of the first of them.
      rng: of gaps between ids.
    """
    if not scenes:
        return collections, splits
    part = _shared_out(scenes, first)
    coco = [p for pictures in collections.coco.values() for p in pictures]
    refer = _coco("train2014", part["train2014"], coco, rng)
    asked = _coco("val2014", part["val2014"], (*coco, *refer), rng)
    genome = _genome(part["visual_genome"], collections.visual_genome, rng)
    several = [p for p in refer if len(p.scene.things) >= MIN_CHOICES]
    twins = _genome(
        [(p.position, p.scene) for p in several[:_POINTED_AT]],
        (*collections.visual_genome, *genome),
        rng,
        [p.image_id for p in several],
    )
    testdev = _plain("visual_genome/gqa/n{}.jpg", part["gqa_testdev"], collections.gqa_testdev, rng)
    flickr = _plain("flickr30k/{}.jpg", part["flickr30k"], collections.flickr30k, rng)
    pair_sets = _pair_sets(part["nlvr2"], len(collections.nlvr2["test1"]))
    return (
        dataclasses.replace(
            collections,
            coco=collections.coco | {"val2014": (*collections.coco["val2014"], *asked)},
            visual_genome=(*collections.visual_genome, *genome),
            gqa_testdev=(*collections.gqa_testdev, *testdev),
            flickr30k=(*collections.flickr30k, *flickr),
            nlvr2=collections.nlvr2 | {"test1": (*collections.nlvr2["test1"], *pair_sets)},
            referred=refer,
            pointed_at=twins,
        ),
        dataclasses.replace(
            splits,
            karpathy=_with(splits.karpathy, test=_lacking(splits.karpathy["test"], asked)),
            flickr30k=_with(splits.flickr30k, test=_lacking(splits.flickr30k["test"], flickr)),
            snli_ve=_with(splits.snli_ve, test=flickr),
            gqa=_with(splits.gqa, testdev=testdev),
            visual7w=_with(splits.visual7w, test=twins),
            refcoco=_with(splits.refcoco, **_by_shape(refer)),
            refcocog=_with(splits.refcocog, test=refer),
            guesswhat=_with(splits.guesswhat, test=refer),
        ),
    )


Placed = list[tuple[int, Scene]]


def _shared_out(scenes: Sequence[Scene], first: int) -> dict[str, Placed]:
    """Scenes with their positions, by collection; Flickr30k, for SNLI-VE, takes those left open."""
    placed = list(enumerate(scenes, first))
    is_open = [leaves_open(scene) for scene in scenes]
    ordered = sorted(range(len(scenes)), key=lambda i: not is_open[i])
    chosen, others = ordered[: _COUNTS["flickr30k"]], sorted(ordered[_COUNTS["flickr30k"] :])
    parts = {"flickr30k": [placed[i] for i in chosen]}
    start = 0
    for name, size in _COUNTS.items():
        if name not in parts:
            parts[name] = [placed[i] for i in others[start : start + size]]
            start += size
    return parts


def _coco(
    part: str, placed: Placed, others: Sequence[Picture], rng: np.random.Generator
) -> Pictures:
    ids, object_ids = further_ids(others, placed, 12, rng)
    return tuple(
        Picture(
            position,
            scene,
            image_id,
            f"coco/{part}/COCO_{part}_{image_id:012d}.jpg",
            object_id,
            image_id,
            only_tested=True,
        )
        for (position, scene), image_id, object_id in zip(placed, ids, object_ids, strict=True)
    )


def _genome(
    placed: Placed,
    others: Sequence[Picture],
    rng: np.random.Generator,
    coco_ids: Sequence[int] | None = None,
) -> Pictures:
    ids, object_ids = further_ids(others, placed, 9, rng)
    return tuple(
        Picture(
            position,
            scene,
            image_id,
            f"visual_genome/VG_100K/{image_id}.jpg",
            object_id,
            -1 if coco_ids is None else coco_ids[i],
            only_tested=True,
        )
        for i, ((position, scene), image_id, object_id) in enumerate(
            zip(placed, ids, object_ids, strict=True)
        )
    )


def _plain(
    file: str, placed: Placed, others: Sequence[Picture], rng: np.random.Generator
) -> Pictures:
    """Pictures with things that nothing refers to."""
    ids, _ = further_ids(others, placed, 9, rng)
    return tuple(
        Picture(position, scene, image_id, file.format(image_id), 0, only_tested=True)
        for (position, scene), image_id in zip(placed, ids, strict=True)
    )


def _pair_sets(placed: Placed, num_others: int) -> list[tuple[Pair, ...]]:
    pairs = [placed[i : i + 2] for i in range(0, len(placed) - 1, 2)]
    groups = [pairs[i : i + _PAIRS_PER_SET] for i in range(0, len(pairs), _PAIRS_PER_SET)]
    return [
        tuple(
            nlvr2_pair(f"test1-{number}-{i}", pair, only_tested=True)
            for i, pair in enumerate(group)
        )
        for number, group in enumerate(groups, num_others)
    ]


def _lacking(pictures: Pictures, further: Pictures) -> Pictures:
    """As many of the further pictures as are needed for ranking."""
    return further[: max(0, _GALLERY - len(pictures))]


def _by_shape(pictures: Pictures) -> dict[str, Sequence[Picture]]:
    """The half with the largest share of round things for testA, the others for testB."""

    def others(picture: Picture) -> float:
        things = picture.scene.things
        return sum(not is_round(thing) for thing in things) / len(things)

    ordered = sorted(pictures, key=others)
    half = len(ordered) // 2
    return {"testA": ordered[:half], "testB": ordered[half:]}


def _with(division: dict[str, Pictures], **further: Sequence[Picture]) -> dict[str, Pictures]:
    """A division with more pictures in some of its splits, in the order of their ids."""
    return {
        split: (*pictures, *sorted(further.get(split, ()), key=lambda picture: picture.image_id))
        for split, pictures in division.items()
    }
