"""Assigns scenes to the pictures of collections, with official ids and file names.

Collections share photos like the real ones: half of Visual Genome's are also COCO's, under another
id and name. NLVR2's, Flickr30k's and those of the web share nothing with the others.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from twelve_in_one.world.language import entailment
from twelve_in_one.world.scene import Scene

# Shares of the world's distinct pictures, and the number needed for every split to have some.
_SHARES = {
    "train2014": 0.26,
    "val2014": 0.11,
    "test2015": 0.04,
    "visual_genome": 0.12,
    "gqa_testdev": 0.03,
    "flickr30k": 0.22,
    "nlvr2": 0.14,
    "conceptual_captions": 0.08,
}
_LEAST = dict.fromkeys(_SHARES, 2) | {"train2014": 10, "val2014": 4, "flickr30k": 8, "nlvr2": 12}
# For each picture of Visual Genome outside COCO, one that is also in COCO.
_TWINS = 1.0
_NLVR2_SHARES = {"train": 0.64, "dev": 0.16, "test1": 0.2}
# Several pairs are needed for a sentence to be true of some and false of others.
_LEAST_PAIRS = 2
_OPEN_TRIES = 12
_LEAST_OPEN = 6  # pictures of Flickr30k, for SNLI-VE
_CAPTION_SHARES = {"train": 0.85, "val": 0.15}


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A picture under its name in one collection.

    Attributes:
      position: of its scene among the world's scenes; identifies the same photo elsewhere.
      scene: its contents.
      image_id: official id, -1 in NLVR2, whose pictures only have names.
      file: path below the folder of all images.
      object_id: id of its first thing; the others follow. Unique within a collection, 0 if
        nothing refers to things.
      coco_id: id of the same photo in COCO, -1 if it is in no part of COCO.
      only_tested: see `tested.py`; datasets say more about it.
    """

    position: int
    scene: Scene
    image_id: int
    file: str
    object_id: int
    coco_id: int = -1
    only_tested: bool = False

    @property
    def name(self) -> str:
        """The file name without folders."""
        return self.file.rsplit("/", 1)[-1]


Pictures = tuple[Picture, ...]
Pair = tuple[Picture, Picture]
# Pairs described by the same sentences.
PairSet = tuple[Pair, ...]


@dataclasses.dataclass(frozen=True)
class Collections:
    """All pictures; those of a tuple are in the order of their ids.

    Attributes:
      coco: "train2014", "val2014" or "test2015" -> pictures.
      visual_genome: half of them are in train2014 or val2014 as well.
      gqa_testdev: the additional pictures of GQA's test, with ids of their own.
      flickr30k: all.
      nlvr2: "train", "dev" or "test1" -> sets of pairs; files "<split>-<set>-<pair>-img<side>.jpg".
      conceptual_captions: "train" or "val" -> pictures; ids are line numbers within the split.
      referred: further pictures of train2014, without questions or captions.
      pointed_at: those of them that are also in Visual Genome, there also without questions.
    """

    coco: Mapping[str, Pictures]
    visual_genome: Pictures
    gqa_testdev: Pictures
    flickr30k: Pictures
    nlvr2: Mapping[str, tuple[PairSet, ...]]
    conceptual_captions: Mapping[str, Pictures]
    referred: Pictures = ()
    pointed_at: Pictures = ()

    def all(self) -> Pictures:
        """Every name of every picture."""
        return (
            *(picture for part in self.coco.values() for picture in part),
            *self.visual_genome,
            *self.gqa_testdev,
            *self.flickr30k,
            *(p for sets in self.nlvr2.values() for pairs in sets for pair in pairs for p in pair),
            *(picture for part in self.conceptual_captions.values() for picture in part),
            *self.referred,
            *self.pointed_at,
        )


def divide(total: int, shares: Mapping[str, float], least: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers close to `total * share` that add up to `total`, each at least `least`.

    Raises:
      ValueError: the minimum numbers alone add up to more than `total`.
    """
    if sum(least.values()) > total:
        raise ValueError(f"{total} cannot be divided into at least {dict(least)}")
    scale = total / sum(shares.values())
    counts = {name: max(least[name], int(scale * share)) for name, share in shares.items()}
    while sum(counts.values()) != total:
        lacking = {name: scale * share - counts[name] for name, share in shares.items()}
        if sum(counts.values()) < total:
            counts[max(lacking, key=lacking.__getitem__)] += 1
        else:
            spare = [name for name in counts if counts[name] > least[name]]
            counts[min(spare, key=lacking.__getitem__)] -= 1
    return counts


@functools.cache
def leaves_open(scene: Scene) -> bool:
    """Returns whether SNLI-VE finds hypotheses of all labels: shade and several other things.

    Curtains play no part, so having one says nothing about the label.
    """
    if len(scene.things) < 5 or not any(thing.shaded for thing in scene.things):
        return False
    # The existence of a hypothesis does not depend on the label.
    rng = np.random.default_rng(0)
    return any(entailment.hypothesis(scene, rng, "neutral") for _ in range(_OPEN_TRIES))


def make_collections(
    scenes: tuple[Scene, ...], rng: np.random.Generator, *, more_captions: int = 0
) -> Collections:
    """Distributes the scenes, at least 50, over the collections; ids have random gaps.

    The last `more_captions` of them go to Conceptual Captions, whose share comes before them.
    """
    counts = divide(len(scenes) - more_captions, _SHARES, _LEAST)
    # NLVR2 needs pairs.
    odd = counts["nlvr2"] % 2
    counts["nlvr2"] -= odd
    counts["train2014"] += odd
    counts["conceptual_captions"] += more_captions  # whose positions are the last
    ends = np.cumsum(list(counts.values())).tolist()
    positions = {n: range(end - counts[n], end) for n, end in zip(counts, ends, strict=True)}
    scenes = _arranged(scenes, positions["flickr30k"])
    coco = _coco({n: positions[n] for n in ("train2014", "val2014", "test2015")}, scenes, rng)
    captions = _parts(positions["conceptual_captions"], _CAPTION_SHARES, 1)
    return Collections(
        coco,
        _visual_genome(positions["visual_genome"], coco, scenes, rng),
        _gqa_testdev(positions["gqa_testdev"], scenes, rng),
        _flickr30k(positions["flickr30k"], scenes, rng),
        _nlvr2(positions["nlvr2"], scenes),
        {split: _conceptual_captions(split, part, scenes) for split, part in captions.items()},
    )


def _arranged(scenes: tuple[Scene, ...], flickr30k: range) -> tuple[Scene, ...]:
    """Swaps a few scenes, if needed, so that Flickr30k has enough for SNLI-VE in small worlds."""
    arranged = list(scenes)
    to_give = [i for i in flickr30k if not leaves_open(scenes[i])]
    missing = _LEAST_OPEN - (len(flickr30k) - len(to_give))
    to_take = (i for i, s in enumerate(scenes) if i not in flickr30k and leaves_open(s))
    for give, take in zip(to_give[: max(0, missing)], to_take, strict=False):
        arranged[give], arranged[take] = arranged[take], arranged[give]
    return tuple(arranged)


def _ids(count: int, first: int, gap: int, rng: np.random.Generator) -> list[int]:
    """Increasing ids from about `first`, 1 to `gap` apart."""
    return (first + np.cumsum(rng.integers(1, gap + 1, count))).tolist()


def _object_ids(scenes: list[Scene], first: int) -> list[int]:
    """Id of the first thing of each scene, with things numbered consecutively from `first`."""
    counts = [len(scene.things) for scene in scenes]
    return (first + np.cumsum([0, *counts[:-1]])).tolist()


def further_ids(
    others: Sequence[Picture],
    placed: Sequence[tuple[int, Scene]],
    gap: int,
    rng: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Ids of more pictures, and of their first things, beyond those of a collection."""
    last = max(others, key=lambda picture: picture.image_id)
    scenes = [scene for _, scene in placed]
    return (
        _ids(len(placed), last.image_id, gap, rng),
        _object_ids(scenes, last.object_id + len(last.scene.things)),
    )


def _coco(
    positions: Mapping[str, range], scenes: tuple[Scene, ...], rng: np.random.Generator
) -> dict[str, Pictures]:
    """The three parts of COCO, whose ids are mixed."""
    parts = [part for part, members in positions.items() for _ in members]
    order = rng.permutation(len(parts))
    members = [position for part in positions.values() for position in part]
    shown = [scenes[members[i]] for i in order]
    ids, object_ids = _ids(len(order), 0, 12, rng), _object_ids(shown, 1001)
    pictures: dict[str, list[Picture]] = {part: [] for part in positions}
    for i, scene, image_id, object_id in zip(order, shown, ids, object_ids, strict=True):
        part = parts[i]
        file = f"coco/{part}/COCO_{part}_{image_id:012d}.jpg"
        pictures[part].append(Picture(members[i], scene, image_id, file, object_id, image_id))
    return {part: tuple(found) for part, found in pictures.items()}


def _visual_genome(
    own: range,
    coco: Mapping[str, Pictures],
    scenes: tuple[Scene, ...],
    rng: np.random.Generator,
) -> Pictures:
    """Pictures of its own, and as many of COCO's training and validation pictures."""
    photos = [*coco["train2014"], *coco["val2014"]]
    chosen = rng.choice(len(photos), min(len(photos), round(_TWINS * len(own))), replace=False)
    members = [(position, -1) for position in own]
    members += [(photos[i].position, photos[i].image_id) for i in chosen]
    members = [members[i] for i in rng.permutation(len(members))]
    shown = [scenes[position] for position, _ in members]
    ids, object_ids = _ids(len(members), 2_315_000, 9, rng), _object_ids(shown, 3_000_001)
    return tuple(
        Picture(
            position, scene, image_id, f"visual_genome/VG_100K/{image_id}.jpg", object_id, coco_id
        )
        for (position, coco_id), scene, image_id, object_id in zip(
            members, shown, ids, object_ids, strict=True
        )
    )


def _gqa_testdev(positions: range, scenes: tuple[Scene, ...], rng: np.random.Generator) -> Pictures:
    """In the collection of Visual Genome, because GQA distributes both together."""
    ids = _ids(len(positions), 161_000, 9, rng)
    return tuple(
        Picture(position, scenes[position], image_id, f"visual_genome/gqa/n{image_id}.jpg", 0)
        for position, image_id in zip(positions, ids, strict=True)
    )


def _flickr30k(positions: range, scenes: tuple[Scene, ...], rng: np.random.Generator) -> Pictures:
    ids = _ids(len(positions), 1_000_092, 90_000, rng)
    return tuple(
        Picture(position, scenes[position], image_id, f"flickr30k/{image_id}.jpg", 0)
        for position, image_id in zip(positions, ids, strict=True)
    )


def _nlvr2(positions: range, scenes: tuple[Scene, ...]) -> dict[str, tuple[PairSet, ...]]:
    """Consecutive scenes as pairs, four to seven pairs per set."""
    counts = divide(len(positions) // 2, _NLVR2_SHARES, dict.fromkeys(_NLVR2_SHARES, _LEAST_PAIRS))
    first = positions.start
    sets = {}
    for split, count in counts.items():
        pairs = np.arange(first, first + 2 * count).reshape(count, 2).tolist()
        first += 2 * count
        groups = np.array_split(np.arange(count), max(1, count // 4))
        sets[split] = tuple(
            tuple(
                nlvr2_pair(f"{split}-{number}-{i}", [(p, scenes[p]) for p in pairs[pair]])
                for i, pair in enumerate(group)
            )
            for number, group in enumerate(groups)
        )
    return sets


def nlvr2_pair(
    name: str, placed: Sequence[tuple[int, Scene]], *, only_tested: bool = False
) -> Pair:
    """Left and right picture, each a position and a scene; NLVR2 has no picture numbers."""
    folder = name.split("-")[0]
    left, right = (
        Picture(
            position, scene, -1, f"nlvr2/{folder}/{name}-img{side}.jpg", 0, only_tested=only_tested
        )
        for side, (position, scene) in enumerate(placed)
    )
    return left, right


def _conceptual_captions(split: str, positions: range, scenes: tuple[Scene, ...]) -> Pictures:
    """One picture per line; "val-" separates the lines of the second file from the first's."""
    prefix = "" if split == "train" else f"{split}-"
    return tuple(
        Picture(position, scenes[position], line, f"conceptual_captions/{prefix}{line}.jpg", 0)
        for line, position in enumerate(positions)
    )


def _parts(positions: range, shares: Mapping[str, float], least: int) -> dict[str, range]:
    """Consecutive parts of `positions`."""
    counts = divide(len(positions), shares, dict.fromkeys(shares, least))
    ends = np.cumsum([positions.start, *counts.values()]).tolist()
    return {
        name: range(low, high) for name, low, high in zip(counts, ends[:-1], ends[1:], strict=True)
    }
