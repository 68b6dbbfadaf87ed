"""Streams, what tf.data makes of them, and their mixture, on a split in memory."""

import concurrent.futures
import dataclasses
import itertools

import numpy as np
import pytest
from reference.memory_split import TOKENIZER, memory_split, text_of

from twelve_in_one.data import pipeline
from twelve_in_one.data.encode.examples import Encoding
from twelve_in_one.data.encode.pretraining import PretrainingStream
from twelve_in_one.data.mixture import Mixture
from twelve_in_one.data.pipeline import Selection, TaskStream, as_dataset
from twelve_in_one.data.stored.records import Annotation, DataError
from twelve_in_one.tasks.twelve import CONCEPTUAL_CAPTIONS, TWELVE

TASKS = {
    task.name: dataclasses.replace(task, max_tokens=7, max_regions=6)
    for task in TWELVE
    if task.name in ("snli_ve", "coco", "nlvr2")
}
PRETRAINING = dataclasses.replace(CONCEPTUAL_CAPTIONS, max_tokens=7, max_regions=6)
STREAMS = [*TASKS, "pretraining"]
COUNTS = [3, 1, 4, 1, 5, 2, 6, 5]  # 27 examples
FEATURE_DIM = 6
SMALL_BLOCKS = {"chunk_records": 2, "block_chunks": 2}


def _stream(
    name="snli_ve", *, batch_size=12, records=None, pool=None, annotation=None, **selection
):
    task = TASKS.get(name, PRETRAINING)
    reader = memory_split(
        COUNTS,
        feature_dim=FEATURE_DIM,
        images=2 if name == "nlvr2" else 1,
        annotation=annotation,
        num_classes=5 if name == "pretraining" else None,
    )
    chosen = Selection(
        reader,
        np.arange(len(COUNTS)) if records is None else np.array(records),
        batch_size,
        selection.pop("training", True),
        order_options=SMALL_BLOCKS,
        **{"seed": (3, task.task_id)} | selection,
    )
    if name == "pretraining":
        return PretrainingStream(chosen, task, TOKENIZER, FEATURE_DIM, num_classes=5)
    return TaskStream(chosen, Encoding(task, TOKENIZER, FEATURE_DIM, num_labels=3), pool)


def _numbers(batch):
    """Example numbers of the real rows."""
    return [int(i.removeprefix("example-")) for i in batch["example_id"][batch["_mask"]]]


def _numbers_of(stream, count, start=0):
    batches = range(start, start + count)
    return list(itertools.chain.from_iterable(_numbers(stream.batch(i)) for i in batches))


def _record_of(number):
    """Position of the record that an example belongs to."""
    return int(np.repeat(np.arange(len(COUNTS)), COUNTS)[number])


def _assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for key in wanted:
        assert got[key].dtype == wanted[key].dtype, key
        np.testing.assert_array_equal(got[key], wanted[key], err_msg=key, strict=True)


@pytest.mark.parametrize("batch_size", [1, 4, 12, 27, 80])
@pytest.mark.parametrize("records", [None, [1, 2, 6]])
def test_every_example_once_an_epoch(batch_size, records):
    kept = range(len(COUNTS)) if records is None else records
    first = np.cumsum([0, *COUNTS])
    wanted = [e for record in kept for e in range(first[record], first[record + 1])]
    stream = _stream(batch_size=batch_size, records=records)
    seen = _numbers_of(stream, -(-3 * len(wanted) // batch_size))
    epochs = [seen[i * len(wanted) : (i + 1) * len(wanted)] for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [wanted] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream.selection.num_batches == -(-len(wanted) // batch_size)


def test_sets_too_large_for_a_permutation(monkeypatch):
    """Each host goes through shards of its own, each example once an epoch."""
    monkeypatch.setattr(pipeline, "_SHARD_RECORDS", 2)
    options = {"batch_size": 6, "num_hosts": 2, "permuted_examples": 26}
    seen = []
    for host in (0, 1):
        rows = _stream(host=host, **options).selection.rows
        found = [row for batch in range(12) for row in rows(batch)]
        own = [number for epoch, number in found if epoch == 0]
        assert len(set(own)) == len(own)
        assert sorted(number for epoch, number in found if epoch == 1) == sorted(own)
        assert own != sorted(own)
        seen += own
    assert sorted(seen) == list(range(27))
    with pytest.raises(DataError, match="memory/train: 4 shards cannot be divided among 6 hosts"):
        _stream(**options | {"num_hosts": 6})


def test_order_does_not_depend_on_the_batch_size():
    one, other = _stream(batch_size=4), _stream(batch_size=10)
    assert _numbers_of(one, 25) == _numbers_of(other, 10)


def test_seeds_order_differently():
    orders = {seed: _numbers_of(_stream(seed=seed), 2) for seed in ((0, 1), (1, 1), (0, 2))}
    assert len({tuple(order) for order in orders.values()}) == 3


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("training", [True, False])
def test_resumes_at_any_batch(name, training):
    stream = _stream(name, training=training)
    batches = [stream.batch(i) for i in range(3)]
    for i in (2, 0, 1):
        _assert_same(_stream(name, training=training).batch(i), batches[i])
        _assert_same(stream.batch(i), batches[i])


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_are_one(name, training, num_hosts):
    whole = _stream(name, training=training)
    hosts = [
        _stream(name, training=training, host=host, num_hosts=num_hosts)
        for host in range(num_hosts)
    ]
    for i in range(whole.selection.num_batches):
        wanted = whole.batch(i)
        parts = [host.batch(i) for host in hosts]
        joined = {
            key: np.concatenate([part[key] for part in parts]) if value.ndim else value
            for key, value in wanted.items()
        }
        assert {len(part["_mask"]) for part in parts} == {12 // num_hosts}
        _assert_same(joined, wanted)


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_covers_all_once(name):
    stream = _stream(name, training=False)
    batches = [stream.batch(i) for i in range(stream.selection.num_batches)]
    assert list(itertools.chain.from_iterable(map(_numbers, batches))) == list(range(27))
    last = batches[-1]
    assert last["_mask"].tolist() == [True] * 3 + [False] * 9
    assert (last["example_id"][3:] == "").all()
    for key in ("regions", "boxes", "region_mask", "token_mask", "targets"):
        assert not last[key][3:].any()
    assert (last["tokens"][3:] == TOKENIZER.pad_id).all()
    for number in (3, 50):
        with pytest.raises(IndexError, match=f"memory/train: batch {number} of 3"):
            stream.batch(number)


def test_rows_hold_what_their_example_is():
    stream = _stream(training=True, records=[1, 2, 4, 6])
    reader = stream.selection.reader
    for batch in (stream.batch(0), stream.batch(3)):
        for row, number in enumerate(_numbers(batch)):
            record = reader.record(_record_of(number))
            rows = record.images[0]
            count = min(len(rows), 6)
            tokens, mask = TOKENIZER.encode(text_of(number), 7)
            np.testing.assert_array_equal(batch["tokens"][row], tokens)
            np.testing.assert_array_equal(batch["token_mask"][row], mask)
            features = np.concatenate([rows.mean_feature, rows.features])[:count]
            np.testing.assert_array_equal(batch["regions"][row, :count], features)
            np.testing.assert_array_equal(batch["boxes"][row, :count], rows.locations[:count])
            assert batch["region_mask"][row].tolist() == [i < count for i in range(6)]
            assert batch["targets"][row].tolist() == [1, 0, 0]


def _record_of_text(reader, tokens):
    """Which record's text it is."""
    texts = [TOKENIZER.encode(text, 7)[0].tolist() for text in reader.index.texts]
    return _record_of(texts.index(tokens.tolist()))


def _record_of_regions(reader, boxes):
    for record in range(len(COUNTS)):
        rows = reader.record(record).images[0].locations[:6]
        if np.array_equal(boxes[: len(rows)], rows) and not boxes[len(rows) :].any():
            yield record


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_pool", [True, False])
def test_negatives_are_of_other_images(training, with_pool):
    records = np.array([0, 2, 3, 5, 6])  # positions 0..4 of the selection
    pool = np.array([[0, 2], [1, 4], [2, 1], [3, 0], [4, 3]], np.int32) if with_pool else None
    stream = _stream("coco", training=training, records=records, pool=pool)
    reader = stream.selection.reader
    hard = []
    for i in range(stream.selection.num_batches):
        batch = stream.batch(i)
        assert not batch["targets"].any()  # the right pair is the first
        for row, number in enumerate(_numbers(batch)):
            own = _record_of(number)
            tokens, boxes = batch["tokens"][row], batch["boxes"][row]
            np.testing.assert_array_equal(tokens[0], TOKENIZER.encode(text_of(number), 7)[0])
            np.testing.assert_array_equal(tokens[2], tokens[0])
            for option in (0, 1, 3):
                assert own in _record_of_regions(reader, boxes[option])
            others = set(records) - {own}
            assert set(_record_of_regions(reader, boxes[2])) & others
            assert _record_of_text(reader, tokens[1]) in others
            hard.append(_record_of_text(reader, tokens[3]))
            assert hard[-1] in others
            if with_pool:
                position = records.tolist().index(own)
                assert hard[-1] == records[pool[position, 1]]
    assert len(set(hard)) > 3


def test_negatives_change_from_epoch_to_epoch():
    stream = _stream("coco", batch_size=27)
    of_first, of_second = (
        dict(zip(_numbers(batch), map(bytes, batch["tokens"][:, 1]), strict=True))
        for batch in (stream.batch(0), stream.batch(1))
    )
    changed = sum(of_first[number] != of_second[number] for number in range(27))
    assert changed > 18


def test_threads_may_share_a_stream():
    stream, serial = _stream("coco", batch_size=4), _stream("coco", batch_size=4)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(stream.batch, range(30)))
    for i, batch in enumerate(batches):
        _assert_same(batch, serial.batch(i))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"records": []}, DataError, "memory/train: no example takes part"),
        ({"num_hosts": 5}, ValueError, "batch size 12 does not divide among 5 hosts"),
        ({"num_hosts": 2, "host": 2}, ValueError, "host 2 of 2"),
    ],
)
def test_selection_errors(settings, error, message):
    settings = {"records": np.arange(3)} | settings
    with pytest.raises(error, match=message):
        _stream(records=np.array(settings.pop("records"), int), **settings)


def _label_out_of_range(example_id, image_id, text):
    return Annotation(example_id, image_id, text, label=7 if example_id == "example-20" else 0)


def test_unusable_examples_are_named():
    stream = _stream(training=False, annotation=_label_out_of_range)
    stream.batch(0)
    with pytest.raises(DataError, match="snli_ve: example example-20: label 7 of 3 classes"):
        stream.batch(1)


# From here on with TensorFlow.


def _as_text(batch):
    """TensorFlow's strings are bytes."""
    return batch | {"example_id": np.array([i.decode() for i in batch["example_id"]], object)}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("prefetch", "start"), [(1, 0), (2, 3), (8, 1)])
def test_dataset_in_training(name, prefetch, start):
    stream = _stream(name, host=1, num_hosts=2)
    dataset = as_dataset(stream, start=start, prefetch=prefetch).as_numpy_iterator()
    for i, batch in enumerate(itertools.islice(dataset, 6)):
        _assert_same(_as_text(batch), stream.batch(start + i))


@pytest.mark.parametrize("prefetch", [1, 2, 8])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (2, None), (0, 2), (3, None)])
def test_dataset_in_evaluation(prefetch, start, stop):
    stream = _stream("coco", training=False)
    dataset = as_dataset(stream, start=start, stop=stop, prefetch=prefetch)
    batches = list(dataset.as_numpy_iterator())
    numbers = range(start, 3 if stop is None else stop)
    for number, batch in zip(numbers, batches, strict=True):
        _assert_same(_as_text(batch), stream.batch(number))


@pytest.mark.parametrize("name", TASKS)
def test_dataset_has_static_shapes(name):
    import tensorflow as tf

    stream = _stream(name, num_hosts=3)
    example = stream.batch(0)
    spec = as_dataset(stream).element_spec
    assert spec.keys() == example.keys()
    for key, value in example.items():
        dtype = tf.string if value.dtype == object else value.dtype
        assert spec[key] == tf.TensorSpec(value.shape, dtype), key


def test_dataset_of_half_floats():
    stream = _stream()
    encoding = dataclasses.replace(stream.encoding, feature_dtype=np.float16)
    stream = dataclasses.replace(stream, encoding=encoding)
    batch = next(as_dataset(stream).as_numpy_iterator())
    assert batch["regions"].dtype == np.float16
    _assert_same(_as_text(batch), stream.batch(0))


def test_dataset_of_pretraining_batches():
    """Of regions without classes."""
    reader = memory_split(COUNTS, feature_dim=FEATURE_DIM)
    selection = Selection(reader, np.arange(len(COUNTS)), 5, True)
    stream = PretrainingStream(selection, PRETRAINING, TOKENIZER, FEATURE_DIM, visual_target=2)
    dataset = as_dataset(stream, start=2, stop=7).as_numpy_iterator()
    for number, batch in zip(range(2, 7), dataset, strict=True):
        _assert_same(_as_text(batch), stream.batch(number))


@pytest.mark.parametrize("prefetch", [1, 8])
def test_errors_surface_from_the_dataset(prefetch):
    """After the batches before it, with task and example; nothing waits for ever."""
    import tensorflow as tf

    stream = _stream(training=False, annotation=_label_out_of_range)
    batches = as_dataset(stream, prefetch=prefetch).as_numpy_iterator()
    _assert_same(_as_text(next(batches)), stream.batch(0))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="snli_ve: example example-20: label 7 of 3 classes"
    ):
        next(batches)


def _mixture(**options):
    streams = {"snli_ve": _stream("snli_ve"), "coco": _stream("coco", batch_size=4)}
    return Mixture(streams, **options), streams


PLAN = ["coco", "snli_ve", "coco", "coco", "snli_ve", "coco", "snli_ve", "coco"]


@pytest.mark.parametrize("prefetch", [1, 4])
def test_mixture_follows_its_plan(prefetch):
    mixture, streams = _mixture(prefetch=prefetch)
    assert mixture.positions == {"snli_ve": 0, "coco": 0}
    used = dict.fromkeys(streams, 0)
    followed = mixture.follow(iter(PLAN))
    for wanted, (task, batch) in zip(PLAN, followed, strict=True):
        assert task == wanted
        _assert_same(batch, streams[task].batch(used[task]))
        used[task] += 1
        assert mixture.positions == used


@pytest.mark.parametrize("stopped", [0, 1, 5])
def test_mixture_resumes(stopped):
    whole = [batch for _, batch in _mixture()[0].follow(PLAN)]
    before, _ = _mixture()
    list(before.follow(PLAN[:stopped]))
    after, _ = _mixture(positions=before.positions)
    for got, wanted in zip(after.follow(PLAN[stopped:]), whole[stopped:], strict=True):
        _assert_same(got[1], wanted)


def test_mixture_names_its_tasks():
    mixture, streams = _mixture(positions={"coco": 3})
    assert mixture.positions == {"snli_ve": 0, "coco": 3}
    _assert_same(mixture.next("coco"), streams["coco"].batch(3))
    with pytest.raises(KeyError, match="vqa"):
        mixture.next("vqa")
    with pytest.raises(ValueError, match="positions of unknown tasks: gqa, vqa"):
        _mixture(positions={"vqa": 1, "coco": 0, "gqa": 2})
