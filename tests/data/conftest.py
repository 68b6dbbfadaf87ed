"""What the small world's raw files hold."""

import dataclasses
import json
import pickle

import pytest

from twelve_in_one.data.builders.sources import SOURCES

_DATASETS = ("vqa", "visual_genome", "gqa", "coco", "flickr30k", "refcoco", "visual7w")
_DATASETS += ("guesswhat", "nlvr2", "snli_ve", "conceptual_captions")
_TESTED = ("coco", "flickr30k", "refcoco", "refcoco+", "refcocog", "visual7w", "guesswhat")
_TESTED += ("nlvr2", "snli_ve")


@dataclasses.dataclass(frozen=True)
class Census:
    """The world's raw files read with json and pickle alone.

    Attributes:
      examples: dataset -> split -> the images of each example (two of a pair), by their ids.
      coco_ids: Visual Genome id -> COCO id.
    """

    examples: dict[str, dict[str, list[tuple[str, ...]]]]
    coco_ids: dict[str, str]

    def photo(self, dataset: str, image_id: str) -> tuple[str, str]:
        """What the picture is, whatever the dataset calls it."""
        domain = SOURCES[dataset].domain
        if domain == "visual_genome" and image_id in self.coco_ids:
            return "coco", self.coco_ids[image_id]
        return domain, image_id

    @property
    def tested(self) -> set[tuple[str, str]]:
        """Photos that any dataset is tested on; test images of VQA and GQA are nobody else's."""
        return {
            self.photo(name, image_id)
            for name in _TESTED
            for split, examples in self.examples[name].items()
            if split.startswith("test")
            for images in examples
            for image_id in images
        }


@pytest.fixture(scope="session")
def census(small_world) -> Census:
    """What the small world's raw files hold."""
    raw = small_world.raw
    assert {path.name for path in raw.iterdir() if path.is_dir()} == {*_DATASETS, "images"}
    examples = {
        "vqa": _vqa(raw / "vqa"),
        "vgqa": _vgqa(raw / "visual_genome"),
        "gqa": _gqa(raw / "gqa"),
        "coco": _karpathy(raw / "coco/dataset_coco.json"),
        "flickr30k": _karpathy(raw / "flickr30k/dataset_flickr30k.json"),
        "refcoco": _refer(raw / "refcoco/refcoco/refs(unc).p"),
        "refcoco+": _refer(raw / "refcoco/refcoco+/refs(unc).p"),
        "refcocog": _refer(raw / "refcoco/refcocog/refs(umd).p"),
        "visual7w": _visual7w(raw / "visual7w/dataset_v7w_pointing.json"),
        "guesswhat": {
            role: [(str(game["image"]["id"]),) for game in _lines(path)]
            for role, path in _files(raw / "guesswhat", "guesswhat.{}.jsonl", val="valid")
        },
        "nlvr2": {
            role: [(_name(line["left_url"]), _name(line["right_url"])) for line in _lines(path)]
            for role, path in _files(raw / "nlvr2", "{}.json", val="dev", test="test1")
        },
        "snli_ve": {
            role: [(line["Flickr30K_ID"],) for line in _lines(path)]
            for role, path in _files(raw / "snli_ve", "snli_ve_{}.jsonl", val="dev")
        },
        "conceptual_captions": {
            "train": _captions(raw / "conceptual_captions/Train_GCC-training.tsv"),
            "val": _captions(
                raw / "conceptual_captions/Validation_GCC-1.1.0-Validation.tsv", "val-"
            ),
        },
    }
    twins = {
        str(image["image_id"]): str(image["coco_id"])
        for image in _json(raw / "visual_genome/image_data.json")
        if image["coco_id"] is not None
    }
    return Census(examples, twins)


def _json(path):
    return json.loads(path.read_text())


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _files(folder, pattern, **official):
    names = {"train": "train", "val": "val", "test": "test"} | official
    return [(role, folder / pattern.format(name)) for role, name in names.items()]


def _name(url):
    return url.rsplit("/", 1)[-1].removesuffix(".jpg").removesuffix(".png")


def _held_out(questions):
    """Where official numbers are too large, a fifth is held out."""
    return len(questions) - len(questions) // 5


def _vqa(folder):
    def read(part):
        found = _json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json")["questions"]
        found = sorted(found, key=lambda question: question["question_id"])
        return [(str(question["image_id"]),) for question in found]

    late = read("val2014")
    first = _held_out(late)
    return {
        "train": read("train2014") + late[:first],
        "val": late[first:],
        "test": read("test2015"),
    }


def _vgqa(folder):
    pairs = [pair for image in _json(folder / "question_answers.json") for pair in image["qas"]]
    pairs = sorted(pairs, key=lambda pair: pair["qa_id"])
    images = [(str(pair["image_id"]),) for pair in pairs]
    return {"train": images[: _held_out(images)], "val": images[_held_out(images) :]}


def _gqa(folder):
    both = _json(folder / "train_balanced_questions.json")
    both |= _json(folder / "val_balanced_questions.json")
    images = [(both[key]["imageId"],) for key in sorted(both)]
    test = _json(folder / "testdev_balanced_questions.json").values()
    return {
        "train": images[: _held_out(images)],
        "val": images[_held_out(images) :],
        "test": [(question["imageId"],) for question in test],
    }


def _karpathy(path):
    found = {"train": [], "val": [], "test": []}
    for image in _json(path)["images"]:
        name = str(image.get("cocoid", image["filename"].removesuffix(".jpg")))
        role = "train" if image["split"] == "restval" else image["split"]
        found[role] += [(name,)] * len(image["sentences"])
    return found


def _refer(path):
    found = {}
    for ref in pickle.loads(path.read_bytes()):
        images = [(str(ref["image_id"]),)] * len(ref["sentences"])
        found.setdefault(ref["split"], []).extend(images)
    return found


def _visual7w(path):
    found = {}
    for image in _json(path)["images"]:
        images = [(str(image["image_id"]),)] * len(image["qa_pairs"])
        found.setdefault(image["split"], []).extend(images)
    return found


def _captions(path, prefix=""):
    return [(f"{prefix}{number}",) for number in range(len(path.read_text().splitlines()))]
