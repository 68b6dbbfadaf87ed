"""Every batch field that the released loaders determine, from the same official files.

The reference arrays were recorded from the released data classes. What is called here is what the
trainer's pipeline calls: reader -> `make_record` -> stored form -> `load` -> `encode_batch`.
"""

import dataclasses
import shutil

import numpy as np
import pytest

from twelve_in_one.data.annotations import (
    gqa,
    guesswhat,
    nlvr2,
    refcoco,
    retrieval,
    snli_ve,
    visual7w,
    visual_genome_qa,
    vqa,
)
from twelve_in_one.data.annotations.select import only_images, without_images
from twelve_in_one.data.builders import answers
from twelve_in_one.data.builders.assemble import make_record
from twelve_in_one.data.builders.region_inputs import from_stores
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.encode.examples import Encoding, Example, encode_batch
from twelve_in_one.data.encode.text import load_tokenizer
from twelve_in_one.data.stored import schema
from twelve_in_one.data.stored.image_rows import load
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}
FEATURE_DIM = 2048


@dataclasses.dataclass(frozen=True)
class Fixture:
    """One folder of the reference and what the released loader was set to."""

    name: str
    folder: str
    features: str
    max_tokens: int
    max_regions: int
    annotated: str | None = None


FIXTURES = {
    fixture.name: fixture
    for fixture in (
        Fixture("vqa", "vqa", "coco", 12, 6),
        Fixture("vgqa", "vgqa", "genome", 12, 6),
        Fixture("gqa", "gqa", "gqa", 12, 6),
        Fixture("coco", "retrieval_coco", "coco", 10, 9),
        Fixture("flickr30k", "retrieval_flickr30k", "flickr", 10, 9),
        Fixture("refcoco", "refcoco", "coco_refer", 10, 7, "coco_gt"),
        Fixture("refcoco+", "refcoco", "coco_refer", 10, 7, "coco_gt"),
        Fixture("refcocog", "refcoco", "coco_refer", 10, 7, "coco_gt"),
        Fixture("visual7w", "visual7w", "v7w", 10, 112, "v7w_gt"),
        Fixture("guesswhat", "guesswhat", "coco_100", 32, 306, "coco_100_gt"),
        Fixture("nlvr2", "nlvr2", "nlvr2", 12, 10),
        Fixture("snli_ve", "snli_ve", "flickr", 12, 6),
    )
}


@pytest.fixture(scope="module")
def loaders(shared_dir):
    return shared_dir / "fixtures" / "loaders"


@pytest.fixture(scope="module")
def tokenizer(loaders):
    return load_tokenizer(loaders / "tokenizer" / "vocab.txt")


@pytest.fixture(scope="module")
def encode(loaders, tokenizer):
    """encode(name, annotation set, **options) -> one batch with all of its examples."""

    def run(
        name,
        found,
        *,
        options=lambda records, annotation: (),
        vocabulary=(),
        skipped=(),
        **changes,
    ):
        assert [skip.record for skip in found.skipped] == [*skipped]
        fixture = FIXTURES[name]
        stores = loaders / "features"
        annotated = f"lmdb:{stores / fixture.annotated}.lmdb" if fixture.annotated else None
        inputs = from_stores(SOURCES[name], f"lmdb:{stores / fixture.features}.lmdb", annotated)

        def record_of(annotation):
            key = annotation.image_id
            images = [found.images[i] for i in found.pairs.get(key, (key,))]
            return load(make_record(key, images, (annotation,), inputs), name)

        records = {a.example_id: record_of(a) for a in found.annotations}
        task = dataclasses.replace(
            TASKS[name],
            max_tokens=changes.pop("max_tokens", fixture.max_tokens),
            max_regions=changes.pop("max_regions", fixture.max_regions),
        )
        index = {answer: label for label, answer in enumerate(vocabulary)}
        labels = {"image_pair": 2, "three_way": 3}.get(task.head, len(vocabulary))
        encoding = Encoding(task, tokenizer, FEATURE_DIM, index, labels, **changes)
        examples = [
            Example(records[a.example_id], a, options(records, a)) for a in found.annotations
        ]
        return encode_batch(encoding, examples, len(examples))

    return run


@pytest.fixture(scope="module")
def expected(loaders):
    """expected(folder, part) -> {field: array}."""

    def read(folder, part):
        with np.load(loaders / folder / "expected.npz") as arrays:
            return {
                key.removeprefix(f"{part}/"): arrays[key]
                for key in arrays.files
                if key.startswith(f"{part}/")
            }

    return read


def removed_ids(loaders, folder, name):
    return set(map(str, np.load(loaders / folder / "cache" / f"{name}_test_ids.npy").tolist()))


def assert_same(batch, wanted, rows=slice(None)):
    """Text and regions, in every position, padding included."""
    same = np.testing.assert_array_equal
    same(batch["tokens"], wanted["input_ids"][rows])
    same(batch["token_mask"], wanted["text_mask"][rows] == 1)
    assert not wanted["segment_ids"].any()
    count = wanted["features_head"].shape[-2]
    same(batch["region_mask"], wanted["image_mask"][rows] == 1)
    same(batch["regions"][..., :count, :8], wanted["features_head"][rows])
    if "features" in wanted:
        same(batch["regions"], wanted["features"][rows])
    sums = batch["regions"].sum(axis=-1, dtype=np.float64)
    same(sums[..., :count], wanted["features_rowsum"][rows])
    same(batch["boxes"][..., :count, :], wanted["boxes"][rows])
    assert not batch["regions"][..., count:, :].any()


@pytest.mark.parametrize(
    "part", ["train", "train_uncleaned", "val", "trainval", "minval", "test", "mteval"]
)
def test_vqa(loaders, expected, encode, part):
    folder, removed = loaders / "vqa", removed_ids(loaders, "vqa", "coco")
    train = vqa.read_split(folder, "train2014")
    found = {
        "train": lambda: without_images(train, removed),
        "train_uncleaned": lambda: train,
        "val": lambda: vqa.read_split(folder, "val2014"),
        "trainval": lambda: without_images(vqa.read(folder, "train", num_val=3000), removed),
        "minval": lambda: vqa.read(folder, "val", num_val=3000),
        "test": lambda: vqa.read(folder, "test"),
        "mteval": lambda: only_images(train, removed),
    }[part]()
    vocabulary = answers.read_vocabulary(folder / "cache" / "trainval_label2ans.pkl")
    batch = encode("vqa", found, vocabulary=vocabulary)
    wanted = expected("vqa", part)
    assert list(batch["example_id"]) == list(map(str, wanted["id"]))
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["targets"], wanted["target"])


def test_vqa_with_short_texts_and_more_region_slots(loaders, expected, encode):
    found = vqa.read_split(loaders / "vqa", "val2014")
    vocabulary = answers.read_vocabulary(loaders / "vqa/cache/trainval_label2ans.pkl")
    batch = encode("vqa", found, vocabulary=vocabulary, max_tokens=7, max_regions=10)
    wanted = expected("vqa", "val_seq7_reg10")
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["targets"], wanted["target"])


@pytest.mark.parametrize("part", ["val", "val_uncleaned"])
def test_visual_genome_qa(loaders, expected, encode, part):
    found = visual_genome_qa.read(loaders / "vgqa", "val", num_val=5000)
    if part == "val":
        found = without_images(found, removed_ids(loaders, "vgqa", "genome"))
    vocabulary = answers.read_vocabulary(loaders / "vgqa/cache/trainval_label2ans.pkl")
    batch = encode("vgqa", found, vocabulary=vocabulary)
    wanted = expected("vgqa", part)
    assert list(batch["example_id"]) == list(map(str, wanted["id"]))
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["targets"], wanted["target"])


@pytest.mark.parametrize("part", ["train", "train_uncleaned", "val", "minval", "test"])
def test_gqa(loaders, expected, encode, part):
    folder, removed = loaders / "gqa", removed_ids(loaders, "gqa", "genome")
    found = {
        "train": lambda: without_images(gqa.read_split(folder, "train_balanced"), removed),
        "train_uncleaned": lambda: gqa.read_split(folder, "train_balanced"),
        "val": lambda: gqa.read_split(folder, "val_balanced"),
        "minval": lambda: gqa.read(folder, "val", num_val=3000),
        "test": lambda: gqa.read(folder, "test"),
    }[part]()
    vocabulary = answers.read_vocabulary(folder / "cache" / "trainval_label2ans.pkl")
    batch = encode("gqa", found, vocabulary=vocabulary)
    wanted = expected("gqa", part)
    assert [int(i) for i in batch["example_id"]] == wanted["id"].tolist()
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["targets"], wanted["target"])


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_retrieval(loaders, expected, encode, name, part):
    """What no random draw touches: the right pair, the image of two wrong ones, a caption."""
    folder = loaders / f"retrieval_{name}"
    read = {"coco": retrieval.read_coco, "flickr30k": retrieval.read_flickr30k}[name]
    found = read(folder, "train" if part == "train" else "test")
    if part == "train":
        found = without_images(found, removed_ids(loaders, folder.name, name.removesuffix("30k")))

    def options(records, annotation):
        return ((records[annotation.example_id], annotation.text),) * 4

    wanted = expected(folder.name, part)
    batch = encode(name, found, options=options)
    kept = len(wanted["id"])
    image_ids = [a.image_id for a in found.annotations]
    assert image_ids[:kept] == list(map(str, wanted["id"]))
    same = np.testing.assert_array_equal
    for option in (0, 1, 3):
        same(batch["regions"][:kept, option, :, :8], wanted["features_head"][:, option])
        same(batch["boxes"][:kept, option], wanted["boxes"][:, option])
        same(batch["region_mask"][:kept, option], wanted["image_mask"][:, option] == 1)
    for option in (0, 2):
        same(batch["tokens"][:kept, option], wanted["input_ids"][:, option])
        same(batch["token_mask"][:kept, option], wanted["text_mask"][:, option] == 1)
    same(batch["targets"][:kept], wanted["target"])


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_ranking(loaders, expected, encode, name):
    """Captions and images of the test set, each image once, in the order of the file."""
    folder = loaders / f"retrieval_{name}"
    read = {"coco": retrieval.read_coco, "flickr30k": retrieval.read_flickr30k}[name]
    found = read(folder, "test")
    wanted = expected(folder.name, "rank")
    images = {image_id: group[0] for image_id, group in found.by_image()}
    assert list(images) == list(map(str, wanted["image_order"]))
    assert int(wanted["length"]) == 2 * len(found.annotations)

    def options(records, annotation):
        return ((records[annotation.example_id], annotation.text),) * 4

    firsts = dataclasses.replace(found, annotations=tuple(images.values()))
    batch = encode(name, firsts, options=options)
    count = len(images)
    same = np.testing.assert_array_equal
    halves = wanted["half_index"] == 0
    for row in np.flatnonzero(halves):
        same(batch["regions"][:, 0, :, :8], wanted["features_head"][row, :count])
        same(batch["boxes"][:, 0], wanted["boxes"][row, :count])
        same(batch["region_mask"][:, 0], wanted["image_mask"][row, :count] == 1)
    captions = encode(name, found, options=options)
    for row, caption in enumerate(wanted["caption_index"]):
        same(captions["tokens"][caption, 0], wanted["input_ids"][row])
        owner = found.annotations[caption].image_id
        position = list(images).index(owner)
        target = np.eye(500)[position] if halves[row] else np.zeros(500)
        same(wanted["target"][row], target)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (name, part)
        for name, parts in (
            ("refcoco", ["train", "val", "testA", "testB", "mteval"]),
            ("refcoco+", ["train", "val", "testA", "testB", "mteval"]),
            ("refcocog", ["train", "val", "test", "mteval"]),
        )
        for part in parts
    ],
)
def test_refcoco(loaders, expected, encode, name, part):
    removed = removed_ids(loaders, "refcoco", "coco")
    split = "train" if part == "mteval" else part
    found = refcoco.read(loaders / "refcoco", name, split)
    if part == "train":
        found = without_images(found, removed)
    elif part == "mteval":
        found = only_images(found, removed)
    wanted = expected("refcoco", f"{name}/{part}")
    if "length" in wanted:  # all that was recorded where there is nothing
        assert len(found.annotations) == wanted["length"]
        return
    batch = encode(name, found, training=part == "train")
    assert [int(a.image_id) for a in found.annotations] == wanted["id"].tolist()
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["targets"], wanted["target"][..., 0])


@pytest.mark.parametrize("part", ["train", "val"])
def test_visual7w(loaders, expected, encode, part):
    wanted = expected("visual7w", part)
    found = visual7w.read(loaders / "visual7w", part)
    if part == "train":
        found = without_images(found, removed_ids(loaders, "visual7w", "genome"))
    batch = encode("visual7w", found, training=part == "train")
    assert [int(a.image_id) for a in found.annotations] == wanted["id"].tolist()
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["choices"] - 101, wanted["multiple_choice_ids"])
    np.testing.assert_array_equal(batch["targets"], wanted["target"][..., 0])
    assert batch["choice_mask"].all()


@pytest.mark.parametrize("has_pickles", [True, False])
@pytest.mark.parametrize("part", ["train", "valid"])
def test_guesswhat(loaders, expected, encode, tmp_path, part, has_pickles):
    for path in loaders.glob("guesswhat/*.jsonl"):
        shutil.copyfile(path, tmp_path / path.name)
    folder = loaders / "guesswhat" if has_pickles else tmp_path
    found = guesswhat.read(folder, "train" if part == "train" else "val")
    if part == "train":
        found = without_images(found, removed_ids(loaders, "guesswhat", "coco"))
    # The released code never comes to the image that its lists lack: it is cleaned away.
    skipped = ["9004"] if has_pickles and part == "train" else []
    batch = encode("guesswhat", found, training=part == "train", skipped=skipped)
    wanted = expected("guesswhat", f"pointing_{part}")
    assert [int(a.image_id) for a in found.annotations] == wanted["id"].tolist()
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["choices"] - 101, wanted["multiple_choice_ids"])
    np.testing.assert_array_equal(batch["choice_mask"], wanted["multiple_choice_ids"] < 204)
    np.testing.assert_array_equal(batch["targets"], wanted["target"][..., 0])


@pytest.mark.parametrize("part", ["train", "dev"])
@pytest.mark.parametrize("packed", [True, False])
def test_nlvr2(loaders, expected, encode, part, packed):
    found = nlvr2.read(loaders / "nlvr2", "train" if part == "train" else "val")
    batch = encode("nlvr2", found, official_pair_packing=packed)
    wanted = expected("nlvr2", part)
    count = len(found.annotations)
    for key in ("regions", "boxes", "region_mask"):  # [B, 2, R, ...] -> [B, 2R, ...]
        batch[key] = batch[key].reshape(count, -1, *batch[key].shape[3:])
    # Both ways agree where the first image fills its half exactly, or ours is the paper's.
    rows = slice(None)
    if not packed:
        rows = np.flatnonzero([a.image_id == "dev-7-0" for a in found.annotations])
        batch = {k: v[rows] for k, v in batch.items() if np.ndim(v)}
    for side in (0, 1):
        text = {key: batch[key][:, side] for key in ("tokens", "token_mask")}
        assert_same(batch | text, wanted, rows)
    np.testing.assert_array_equal(batch["targets"], wanted["target"][rows])


@pytest.mark.parametrize("part", ["train", "train_uncleaned", "dev"])
def test_snli_ve(loaders, expected, encode, part):
    found = snli_ve.read(loaders / "snli_ve", "val" if part == "dev" else "train")
    if part == "train":
        found = without_images(found, removed_ids(loaders, "snli_ve", "flickr"))
    batch = encode("snli_ve", found)
    wanted = expected("snli_ve", part)
    assert len(batch["example_id"]) == len(wanted["id"])
    assert_same(batch, wanted)
    np.testing.assert_array_equal(batch["targets"], wanted["target"])


def test_stored_form_changes_nothing(loaders, encode):
    """A record that was written and read by TFDS' codec is the record."""
    found = refcoco.read(loaders / "refcoco", "refcoco", "train")
    stores = loaders / "features"
    inputs = from_stores(
        SOURCES["refcoco"], f"lmdb:{stores / 'coco_refer.lmdb'}", f"lmdb:{stores / 'coco_gt.lmdb'}"
    )
    features = schema.features_dict()
    for key, annotations in found.by_image():
        record = make_record(key, [found.images[key]], annotations, inputs)
        coded = features.serialize_example(schema.example_of(record))
        read = schema.record_of(features.deserialize_example_np(coded), "refcoco/train")
        for field in dataclasses.fields(record):
            before, after = getattr(record, field.name), getattr(read, field.name)
            if isinstance(before, np.ndarray):
                assert before.dtype == after.dtype
                np.testing.assert_array_equal(before, after)
            elif field.name != "annotations":
                assert before == after
        for before, after in zip(record.annotations, read.annotations, strict=True):
            assert before == dataclasses.replace(after, scores=before.scores)
            np.testing.assert_allclose(after.scores, before.scores, rtol=1e-7)
