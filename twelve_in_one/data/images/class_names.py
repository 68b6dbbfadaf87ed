"""Texts of image classes: what a decoder says, or a text is compared with, in place of a label.

Labels are names of folders and of files; texts are lower-case words, each of one class only:
"golden_retriever" is "golden retriever", SUN397's "/b/bazaar/indoor" is "indoor bazaar", but
"/a/apse/indoor" is "apse", because there is no other. The labels are those of the TFDS catalogue.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from twelve_in_one.data.formats.files import read_text
from twelve_in_one.data.stored.records import DataError

_WORDNET = re.compile(r"n\d{8}")
_NAME_OF_ID = re.compile(r"(n\d{8})\s+(\S.*)")
_NAME_OF_LABEL = re.compile(r"([^\t]+)\t\s*(\S.*)")


class _Rules(NamedTuple):
    """How the labels of a set are read.

    Attributes:
      short: label -> text.
      long: label -> text, for labels that would have the same short text.
      fixes: label -> text, where neither is what people say.
    """

    short: Callable[[str], str]
    long: Callable[[str], str] | None = None
    fixes: Mapping[str, str] = {}


def _words(label: str) -> str:
    return " ".join(re.split(r"[\s_]+", label.lower())).strip()


def _sun(label: str) -> str:
    """Makes "apse" of "/a/apse/indoor"."""
    return _words(_sun_parts(label)[0])


def _sun_long(label: str) -> str:
    """Makes "indoor apse" of "/a/apse/indoor"."""
    noun, *kinds = _sun_parts(label)
    return _words(" ".join((*kinds, noun)))


def _sun_parts(label: str) -> list[str]:
    """The parts of a label without the folder of its first letter, if it names that."""
    parts = label.strip("/").split("/")
    return parts[1:] if len(parts) > 1 and len(parts[0]) == 1 else parts


def _dog(label: str) -> str:
    """Makes "japanese spaniel" of "n02085782-japanese_spaniel"."""
    return _words(label.partition("-")[2] or label)


_PLAIN = _Rules(_words)
_SUN_FIXES = {
    "/b/barndoor": "barn door",
    "/b/batters_box": "batter's box",
    "/b/butchers_shop": "butcher's shop",
    "/c/car_interior/backseat": "back seat of a car",
    "/c/car_interior/frontseat": "front seat of a car",
    "/c/carrousel": "carousel",
    "/c/childs_room": "child's room",
    "/d/dentists_office": "dentist's office",
    "/d/desert/sand": "sandy desert",
    "/d/desert/vegetation": "desert with vegetation",
    "/d/dinette/home": "dinette at home",
    "/d/dinette/vehicle": "dinette in a vehicle",
    "/e/elevator/door": "elevator door",
    "/e/elevator/interior": "elevator interior",
    "/f/fastfood_restaurant": "fast food restaurant",
    "/k/kindergarden_classroom": "kindergarten classroom",
    "/m/mountain_snowy": "snowy mountain",
    "/o/oilrig": "oil rig",
    "/p/poolroom/establishment": "public poolroom",
    "/p/poolroom/home": "poolroom at home",
    "/t/theater/indoor_procenium": "indoor theater with a proscenium",
    "/t/theater/indoor_seats": "seats of an indoor theater",
    "/t/thriftshop": "thrift shop",
    "/t/toyshop": "toy shop",
    "/u/underwater/coral_reef": "underwater coral reef",
    "/v/veterinarians_office": "veterinarian's office",
    "/v/videostore": "video store",
    "/w/wine_cellar/barrel_storage": "wine cellar with barrels",
    "/w/wine_cellar/bottle_storage": "wine cellar with bottles",
}
# Set -> its rules; all others are `_PLAIN`.
_RULES: dict[str, _Rules] = {
    "sun397": _Rules(_sun, _sun_long, _SUN_FIXES),
    "food101": _Rules(
        _words,
        fixes={
            "cup_cakes": "cupcakes",
        },
    ),
    "oxford_iiit_pet": _Rules(
        _words,
        fixes={
            "german_shorthaired": "german shorthaired pointer",
            "wheaten_terrier": "soft-coated wheaten terrier",
        },
    ),
    "stanford_dogs": _Rules(_dog),
}


def class_texts(
    dataset: str, labels: Sequence[str], names_file: Path | None = None
) -> tuple[str, ...]:
    """The texts of the classes of a set, in their order.

    Args:
      dataset: its name in the TFDS catalogue ("sun397", also with a config); any other, as of a
        user's folder, has the plain rule: lower-case words.
      labels: of all classes, as TFDS or a folder names them, in the order of their numbers.
      names_file: names to use instead, one line for each class or for more classes than these:
        an id of WordNet or any label, a tab (for ids, a blank will do), and the name; or the names
        alone, in the order of the ids, as common lists of ImageNet's 1,000 names have them, or
        else of the labels. Empty lines and lines that begin with "#" are left out. Needed for
        labels that are ids of WordNet.

    Raises:
      DataError: the labels are ids of WordNet and there is no file; two classes would have the same
        text, or one none; the file cannot be read or lacks a class.
    """
    if names_file is not None:
        texts = _named(names_file, labels)
        where = str(names_file)
    else:
        if ids := [label for label in labels if _WORDNET.fullmatch(label)]:
            raise DataError(
                f"{dataset}: {len(ids)} of {len(labels)} classes are called by ids of WordNet, "
                f"the first {ids[0]!r}: a file of their names is needed, a line for each class, "
                f"like '{ids[0]} tench'"
            )
        rules = _RULES.get(dataset.partition("/")[0], _PLAIN)
        texts = _by_rules(rules, labels)
        where = dataset
    _check_distinct(where, labels, texts)
    return texts


def _by_rules(rules: _Rules, labels: Sequence[str]) -> tuple[str, ...]:
    short = [rules.fixes.get(label) or rules.short(label) for label in labels]
    if rules.long is None:
        return tuple(short)
    return tuple(
        rules.long(label) if short.count(text) > 1 and label not in rules.fixes else text
        for label, text in zip(labels, short, strict=True)
    )


def _named(path: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Names of a file, see `class_texts`."""
    labelled: dict[str, str] = {}
    alone: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _NAME_OF_ID.fullmatch(line.strip()) or _NAME_OF_LABEL.fullmatch(line.strip())
        if found is None:
            alone.append(_words(line))
        elif labelled.setdefault(found[1], _words(found[2])) != _words(found[2]):
            raise DataError(f"{path}: line {number}: class {found[1]!r} has another name before")
        if alone and labelled:
            raise DataError(
                f"{path}: line {number}: {'a' if found else 'no'} label before the name, unlike in "
                "the lines before"
            )
    if labelled:
        if missing := [label for label in labels if label not in labelled]:
            raise DataError(f"{path}: names {len(labelled)} classes, but not {missing[0]!r}")
        return tuple(labelled[label] for label in labels)
    if len(alone) != len(labels):
        raise DataError(
            f"{path}: {len(alone)} names for {len(labels)} classes; give each line its class: "
            f"'{labels[0]}', a tab, and the name"
        )
    ordered = sorted(labels) if all(map(_WORDNET.fullmatch, labels)) else labels
    name_of = dict(zip(ordered, alone, strict=True))
    return tuple(name_of[label] for label in labels)


def _check_distinct(where: str, labels: Sequence[str], texts: Sequence[str]) -> None:
    """Raises DataError if two classes have one text, or a class none."""
    first: dict[str, str] = {}
    for label, text in zip(labels, texts, strict=True):
        if not text:
            raise DataError(f"{where}: class {label!r} has no name")
        if text in first:
            raise DataError(
                f"{where}: classes {first[text]!r} and {label!r} would both be called {text!r}; "
                "name them in a file of names"
            )
        first[text] = label
