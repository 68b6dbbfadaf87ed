"""What a checkpoint says of its inputs: round trips, strict reading, every difference named."""

import json

import pytest

from twelve_in_one.data.stored import preprocessing


def make_preprocessing(**changes):
    fields = dict(
        vocab_sha256="ab" * 32,
        vocab_size=300,
        lower_case=True,
        max_tokens={"vqa": 23, "nlvr2": 40},
        max_regions={"vqa": 101, "nlvr2": 101},
        region_feature_dim=2048,
        region_source="resnext152",
        image_descriptor="",
    )
    return preprocessing.Preprocessing(**(fields | changes))


def test_preprocessing_survives_json():
    made = make_preprocessing()
    assert preprocessing.Preprocessing.from_json(made.to_json()) == made
    assert made.to_json() == make_preprocessing(max_tokens={"nlvr2": 40, "vqa": 23}).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_siez": 3}, r"unknown keys \['vocab_siez'\], missing keys \[\]"),
        ({"lower_case": None}, "'lower_case' must be true or false, is None"),
        ({"lower_case": 1}, "'lower_case' must be true or false, is 1"),
        ({"vocab_size": "300"}, "'vocab_size' must be a whole number, is '300'"),
        ({"max_tokens": [23]}, r"'max_tokens' must be an object, is \[23\]"),
        ({"max_regions": {"vqa": 1.5}}, "'vqa' must be a whole number, is 1.5"),
    ],
)
def test_strict_json(change, message):
    raw = json.loads(make_preprocessing().to_json()) | change
    with pytest.raises(ValueError, match=f"^preprocessing: .*{message}"):
        preprocessing.Preprocessing.from_json(json.dumps(raw))


def test_incomplete_json():
    raw = json.loads(make_preprocessing().to_json())
    del raw["lower_case"], raw["image_descriptor"]
    with pytest.raises(ValueError, match=r"missing keys \['image_descriptor', 'lower_case'\]"):
        preprocessing.Preprocessing.from_json(json.dumps(raw))
    with pytest.raises(ValueError, match="preprocessing is a JSON object, got list"):
        preprocessing.Preprocessing.from_json("[]")
    with pytest.raises(ValueError, match="preprocessing: not JSON"):
        preprocessing.Preprocessing.from_json("{")


def test_check_same():
    trained = make_preprocessing()
    preprocessing.check_same(trained, make_preprocessing())
    # Fewer tasks are evaluated, or a new one is learnt.
    preprocessing.check_same(
        trained, make_preprocessing(max_tokens={"vqa": 23}, max_regions={"gqa": 7})
    )
    offered = make_preprocessing(
        lower_case=False, max_tokens={"vqa": 26, "nlvr2": 40}, region_source="world"
    )
    with pytest.raises(ValueError) as error:
        preprocessing.check_same(trained, offered)
    assert str(error.value) == (
        "inputs do not fit the weights: lower_case: trained with True, offered False; "
        "max_tokens of vqa: trained with 23, offered 26; "
        "region_source: trained with 'resnext152', offered 'world'"
    )
