"""Every builder through its class, as TFDS drives it, and what TFDS reads back."""

import contextlib
import dataclasses
import inspect
import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from twelve_in_one.data.builders.assemble import make_record
from twelve_in_one.data.builders.base import BuildInputs, made_of
from twelve_in_one.data.builders.region_inputs import RegionInputs, no_regions, with_pictures
from twelve_in_one.data.builders.sources import ALL_SOURCES, DECODER_SOURCES, SOURCES
from twelve_in_one.data.builders.twelve import BUILDERS
from twelve_in_one.data.images.built import questions_of
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.images.pipeline import decode
from twelve_in_one.data.stored import schema
from twelve_in_one.data.stored.index import read_index
from twelve_in_one.data.stored.reader import open_split, read_build_info
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Regions,
    Skipped,
)

NAMES = pytest.mark.parametrize("name", SOURCES)


def _build(name, raw, data_dir, **inputs):
    """Builds without the command, silently: TFDS talks of downloads on stdout."""
    found = BuildInputs(raw / SOURCES[name].folder, inputs.pop("regions", no_regions()), **inputs)
    builder = BUILDERS[name](inputs=found, data_dir=str(data_dir))
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=str(data_dir / "downloads"))
    return builder


def test_one_builder_a_dataset():
    assert list(BUILDERS) == list(ALL_SOURCES) == [*SOURCES, *DECODER_SOURCES]
    for name, builder in BUILDERS.items():
        assert builder.source is ALL_SOURCES[name]
        assert builder.name == name.replace("+", "_plus")


@pytest.mark.parametrize("name", ALL_SOURCES)
def test_docstring_is_the_recipe(name):
    text = inspect.cleandoc(BUILDERS[name].__doc__)
    parts = dict(
        re.findall(
            r"^(Recipe|Splits|Licence|Checksums): (.*?)(?=^[A-Z]\w+: |\Z)", text, re.M | re.S
        )
    )
    wanted = {"Recipe", "Licence", "Checksums"}
    # All that conceptual captions have is what they are called.
    assert parts.keys() - {"Splits"} == wanted and (
        "Splits" in parts or name == "conceptual_captions"
    )
    assert f"`{ALL_SOURCES[name].folder}/" in parts["Recipe"]
    assert "SHA-256" in parts["Checksums"]
    assert len(text.splitlines()[0]) > 20 and "http" not in text


@NAMES
def test_builder_class(small_world, census, tmp_path, name):
    said = []
    builder = _build(
        name,
        small_world.raw,
        tmp_path,
        file_hashes={"a": "b"},
        progress=lambda *done: said.append(done),
    )
    assert builder.info.description == inspect.cleandoc(BUILDERS[name].__doc__)
    found = census.examples[name]
    wanted = {split: len(set(examples)) for split, examples in found.items()}
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == wanted
    for split, count in wanted.items():
        assert [done for done in said if done[0] == split] == [
            (split, i, count) for i in range(count + 1)
        ]
    reports = {
        split: (report.records, report.annotations, report.skipped)
        for split, report in builder.reports.items()
    }
    assert reports == {
        split: (wanted[split], len(examples), ()) for split, examples in found.items()
    }
    assert made_of(builder.inputs) == {"features": "none", "files": {"a": "b"}}


@NAMES
def test_tfds_reads_what_was_built(small_world, census, name):
    builder = tfds.builder_from_directory(str(small_world.built(name)))
    assert builder.info.features.keys() == schema.features_dict().keys()
    for split, examples in census.examples[name].items():
        source = builder.as_data_source(split)
        index = read_index(small_world.built(name), split)
        assert len(source) == len(set(examples)) == len(index.counts)
        ids = [tuple(x.decode() for x in record["image_ids"]) for record in source]
        assert sorted(ids) == sorted(set(examples))
        assert ids == [tuple(row) for row in index.image_ids.tolist()]
        for record, count in zip(source, index.counts, strict=True):
            assert len(record["annotations"]["example_id"]) == count
            read = schema.record_of(record, split)
            assert read.features.shape == (len(read.boxes), index.feature_dim)


def test_stored_order_is_mixed(small_world, census):
    """Neighbours in the files are no neighbours in the store, in any build the same."""
    index = read_index(small_world.built("vqa"), "train")
    ids = index.image_ids[:, 0].tolist()
    in_files = list(dict.fromkeys(image for (image,) in census.examples["vqa"]["train"]))
    assert ids != in_files and sorted(ids) == sorted(in_files)
    places = np.array([in_files.index(image) for image in ids])
    assert (np.abs(np.diff(places)) > 1).mean() > 0.5


def _regions_of(sizes):
    """Regions of which image "i" has `sizes[i]` features."""

    def detected(image):
        if image.image_id not in sizes:
            raise DataError(f"no image {image.image_id}")
        box = np.array([[0, 0, 5, 5]], np.float32)
        return Regions(box, np.ones((1, sizes[image.image_id]), np.float32), 10, 10)

    none = no_regions()
    return RegionInputs("given", "given", sizes.__contains__, detected, none.annotated)


@pytest.fixture
def few(monkeypatch):
    """Makes SNLI-VE consist of given images with an example each: `few("a", "b")`."""

    def make(*images):
        found = AnnotationSet(
            tuple(Annotation(f"of {image}", image, "text", label=0) for image in images),
            {image: AnnotatedImage(image) for image in images},
        )
        source = dataclasses.replace(
            SOURCES["snli_ve"], read=lambda folder, split: found, splits=("train",)
        )
        monkeypatch.setattr(BUILDERS["snli_ve"], "source", source)

    return make


def test_images_without_regions_are_looked_for_first(few, tmp_path):
    few(*"abcdefgh")
    sizes = dict.fromkeys("abcdef", 3)
    with pytest.raises(DataError, match="given lack 2 of 8 images, the first: g"):
        _build("snli_ve", tmp_path, tmp_path / "data", regions=_regions_of(sizes))
    assert not list((tmp_path / "data").rglob("*.*"))
    builder = _build(
        "snli_ve",
        tmp_path,
        tmp_path / "data",
        regions=_regions_of(sizes),
        max_skipped_share=0.25,
    )
    skipped = builder.reports["train"].skipped
    assert sorted((skip.record, skip.reason) for skip in skipped) == [
        ("of g", "no image g"),
        ("of h", "no image h"),
    ]
    index = read_index(builder.data_path, "train")
    assert sorted(index.record_ids) == list("abcdef")


def test_feature_sizes_that_differ(few, tmp_path):
    few(*"abcdefgh")
    sizes = dict.fromkeys("abcdefgh", 3) | {"c": 4}
    with pytest.raises(
        DataError, match=r"1 of 8 records cannot be used, more than 5%.*have size [34].*[34]"
    ):
        _build("snli_ve", tmp_path, tmp_path / "data", regions=_regions_of(sizes))
    assert not list((tmp_path / "data").rglob("index-*"))


def test_images_without_regions_with_the_reasons_that_are_known(small_world, census, tmp_path):
    images = list(dict.fromkeys(image for (image,) in census.examples["snli_ve"]["train"]))
    lost, without = images[:4], images[4]
    regions = dataclasses.replace(
        no_regions(),
        has=lambda image_id: image_id not in (*lost, without),
        unreadable=tuple(
            Skipped(f"{image}.jpg", image, f"fault {n}") for n, image in enumerate([*lost, "other"])
        ),
    )
    reasons = "; ".join(f"{image} (fault {n})" for n, image in enumerate(lost[:3]))
    with pytest.raises(
        DataError,
        match=re.escape(
            f"lack 5 of {len(images)} images, the first: {lost[0]}; known reasons of 4: {reasons}. "
            "Pass --max_skipped_share"
        ),
    ):
        _build("snli_ve", small_world.raw, tmp_path, regions=regions)


@pytest.fixture
def photos(tmp_path):
    """Three pictures: as they are kept, of a kind that is not, and one that is to be turned."""
    y, x = np.mgrid[:20, :30]
    picture = Image.fromarray(np.stack([8 * x, 12 * y, 100 + x], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {"a": tmp_path / "a.jpg", "b": tmp_path / "b.gif", "c": tmp_path / "c.jpg"}
    for image_id, path in found.items():
        picture.save(path, **({"exif": exif} if image_id == "c" else {}))
    return found


def _pictures(builder):
    """Image id -> the picture and the size that are stored."""
    source = tfds.builder_from_directory(str(builder.data_path)).as_data_source(split="train")
    records = [schema.record_of(example, "x") for example in source]
    return {record.record_id: (record.pictures, record.sizes.tolist()) for record in records}


def test_pictures_are_kept_beside_annotations(few, photos, tmp_path):
    few(*"abc")
    regions = with_pictures(no_regions(), photos)
    builder = _build("snli_ve", tmp_path, tmp_path / "data", regions=regions)
    found = _pictures(builder)
    assert found["a"][0][0].data == photos["a"].read_bytes()
    assert {key: sizes for key, (_, sizes) in found.items()} == {
        "a": [[30, 20]],
        "b": [[30, 20]],
        "c": [[20, 30]],
    }
    for image_id, ((picture,), _) in found.items():
        np.testing.assert_array_equal(decode(picture.data), load_image(photos[image_id]))
    assert builder.reports["train"].notes == (
        "2 pictures were encoded again as PNG, without loss (GIF of mode P: 1; JPEG of mode RGB, "
        "turned as its EXIF data say: 1)",
    )
    info = read_build_info(builder.data_path)
    assert info["made_of"]["images"] == "keep"
    assert "images" not in made_of(BuildInputs(tmp_path, no_regions()))
    # What is trained on and what is built from hold the same texts.
    reader = open_split(builder.data_path, "train")
    images = questions_of(reader)
    assert sorted(images.read(i).example_id for i in range(3)) == ["of a", "of b", "of c"]
    assert images.is_checked and images.read(0).question == "text"
    assert reader.record(0).num_bytes > len(images.read(0).data)
    plain = _build("snli_ve", tmp_path, tmp_path / "without", regions=no_regions())
    assert all(not pictures for pictures, _ in _pictures(plain).values())
    with pytest.raises(DataError, match="hold no pictures; build them with --images keep"):
        questions_of(open_split(plain.data_path, "train"))


def test_pictures_lie_in_the_frame_of_the_boxes(few, photos, tmp_path):
    found = AnnotatedImage("c", width=30, height=20, box_ids=(1,), boxes=((1.0, 1.0, 9.0, 9.0),))
    inputs = with_pictures(no_regions(), photos)
    record = make_record("c", [found], (), inputs)
    assert record.sizes.tolist() == [[30, 20]]
    assert record.pictures[0].data == photos["c"].read_bytes()
    pixels = load_image(photos["c"], upright=False)
    np.testing.assert_array_equal(decode(record.pictures[0].data), pixels)


def test_pictures_that_cannot_be_kept(few, photos, tmp_path):
    few(*"abcd")
    regions = with_pictures(no_regions(), photos)
    with pytest.raises(DataError, match=r"lack 1 of 4 images, the first: d; .*d \(there is no pi"):
        _build("snli_ve", tmp_path, tmp_path / "data", regions=regions)
    photos["b"].write_text("<html>")
    builder = _build("snli_ve", tmp_path, tmp_path / "data", regions=regions, max_skipped_share=0.5)
    skipped = {skip.record: skip.reason for skip in builder.reports["train"].skipped}
    assert skipped.keys() == {"of b", "of d"}
    assert (
        "b.gif: cannot be read as an image: it is a web page" in skipped["of b"]
        and "no picture" in skipped["of d"]
    )
    other = with_pictures(_regions_of({"a": 3}), photos)
    with pytest.raises(DataError, match="image a: regions given .* 10 x 10 .* picture has 30 x 20"):
        make_record("a", [AnnotatedImage("a")], (), other)
    photos["a"].unlink()
    assert regions.stamp("a") != with_pictures(no_regions(), {"a": photos["c"]}).stamp("a")
    with pytest.raises(DataError, match="a.jpg: no such file"):
        make_record("a", [AnnotatedImage("a")], (), regions)
