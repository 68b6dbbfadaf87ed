import ast
import importlib.util
from pathlib import Path

import pytest

from twelve_in_one.data.images.class_names import class_texts
from twelve_in_one.data.stored.records import DataError

_TFDS = Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
_FILES = {"sun397": "sun397_labels.txt", "food101": "food-101_classes.txt"}


def _labels(name):
    """As the TFDS package has them, in a file or in a literal of the builder's code."""
    if name in _FILES:
        return (_TFDS / "image_classification" / _FILES[name]).read_text().split()
    code = (_TFDS / f"datasets/{name}/{name}_dataset_builder.py").read_text()
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") in ("_LABELS", "_LABEL_CLASSES")
    )
    return names


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        (
            "sun397",
            397,
            {
                "/a/abbey": "abbey",
                "/a/apse/indoor": "apse",
                "/b/bazaar/indoor": "indoor bazaar",
                "/c/canal/urban": "urban canal",
                "/t/temple/east_asia": "east asia temple",
                "/m/mountain": "mountain",
                "/m/mountain_snowy": "snowy mountain",
                "/m/moat/water": "moat",
                "/s/stadium/baseball": "baseball stadium",
                "/s/stadium/football": "football stadium",
            },
        ),
        ("food101", 101, {"apple_pie": "apple pie", "cup_cakes": "cupcakes"}),
        ("resisc45", 45, {"sea_ice": "sea ice", "airplane": "airplane"}),
        (
            "oxford_iiit_pet",
            37,
            {"Egyptian_Mau": "egyptian mau", "german_shorthaired": "german shorthaired pointer"},
        ),
    ],
)
def test_sets_of_the_catalogue(name, count, some):
    labels = _labels(name)
    texts = class_texts(name, labels)
    assert len(labels) == len(texts) == len(set(texts)) == count
    found = dict(zip(labels, texts, strict=True))
    assert {label: found[label] for label in some} == some
    for text in texts:
        assert text == text.lower() == text.strip()
        assert text.replace(" ", "").replace("'", "").replace("-", "").isalpha(), text
    assert class_texts(f"{name}/a_config", labels) == texts


def test_every_fix_has_its_label():
    from twelve_in_one.data.images.class_names import _RULES

    for name, rules in _RULES.items():
        if rules.fixes:
            assert rules.fixes.keys() <= set(_labels(name)), name


def test_other_sets():
    assert class_texts("mine", ["golden_retriever", "Poodle ", "red  panda"]) == (
        "golden retriever",
        "poodle",
        "red panda",
    )
    assert class_texts(
        "stanford_dogs", ["n02085782-japanese_spaniel", "n02085936-maltese_dog"]
    ) == (
        "japanese spaniel",
        "maltese dog",
    )


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("mine", ["hot_dog", "Hot dog"], "classes 'hot_dog' and 'Hot dog' would both be called"),
        ("mine", ["a", "_"], "class '_' has no name"),
        ("imagenet2012", ["n01440764"], "1 of 1 classes are called by ids of WordNet, the first"),
        ("sun397", ["/a/x/in", "/b/x/in"], "'/a/x/in' and '/b/x/in' would both be called 'in x'"),
    ],
)
def test_unclear_labels(name, labels, message):
    with pytest.raises(DataError, match=message):
        class_texts(name, labels)


_IDS = ["n02119789", "n01440764", "n02012849", "n03126707"]


@pytest.mark.parametrize(
    "text",
    [
        "tench\nCrane bird\nkit fox\nconstruction crane\n",  # in the order of the ids
        "n02119789 kit fox\nn01440764\ttench\nn03126707 construction  crane\n"
        "n02012849 crane bird\nn09999999 more than asked for\n",
        "# ImageNet\n\nn01440764 tench\nn02119789 kit fox\nn02012849 crane bird\n"
        "n03126707 construction crane",
    ],
)
def test_file_of_names(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    found = class_texts("imagenet2012", _IDS, tmp_path / "names.txt")
    assert found == ("kit fox", "tench", "crane bird", "construction crane")


def test_file_of_names_for_other_labels(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("b c\tsecond\na\tfirst thing\n")
    assert class_texts("mine", ["a", "b c"], path) == ("first thing", "second")
    path.write_text("first\nsecond\n")
    assert class_texts("mine", ["z", "a"], path) == ("first", "second")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\nc\n", "3 names for 4 classes; give each line its class: 'n02119789', a tab"),
        ("n02119789 fox\n", "names 1 classes, but not 'n01440764'"),
        ("n02119789 fox\ntench\n", "line 2: no label before the name, unlike"),
        ("tench\nn02119789 fox\n", "line 2: a label before the name, unlike"),
        ("n02119789 fox\nn02119789 dog\n", "line 2: class 'n02119789' has another name before"),
        ("tench\ncrane\nfox\nCrane\n", "'n02012849' and 'n03126707' would both be called 'crane'"),
    ],
)
def test_unusable_files_of_names(tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        class_texts("imagenet2012", _IDS, tmp_path / "names.txt")
