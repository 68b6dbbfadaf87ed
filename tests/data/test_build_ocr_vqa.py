"""The build of OCR-VQA from the folder that its release's script leaves."""

import json

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.images.built import questions_of
from twelve_in_one.data.images.pipeline import decode
from twelve_in_one.data.stored.reader import built_folder, open_split
from twelve_in_one.data.streams import DataFolder
from twelve_in_one.world.writers import ocr_vqa

_COUNT = 12


@pytest.fixture
def raw(tmp_path):
    """A dozen books; one's cover is a GIF, and another's is a page that says it is gone."""

    def run(name, function, items):
        return [function(item, np.random.default_rng(i)) for i, item in enumerate(items)]

    folder = tmp_path / "raw/ocr_vqa"
    places = folder / "images", folder / "genres"
    ocr_vqa.write(folder, *places, _COUNT, 48, 4, np.random.default_rng(1), run)
    covers = sorted((folder / "images").iterdir())
    with Image.open(covers[0]) as picture:
        picture.convert("P").save(covers[0].with_suffix(".gif"))
    covers[0].unlink()
    return tmp_path / "raw"


def test_build(raw, tmp_path, run_build):
    outcome = run_build("ocr_vqa", raw, tmp_path / "data", "--images", "keep")
    assert outcome.code == 0, outcome.err
    assert "1 pictures were encoded again as PNG, without loss (GIF of mode P: 1)" in outcome.out
    built = built_folder(tmp_path / "data", "ocr_vqa", "none")
    info = json.loads((built / "build.json").read_text())
    assert list(info["made_of"]["files"]) == ["dataset.json"], "covers are no annotations"
    # Nothing of what the datasets of 12-in-1 share.
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"ocr_vqa"}
    books = json.loads((raw / "ocr_vqa/dataset.json").read_text())
    seen = set()
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        reader = open_split(built, split)
        images = questions_of(reader)
        assert images.num_examples == 5 * sum(b["split"] == number for b in books.values())
        for position in range(len(reader.index.counts)):
            record = reader.record(position)
            (book_id,) = reader.index.image_ids[position].tolist()
            book = books[book_id]
            texts = [(x.text, x.answers) for x in record.annotations]
            assert texts == [
                (question, (answer,))
                for question, answer in zip(book["questions"], book["answers"], strict=True)
            ]
            seen.add(book_id)
        assert decode(images.read(0).data).shape == (48, 48, 3)
    assert seen == set(books)
    folder = DataFolder(tmp_path / "data", "none", None, {}, None)
    assert folder.source("ocr_vqa").splits == ("train", "val", "test")


def test_missing_covers_are_counted(raw, tmp_path, run_build):
    books = json.loads((raw / "ocr_vqa/dataset.json").read_text())
    gone, broken = [b for b in sorted(books) if books[b]["split"] == 1][1:3]
    (raw / f"ocr_vqa/images/{gone}.jpg").unlink()
    (raw / f"ocr_vqa/images/{broken}.jpg").write_text("<html>not found</html>")
    # Whether they are beside the file or where all images are.
    (raw / "images").mkdir()
    (raw / "ocr_vqa/images").rename(raw / "images/ocr_vqa")
    refused = run_build("ocr_vqa", raw, tmp_path / "data", "--images", "keep")
    assert refused.code == 1
    assert f"the first: {gone}" in refused.out + refused.err
    assert "--max_skipped_share" in refused.out + refused.err
    options = ("--images", "keep", "--max_skipped_share", "0.5")
    outcome = run_build("ocr_vqa", raw, tmp_path / "data", *options)
    assert outcome.code == 0, outcome.err
    built = built_folder(tmp_path / "data", "ocr_vqa", "none")
    report = json.loads((built / "build.json").read_text())["splits"]["train"]
    assert report["images"] == sum(b["split"] == 1 for b in books.values()) - 2
    assert len(report["skipped"]) == 10
    reasons = {skip["record"].split("-")[0]: skip["reason"] for skip in report["skipped"]}
    assert reasons[gone] == f"image {gone}: there is no picture of it"
    assert f"{broken}.jpg" in reasons[broken]


def test_all_means_the_datasets_of_12_in_1(raw, tmp_path, run_build):
    outcome = run_build("all", raw, tmp_path / "data", "--features", "none")
    assert outcome.code == 1
    assert "ocr_vqa is no dataset of 12-in-1, left out: build it by its name" in outcome.err
