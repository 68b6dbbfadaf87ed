"""What was trained on: kept, found again in tested splits, left out of them, and damaged files."""

import dataclasses
import types

import numpy as np
import pytest
from reference.memory_split import memory_split

from twelve_in_one.data import trained_on
from twelve_in_one.data.pipeline import Selection
from twelve_in_one.data.stored.index import SplitIndex, example_keys
from twelve_in_one.data.stored.records import DataError


def index(images, ids, coco_ids=None):
    """Of single images with the ids of their examples."""
    keys = [key for image, own in zip(images, ids, strict=True) for key in example_keys(own, image)]
    return SplitIndex(
        record_ids=np.array([image[0] for image in images], str),
        image_ids=np.array(images, str),
        coco_ids=np.full((len(images), len(images[0])), -1) if coco_ids is None else coco_ids,
        counts=np.array([len(own) for own in ids], np.int64),
        texts=(),
        mean_features=np.zeros((0, 0), np.float16),
        example_keys=np.array(keys, np.uint64),
    )


def stream(name, domain, index, records=None):
    reader = dataclasses.replace(memory_split([1]), index=index)
    records = np.arange(len(index.counts)) if records is None else np.array(records)
    selection = Selection(reader, records, 1, True, domain=domain)
    return types.SimpleNamespace(task=types.SimpleNamespace(name=name), selection=selection)


GQA = index([["7"], ["8"], ["9"]], [["q1", "q2"], ["q3"], ["q4"]])
TEST = index([["8"], ["7"], ["n1"]], [["q3", "q9"], ["q8"], ["q1", "q2", "q5"]])


def look(trained, name="gqa", domain="visual_genome", tested=TEST, records=(0, 1, 2)):
    return trained_on.look(trained, name, domain, tested, np.array(records))


def test_records_are_the_same_by_id_and_image():
    trained = trained_on.of_streams([stream("gqa", "visual_genome", GQA)])
    known, seen = look(trained)
    assert known.tolist() == [True, False, False, False, False, False]  # q1, q2: of another image
    assert (seen.records, seen.of_records, seen.images, seen.of_images) == (1, 6, 2, 3)
    assert not seen.left_out and seen.unknown == ()
    assert look(trained, name="vqa")[1].records == 0  # ids of another dataset mean nothing
    assert look(trained, domain="nlvr2")[1].images == 0
    # Of what is scored only.
    assert dataclasses.astuple(look(trained, records=(1, 2))[1])[:4] == (0, 4, 1, 2)


def test_only_what_training_selects():
    """Records that cleaning leaves out were not trained on."""
    trained = trained_on.of_streams([stream("gqa", "visual_genome", GQA, records=[0, 2])])
    _, seen = look(trained)
    assert (seen.records, seen.images) == (0, 1)


def test_a_photo_is_one_under_both_ids():
    """GQA does not say which photos are COCO's; Visual Genome's own files say it for it."""
    genome = index([["8"], ["5"]], [["a"], ["b"]], np.array([[108], [-1]]))
    photos = index([["107"], ["108"], ["109"]], [["c"], ["d"], ["e"]])
    trained = trained_on.of_streams(
        [stream("gqa", "visual_genome", GQA), stream("vgqa", "visual_genome", genome, [1])]
    )
    _, seen = look(trained, name="vqa", domain="coco", tested=photos)
    assert (seen.images, seen.of_images) == (1, 3)
    # And the other way round.
    trained = trained_on.of_streams(
        [stream("coco", "coco", photos), stream("vgqa", "visual_genome", genome, [1])]
    )
    assert look(trained, tested=GQA)[1].images == 1
    known = index([["77"]], [["z"]], np.array([[109]]))
    assert look(trained, tested=known, records=(0,))[1].images == 1


def test_either_image_of_a_pair():
    pairs = index([["a", "b"], ["c", "d"]], [["1"], ["2"]])
    trained = trained_on.of_streams([stream("nlvr2", "nlvr2", pairs)])
    tested = index([["x", "d"], ["d", "c"]], [["2"], ["2"]])
    known, seen = look(trained, "nlvr2", "nlvr2", tested, (0, 1))
    assert not known.any() and (seen.images, seen.of_images) == (2, 3)


def test_what_is_not_known_is_said():
    old = dataclasses.replace(GQA, example_keys=np.zeros(0, np.uint64))
    trained = trained_on.of_streams([stream("gqa", "visual_genome", old)])
    _, seen = look(trained)
    assert seen.records == 0 and seen.images == 2
    assert "of gqa are the same: its data were built before" in seen.unknown[0]
    both = trained | trained_on.nothing("the weights of X")
    assert len(look(both)[1].unknown) == 2
    old_test = dataclasses.replace(TEST, example_keys=np.zeros(0, np.uint64))
    assert len(look(trained_on.nothing(), tested=old_test)[1].unknown) == 1


def test_union_and_round_trip(tmp_path):
    first = trained_on.of_streams([stream("gqa", "visual_genome", GQA, records=[0])])
    second = trained_on.of_streams([stream("gqa", "visual_genome", GQA, records=[1])])
    path = tmp_path / trained_on.FILE
    trained_on.write(path, first | second | trained_on.nothing("x"))
    found = trained_on.read(path)
    assert found.unknown == ("x",)
    assert look(found)[1].records == 1 and look(found)[1].images == 2
    assert [p.name for p in tmp_path.iterdir()] == [trained_on.FILE]
    assert trained_on.read(tmp_path / "none") is None
    for damaged in (path.read_bytes()[:-30], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path}.*cannot be read"):
            trained_on.read(path)


def test_left_out_examples_are_gone_everywhere():
    counts = [3, 0, 2, 1]
    whole = memory_split(counts)
    whole = dataclasses.replace(
        whole, index=dataclasses.replace(whole.index, example_keys=np.arange(6, dtype=np.uint64))
    )
    gone = np.array([True, False, True, True, True, False])
    left = trained_on.without_examples(whole, gone)
    assert left.index.counts.tolist() == [1, 0, 0, 1]
    assert left.index.texts == (whole.index.texts[1], whole.index.texts[5])
    assert left.index.example_keys.tolist() == [1, 5]
    ids = [a.example_id for i in range(4) for a in left.record(i).annotations]
    assert ids == ["example-1", "example-5"]
    assert left.record(0).images == whole.record(0).images
    assert left.first_example.tolist() == [0, 1, 1, 1, 2]
