"""The pictures that each dataset trains, validates and tests on.

As in the real datasets, the divisions of one collection are independent of each other: VQA, COCO
retrieval and perhaps RefCOCOg train on a picture that RefCOCO tests on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twelve_in_one.world.collections import (
    Collections,
    Picture,
    Pictures,
    divide,
    leaves_open,
)
from twelve_in_one.world.scene import Thing

Division = Mapping[str, Pictures]

# Targets of RefCOCO's testA, where the real one has people; those of testB have other shapes.
ROUND_SHAPES = frozenset({"circle", "ring", "heart", "crescent"})
MIN_CHOICES = 4  # of a Visual7W question

# Karpathy's division of val2014; he trains on "restval" together with train2014.
_KARPATHY = {"restval": 0.47, "val": 0.22, "test": 0.31}
_FLICKR30K = {"train": 0.73, "val": 0.1, "test": 0.17}
_SNLI_VE = {"train": 0.78, "dev": 0.1, "test": 0.12}
_GQA = {"unused": 0.1, "train": 0.78, "val": 0.12}
_VISUAL7W = {"unused": 0.58, "train": 0.23, "val": 0.09, "test": 0.1}
_REFCOCO = {"unused": 0.53, "train": 0.31, "val": 0.06, "testA": 0.05, "testB": 0.05}
_REFCOCOG = {"unused": 0.48, "train": 0.35, "val": 0.08, "test": 0.09}
_GUESSWHAT = {"unused": 0.33, "train": 0.49, "valid": 0.09, "test": 0.09}


@dataclasses.dataclass(frozen=True)
class Splits:
    """By dataset, official split -> pictures in the order of their ids.

    Attributes:
      karpathy: COCO captions: "train" (train2014), "restval", "val" and "test" (all of val2014).
      flickr30k: "train", "val", "test"; all of Flickr30k.
      snli_ve: "train", "dev", "test"; those of Flickr30k that leave much open (see
        `leaves_open`), divided differently.
      gqa: "train", "val", "testdev"; most of Visual Genome, testdev apart from it.
      visual7w: "train", "val", "test"; some of Visual Genome, with at least four things.
      refcoco: "train", "val", "testA", "testB"; nearly half of train2014.
      refcocog: "train", "val", "test"; half of train2014.
      guesswhat: "train", "valid", "test"; most of train2014 and val2014.
    """

    karpathy: Division
    flickr30k: Division
    snli_ve: Division
    gqa: Division
    visual7w: Division
    refcoco: Division
    refcocog: Division
    guesswhat: Division


def is_round(thing: Thing) -> bool:
    """Returns whether RefCOCO's testA, not testB, refers to such a thing."""
    return thing.shape in ROUND_SHAPES


def make_splits(collections: Collections, rng: np.random.Generator) -> Splits:
    """Divides the collections.

    A test picture is lost to all training, and here test sets are larger relative to
    training sets than in reality. Half of the test pictures of RefCOCOg, GuessWhat, Visual7W and
    SNLI-VE are therefore chosen among another dataset's test pictures.
    """
    coco, flickr30k = collections.coco, collections.flickr30k
    karpathy = {"train": coco["train2014"]} | _divide(coco["val2014"], _KARPATHY, rng)
    refcoco = _refcoco(coco["train2014"], rng)
    tested = {p.image_id for p in (*refcoco["testA"], *refcoco["testB"])}
    refcocog = _divide_beside(coco["train2014"], _REFCOCOG, tested, rng)
    tested |= {p.image_id for p in (*refcocog["test"], *karpathy["test"])}
    guesswhat = _divide_beside((*coco["train2014"], *coco["val2014"]), _GUESSWHAT, tested, rng)
    flickr = _divide(flickr30k, _FLICKR30K, rng)
    flickr_tested = {p.image_id for p in flickr["test"]}
    tested |= {p.image_id for p in guesswhat["test"]}
    genome_tested = {p.image_id for p in collections.visual_genome if p.coco_id in tested}
    gqa = _divide(collections.visual_genome, _GQA, rng)
    return Splits(
        karpathy=karpathy,
        flickr30k=flickr,
        snli_ve=_snli_ve(flickr30k, flickr_tested, rng),
        gqa=gqa | {"testdev": collections.gqa_testdev},
        visual7w=_visual7w(collections.visual_genome, genome_tested, rng),
        refcoco=refcoco,
        refcocog=refcocog,
        guesswhat=guesswhat,
    )


def _take(
    pictures: Sequence[Picture],
    count: int,
    rng: np.random.Generator,
    prefer: Callable[[Picture], bool] = lambda picture: True,
) -> tuple[Pictures, Pictures]:
    """`count` random pictures, preferred ones first if there are any, and the rest; both sorted."""
    order = sorted(rng.permutation(len(pictures)), key=lambda i: not prefer(pictures[i]))
    taken, rest = ([pictures[i] for i in part] for part in (order[:count], order[count:]))
    return _sorted(taken), _sorted(rest)


def _sorted(pictures: Sequence[Picture]) -> Pictures:
    return tuple(sorted(pictures, key=lambda picture: picture.image_id))


def _counts(pictures: Sequence[Picture], shares: Mapping[str, float]) -> dict[str, int]:
    """Size of each part: at least one picture, except for the unused rest."""
    least = {name: int(name != "unused") for name in shares}
    return divide(len(pictures), shares, least)


def _divide(
    pictures: Sequence[Picture], shares: Mapping[str, float], rng: np.random.Generator
) -> dict[str, Pictures]:
    parts = {}
    for name, count in _counts(pictures, shares).items():
        taken, pictures = _take(pictures, count, rng)
        if name != "unused":
            parts[name] = taken
    return parts


def _divide_beside(
    pictures: Sequence[Picture],
    shares: Mapping[str, float],
    tested: set[int],
    rng: np.random.Generator,
) -> dict[str, Pictures]:
    """Like `_divide`, with half of the test pictures among the ids `tested`, the others not."""
    count = _counts(pictures, shares)["test"]
    shared, others = _take(pictures, count // 2, rng, lambda p: p.image_id in tested)
    own, others = _take(others, count - len(shared), rng, lambda p: p.image_id not in tested)
    rest = {name: share for name, share in shares.items() if name != "test"}
    return _divide(others, rest, rng) | {"test": _sorted((*shared, *own))}


def _refcoco(pictures: Sequence[Picture], rng: np.random.Generator) -> dict[str, Pictures]:
    """Pictures of testA and testB have at least two things to refer to."""
    counts = _counts(pictures, _REFCOCO)

    def has_two(round_ones: bool) -> Callable[[Picture], bool]:
        return lambda p: sum(is_round(thing) == round_ones for thing in p.scene.things) >= 2

    test_a, pictures = _take(pictures, counts["testA"], rng, has_two(True))
    test_b, pictures = _take(pictures, counts["testB"], rng, has_two(False))
    rest = {name: share for name, share in _REFCOCO.items() if not name.startswith("test")}
    return _divide(pictures, rest, rng) | {"testA": test_a, "testB": test_b}


def _snli_ve(
    pictures: Sequence[Picture], tested: set[int], rng: np.random.Generator
) -> dict[str, Pictures]:
    count = max(len(_SNLI_VE), sum(leaves_open(picture.scene) for picture in pictures))
    chosen, _ = _take(pictures, count, rng, lambda p: leaves_open(p.scene))
    return _divide_beside(chosen, _SNLI_VE, tested, rng)


def _visual7w(
    pictures: Sequence[Picture], tested: set[int], rng: np.random.Generator
) -> dict[str, Pictures]:
    counts = _counts(pictures, _VISUAL7W)
    _, chosen = _take(pictures, counts["unused"], rng, lambda p: len(p.scene.things) < MIN_CHOICES)
    shares = {name: share for name, share in _VISUAL7W.items() if name != "unused"}
    return _divide_beside(chosen, shares, tested, rng)
