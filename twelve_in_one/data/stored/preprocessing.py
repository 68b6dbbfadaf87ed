"""Preprocessing of the inputs that a model was trained on; stored with the checkpoint."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from twelve_in_one.data.formats.files import field, parse_json

# How `boxes` of a batch are made, see `regions.rows`; recorded so weights outlive a change of it.
BOXES = "x1/W, y1/H, x2/W, y2/H, (x2-x1)(y2-y1)/(W H); global region first"
_LATER = frozenset(
    ("boxes", "answers_sha256", "region_stores")
)  # which earlier versions did not write


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How inputs were made; stored with a checkpoint, whose weights are meaningless without it.

    Attributes:
      vocab_sha256: `Tokenizer.sha256`.
      vocab_size: `Tokenizer.vocab_size`.
      lower_case: `Tokenizer.lower_case`.
      max_tokens: by task name, with [CLS] and [SEP], without the task slot.
      max_regions: by task name, with the global region.
      region_feature_dim: width of a region's feature.
      region_source: the origin of the regions and their features.
      image_descriptor: names of what finds and describes regions, see `RegionExtractor.name`, with
        commas between several; "" if none is used, or nothing says which.
      boxes: how locations are written, `BOXES`.
      answers_sha256: head -> hash of its answers in their order, see `answers_sha256`; folders of
        earlier versions lack it, and the next field.
      region_stores: task -> name of the store or extractor of its regions.
    """

    vocab_sha256: str
    vocab_size: int
    lower_case: bool
    max_tokens: dict[str, int]
    max_regions: dict[str, int]
    region_feature_dim: int
    region_source: str
    image_descriptor: str = ""
    boxes: str = BOXES
    answers_sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    region_stores: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """JSON text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The inverse of `to_json`.

        Raises:
          ValueError: not a JSON object; an unknown or missing key, or a value of the wrong type.
        """
        raw = parse_json(text, "preprocessing")
        if not isinstance(raw, dict):
            raise ValueError(f"preprocessing is a JSON object, got {type(raw).__name__}")
        known = {item.name for item in dataclasses.fields(cls)}
        unknown, missing = sorted(set(raw) - known), sorted(known - set(raw) - _LATER)
        if unknown or missing:
            raise ValueError(f"preprocessing: unknown keys {unknown}, missing keys {missing}")
        try:
            return cls(
                vocab_sha256=field(raw, "vocab_sha256", str),
                vocab_size=field(raw, "vocab_size", int),
                lower_case=field(raw, "lower_case", bool),
                max_tokens=_sizes(raw, "max_tokens"),
                max_regions=_sizes(raw, "max_regions"),
                region_feature_dim=field(raw, "region_feature_dim", int),
                region_source=field(raw, "region_source", str),
                image_descriptor=field(raw, "image_descriptor", str),
                boxes=field({"boxes": BOXES} | raw, "boxes", str),
                answers_sha256=_texts(raw, "answers_sha256"),
                region_stores=_texts(raw, "region_stores"),
            )
        except ValueError as error:
            raise ValueError(f"preprocessing: {error}") from error


def check_same(trained: Preprocessing, offered: Preprocessing) -> None:
    """Refuses inputs that were made differently from those that the weights know.

    Tasks that only one of the two has do not count: a model may be evaluated on some of its
    tasks, or trained further on a new one.

    Raises:
      ValueError: lists everything that differs.
    """
    differences = []
    for item in dataclasses.fields(Preprocessing):
        if item.name == "region_stores":  # their names say little, see `other_stores`
            continue
        before, now = getattr(trained, item.name), getattr(offered, item.name)
        if isinstance(before, dict):
            pairs = [(f"{item.name} of {k}", before[k], now[k]) for k in before if k in now]
        else:
            pairs = [(item.name, before, now)]
        differences += [
            f"{name}: trained with {a!r}, offered {b!r}" for name, a, b in pairs if a != b
        ]
    if differences:
        raise ValueError("inputs do not fit the weights: " + "; ".join(differences))


def is_of(extractor: str, trained: str) -> bool:
    """Returns whether an extractor is the one that a model was trained with.

    A name without version and weights ("x152") stands for all of its kind: what released weights
    were trained with is known that far.
    """
    return extractor == trained or extractor.startswith(f"{trained}-")


def other_stores(trained: Preprocessing, offered: Preprocessing) -> list[str]:
    """Tasks whose regions come from another source than in training, in words.

    That is not an error: one detector may have filled both stores, under different names.
    """
    before, now = trained.region_stores, offered.region_stores
    return [
        f"regions of {task} come from {now[task]}, the weights learnt from {before[task]}: make "
        "sure that the same detector made both"
        for task in sorted(before.keys() & now.keys())
        if before[task] != now[task]
    ]


def answers_sha256(answers: Sequence[str]) -> str:
    """Hash of answers in their order."""
    return hashlib.sha256(json.dumps(list(answers)).encode()).hexdigest()


def _texts(raw: Mapping[str, Any], key: str) -> dict[str, str]:
    texts = field({key: {}} | raw, key, dict)
    return {name: field(texts, name, str) for name in texts}


def _sizes(raw: Mapping[str, Any], key: str) -> dict[str, int]:
    sizes = field(raw, key, dict)
    return {task: field(sizes, task, int) for task in sizes}
