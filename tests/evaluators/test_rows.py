"""Evaluation: predictions of every kind of task, the order of examples, devices, and summaries."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from reference.two_stream import Reference

from twelve_in_one.evaluators import rows as evaluation
from twelve_in_one.evaluators.rows import EvalOutput, Outcome
from twelve_in_one.parallel import sharding
from twelve_in_one.systems.vilbert import TRUNK_KEYS, Vilbert
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.metrics import boxes
from twelve_in_one.tasks.task import Task

B, T, R, M = 8, 5, 4, 3
WIDTHS = {"verdict": 2, "region": R, "choice": M}


def task(task_id, kind, head, rows_per_example=1, num_choices=0):
    sizes = dict(max_tokens=T, max_regions=R, batch_size=B, learning_rate=1e-4)
    return Task(
        kind, kind, "G1", task_id, head, kind, rows_per_example, num_choices=num_choices, **sizes
    )


TASKS = {
    one.kind: one
    for one in (
        task(1, "answer", "vqa"),
        task(2, "verdict", "image_pair", rows_per_example=2),
        task(3, "match", "image_text_match", rows_per_example=4),
        task(4, "region", "region_score"),
        task(5, "choice", "region_score", num_choices=M),
    )
}
EVERY_KIND = pytest.mark.parametrize("kind", TASKS)


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(
        text=dict(num_layers=1),
        visual=dict(num_layers=1),
        text_connections=(0,),
        visual_connections=(0,),
        heads=("vqa", "image_pair", "image_text_match", "region_score"),
    )


@pytest.fixture(scope="module")
def params(config, random_params):
    return random_params(config)


@pytest.fixture(scope="module")
def draw(config, random_batch):
    """draw(kind, seed, count): a batch whose first `count` rows are examples."""

    def make(kind, seed=0, count=B):
        one, rng = TASKS[kind], np.random.default_rng(seed)
        k = one.rows_per_example
        rows = random_batch(config, rows=B * k, tokens=T, regions=R, seed=seed)
        del rows["token_types"], rows["task_id"]
        batch = {x: v.reshape(B, k, *v.shape[1:]) if k > 1 else v for x, v in rows.items()}
        batch |= dict(
            task_id=np.int32(one.task_id),
            _mask=np.arange(B) < count,
            example_id=np.array([f"{seed}-{i}" for i in range(B)], object),
        )
        if kind == "match":
            return batch | dict(targets=rng.integers(0, k, B, np.int32))
        width = WIDTHS.get(kind, config.num_vqa_answers)
        targets = rng.uniform(size=(B, width)).astype(np.float32)
        if kind == "choice":
            order = rng.permuted(np.tile(np.arange(R, dtype=np.int32), (B, 1)), axis=1)
            lengths = rng.integers(1, M + 1, (B, 1))
            batch |= dict(choices=order[:, :M], choice_mask=np.arange(M) < lengths)
            # A choice on a padded region would leave rows without any choice.
            batch["region_mask"] = np.ones((B, R), bool)
        return batch | dict(targets=targets)

    return make


@pytest.fixture(scope="module")
def step(config):
    """step(kind, mesh, layout): compiled as the evaluator does it."""

    @functools.cache
    def compiled(kind, mesh=None, layout=""):
        del mesh, layout  # what a jitted function compiles to depends on them
        return jax.jit(evaluation.make_eval_step(Vilbert(config), TASKS[kind]))

    return compiled


def arrays(batch):
    return {key: value for key, value in batch.items() if key != "example_id"}


# ------------------------------------------------------------------------------ one batch


def candidates(one, logits, batch, b):
    """{index: (logit, score)} of everything that example b may predict."""
    y = batch["targets"][b]
    if one.kind in ("answer", "verdict"):
        return {i: (x, y[i]) for i, x in enumerate(logits[b])}
    if one.kind == "match":
        return {i: (x, float(i == y)) for i, x in enumerate(logits[4 * b : 4 * b + 4])}
    if one.kind == "region":
        real = np.flatnonzero(batch["region_mask"][b])
        return {i: (logits[b][i], float(y[i] > 0.5)) for i in real}
    real = np.flatnonzero(batch["choice_mask"][b])
    right = max(real, key=lambda i: y[i])
    return {i: (logits[b][batch["choices"][b][i]], float(i == right)) for i in real}


def test_a_model_that_scores_all_alike_matches_nothing(config, params, draw, step):
    head = jax.tree.map(np.zeros_like, params["heads"]["image_text_match"])
    blind = params | {"heads": params["heads"] | {"image_text_match": head}}
    batch = draw("match") | {"targets": np.zeros(B, np.int32)}
    assert not np.asarray(step("match")(blind, arrays(batch)).score).any()


@EVERY_KIND
def test_what_a_row_predicts(kind, config, params, draw, step):
    one, count = TASKS[kind], B - 2
    batch = draw(kind, count=count)
    inputs = {name: batch[name] for name in TRUNK_KEYS}
    if one.rows_per_example > 1:
        inputs = {name: np.concatenate(list(x)) for name, x in inputs.items()}
    tokens = inputs["tokens"]
    inputs |= dict(token_types=np.zeros_like(tokens), task_id=np.full(len(tokens), one.task_id))
    logits = Reference(config, params)(**inputs)[0][one.head]
    got = jax.device_get(step(kind)(params, arrays(batch)))
    for b in range(count):
        found = candidates(one, logits, batch, b)
        best = max(found, key=lambda i: found[i][0])
        assert got.prediction[b] == best
        assert got.score[b] == np.float32(found[best][1])
        assert got.oracle[b] == np.float32(max(score for _, score in found.values()))
        values = {i: np.exp(x) for i, (x, _) in found.items()}
        total = sum(values.values()) if kind == "match" else 1 + values[best]
        np.testing.assert_allclose(got.confidence[b], values[best] / total, rtol=1e-4)
    assert not got.score[count:].any() and not got.oracle[count:].any()
    assert got.sums.count == count
    np.testing.assert_allclose(got.sums.score, got.score.sum(), rtol=1e-6)


# ------------------------------------------------------------------------------ a stream


def stream_of(draw, kind, examples):
    """Batches of the examples, of which the last has padding."""
    return [
        draw(kind, seed=n, count=min(B, examples - start))
        for n, start in enumerate(range(0, examples, B))
    ]


def evaluated(step, params, batches, kind, devices, layout="dp", model=1, **options):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices], model=model)
    place = functools.partial(sharding.shard_batch, mesh=mesh)
    with sharding.use(mesh, layout):
        compiled = step(kind, mesh, layout)
        placed = jax.device_put(params, sharding.replicated(mesh))
        return evaluation.evaluate_stream(compiled, placed, batches, place, **options)


EXAMPLES = 5 * B + 3


@pytest.mark.parametrize("kind", ["region", "match"])
@pytest.mark.parametrize(("devices", "layout", "model"), [(8, "dp", 1), (4, "fsdp_tp", 2)])
def test_devices_make_no_difference(kind, devices, layout, model, params, draw, step):
    batches = stream_of(draw, kind, EXAMPLES)
    one = evaluated(step, params, batches, kind, 1)
    many = evaluated(step, params, batches, kind, devices, layout, model)
    assert one.example_ids == many.example_ids
    assert one.example_ids == tuple(f"{i // B}-{i % B}" for i in range(EXAMPLES))
    for field in ("prediction", "score", "oracle"):
        np.testing.assert_array_equal(getattr(one, field), getattr(many, field))
    np.testing.assert_allclose(one.confidence, many.confidence, rtol=1e-4)
    assert one.loss == pytest.approx(many.loss, rel=1e-5)


@pytest.mark.parametrize("limit", [1, B - 1, B, B + 1, 3 * B, EXAMPLES, 10 * EXAMPLES])
def test_only_the_first_examples(limit, params, draw, step):
    batches = stream_of(draw, "answer", EXAMPLES)
    whole = evaluated(step, params, batches, "answer", 8)
    drawn = []
    watched = (drawn.append(1) or batch for batch in batches)
    part = evaluated(step, params, watched, "answer", 8, max_examples=limit)
    count = min(limit, EXAMPLES)
    assert part.examples == count and len(drawn) == -(-count // B)
    assert part.example_ids == whole.example_ids[:count]
    np.testing.assert_array_equal(part.score, whole.score[:count])
    # The loss, too, is that of these examples.
    exact = [
        dict(batch, _mask=batch["_mask"] & (n * B + np.arange(B) < limit))
        for n, batch in enumerate(batches[: len(drawn)])
    ]
    assert part.loss == evaluated(step, params, exact, "answer", 8).loss


def test_progress_and_ids_as_bytes(params, draw, step):
    batches = stream_of(draw, "answer", EXAMPLES)
    for batch in batches:
        batch["example_id"] = np.array([i.encode() for i in batch["example_id"]], object)
    calls = []
    outcome = evaluated(step, params, batches, "answer", 8, progress=calls.append)
    assert calls == [B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B]
    assert outcome.example_ids[0] == "0-0"


def test_results_are_fetched_late(params, draw, step, monkeypatch):
    """The host makes further batches while the devices work."""
    monkeypatch.setattr(sharding, "max_in_flight", lambda: 4)  # as on accelerators
    events = []

    def batches():
        for batch in stream_of(draw, "answer", EXAMPLES):
            events.append("made")
            yield batch

    evaluated(step, params, batches(), "answer", 8, progress=lambda _: events.append("fetched"))
    assert events[:5] == ["made"] * 5
    assert events.count("fetched") == events.count("made") == 6


def test_nothing_to_evaluate(params, draw, step):
    for batches in ([], [draw("answer", count=0)]):
        with pytest.raises(ValueError, match="no examples"):
            evaluated(step, params, batches, "answer", 8)


def test_weights_that_are_not_numbers(params, draw, step):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    with pytest.raises(ValueError, match=r"of 11 examples, first 0-0 are not finite"):
        evaluated(step, broken, stream_of(draw, "answer", 11), "answer", 8)


def test_processes_take_turns_in_a_batch(monkeypatch):
    """Rows of two processes, gathered, come back in the order of the stream."""

    def part(host):
        # 2 batches of 4 rows, 2 a process; the last row is padding
        ids = [[f"{4 * n + 2 * host + i}" for i in range(2)] for n in range(2)]
        numbers = [[float(i) for i in row] for row in ids]
        keys = dict.fromkeys(("prediction", "score", "confidence", "oracle"), numbers)
        return {"example_ids": ids, "mask": [[int(i) != 7 for i in row] for row in ids]} | keys

    monkeypatch.setattr(evaluation.processes, "gather", lambda own: [part(0), part(1)])
    sums = Sums(*map(np.float32, (14.0, 0.0, 7.0)))
    output = EvalOutput(sums, *(np.zeros(2, np.float32) for _ in range(4)))
    batch = {"example_id": ["0", "1"], "_mask": np.ones(2, bool)}
    outcome = evaluation.evaluate_stream(
        lambda params, placed: jax.tree.map(jax.numpy.asarray, output),
        None,
        [batch],
        lambda inputs: jax.tree.map(jax.numpy.asarray, inputs),
    )
    assert outcome.example_ids == tuple("0123456")
    np.testing.assert_array_equal(outcome.score, np.arange(7))
    assert outcome.loss == 2.0


# ------------------------------------------------------------------------------ summaries


def outcome(scores, *, ids=None, oracle=None, loss=0.5):
    scores = np.array(scores, np.float32)
    ids = tuple(ids or map(str, range(len(scores))))
    oracle = np.ones_like(scores) if oracle is None else np.array(oracle, np.float32)
    blank = np.zeros(len(scores))
    return Outcome(ids, blank.astype(np.int32), scores, blank, oracle, loss)


def test_the_score_of_regions_is_the_official_one():
    """Also where an overlap is exactly one half, which is not enough."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (B, R, 2))
    found = np.concatenate([low, low + rng.uniform(5, 50, (B, R, 2))], axis=-1).astype(np.float32)
    found[0] = (0, 0, 9, 19)  # whichever is taken shares half of what is meant
    reference = found[:, 1].copy()
    reference[0] = (0, 0, 9, 9)
    logits = rng.normal(size=(B, R)).astype(np.float32)
    mask = np.arange(R) < 2 + np.arange(B)[:, None] % 3
    rows = np.arange(B) < B - 1
    overlap = boxes.iou(found, reference[:, None])
    assert overlap[0].tolist() == [0.5] * R
    batch = {"targets": np.where(mask, overlap, 0), "region_mask": mask, "_mask": rows}
    _, score, _, _ = evaluation._judged(
        KINDS["region"], KINDS["region"].candidates(TASKS["region"], logits, batch), rows
    )
    right, count = boxes.referring_accuracy(logits, found, reference, mask, rows)
    assert 0 < right < count == B - 1
    assert float(score.sum()) == right and score[0] == 0


def test_soft_accuracy_and_vocabulary():
    found = evaluation.summarise(TASKS["answer"], outcome([0.3, 1, 0, 0], oracle=[1, 1, 0.6, 0]))
    assert found == {
        "score": pytest.approx(0.325),
        "metric": "soft accuracy",
        "loss": 0.5,
        "examples": 4,
        "metrics": {
            "accuracy": pytest.approx(0.325),
            "vocabulary_recall": pytest.approx(0.65),
        },
    }


@pytest.mark.parametrize("overlap, credit", [(0.5, 0), (np.nextafter(np.float32(0.5), 1), 1)])
def test_half_an_overlap_is_not_enough(overlap, credit, params, draw, step):
    batch = draw("region") | {"targets": np.full((B, R), overlap, np.float32)}
    found = step("region")(params, arrays(batch))
    np.testing.assert_array_equal(found.score, np.full(B, credit))
    np.testing.assert_array_equal(found.oracle, np.full(B, credit))


@pytest.mark.parametrize("protocol", ["detected", "annotated"])
def test_regions_name_their_protocol(protocol):
    found = evaluation.summarise(
        TASKS["region"], outcome([1, 0, 0, 0], oracle=[1, 1, 1, 0]), candidates=protocol
    )
    assert (found["score"], found["protocol"]) == (0.25, protocol)
    assert found["metrics"]["oracle_recall"] == 0.75
    assert ("annotated" in found["metric"]) == (protocol == "annotated")


def test_consistency_goes_by_sentence():
    """Sentence 0 of group 7 is right on all three of its pairs, sentence 1 on one of two.

    By pair it would be a third, by group none.
    """
    ids = ["test1-7-0-0", "test1-7-1-0", "test1-7-2-0", "test1-7-0-1", "test1-7-1-1"]
    nlvr2 = dataclasses.replace(TASKS["verdict"], name="nlvr2")
    found = evaluation.summarise(nlvr2, outcome([1, 0, 1, 1, 1], ids=ids))
    assert found["metrics"] == {"accuracy": pytest.approx(0.8), "consistency": 0.5}
    found = evaluation.summarise(nlvr2, outcome([1, 1, 1, 0, 0], ids=ids))
    assert found["metrics"] == {"accuracy": pytest.approx(0.6), "consistency": 0.5}


@pytest.mark.parametrize("kind", ["answer", "verdict"])
def test_without_public_answers_there_is_no_score(kind):
    ids = ["a-0-0-0", "a-0-0-1"]
    found = evaluation.summarise(
        TASKS[kind], outcome([0, 0], ids=ids, oracle=[0, 0]), answered=False
    )
    assert found["score"] is None and found["loss"] is None
    assert found["examples"] == 2 and not found["metrics"]


@pytest.mark.parametrize("kind", ["answer", "region"])
def test_wrong_is_not_unknown(kind):
    """Who could never be right scores 0."""
    found = evaluation.summarise(TASKS[kind], outcome([0, 0], oracle=[0, 0]))
    assert found["score"] == 0


def test_four_ways():
    found = evaluation.summarise(TASKS["match"], outcome([1, 0]))
    assert (found["metric"], found["score"]) == ("4-way accuracy", 0.5)
    assert found["metrics"] == {"accuracy": 0.5}
    found = evaluation.summarise(dataclasses.replace(TASKS["choice"]), outcome([1, 1]))
    assert (found["metric"], found["score"]) == ("accuracy", 1.0)


# ------------------------------------------------------------------------------ processes

_WORKER = """
import functools, json, sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)
port, process, out = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
from twelve_in_one.data.encode.retrieval import RetrievalSet
from twelve_in_one.evaluators import retrieval, rows as evaluation
from twelve_in_one.parallel import sharding
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.metrics import boxes
mesh = sharding.make_mesh()
B, E = 8, 19
def step(params, batch):
    x = batch["x"] * params
    sums = Sums(x.sum(), x.sum(), batch["_mask"].sum().astype("float32"))
    rows = (sharding.constrain(y, None) for y in (x.astype("int32"), x, x, x))
    return evaluation.EvalOutput(sums, *rows)
def batches():
    for n in range(0, E, B):
        rows = n + 4 * int(process) + np.arange(4)
        yield {"x": np.where(rows < E, rows, 0).astype("float32"), "_mask": rows < E,
               "example_id": np.array([str(i) for i in rows], object)}
def pairs(params, captions, images, task_id):
    x, y = captions["tokens"][:, 0], images["regions"][:, 0, 0]
    return sharding.constrain(x[:, None] * 100 + y[None] * params, None, None)
count, N = 13, 5
candidates = RetrievalSet(
    {"tokens": np.arange(count, dtype="float32")[:, None]},
    {"regions": np.arange(N, dtype="float32")[:, None, None]},
    np.arange(count) % N, np.int32(7), tuple(map(str, range(count))), tuple(map(str, range(N))))
with sharding.use(mesh, "dp"):
    params = jax.device_put(np.float32(2), sharding.replicated(mesh))
    place = functools.partial(sharding.shard_batch, mesh=mesh)
    found = evaluation.evaluate_stream(jax.jit(step), params, batches(), place)
    first = evaluation.evaluate_stream(jax.jit(step), params, batches(), place, max_examples=11)
    ranked = retrieval.rank(jax.jit(pairs), params, candidates, mesh, captions=6, images=3)
result = {"ids": found.example_ids, "score": found.score.tolist(), "loss": found.loss,
          "first": first.example_ids, "scores": ranked.scores.tolist()}
json.dump(result, open(out, "w"))
"""


def test_two_processes(tmp_path):
    """Both end with all results, in order, the last batch being filled up on the second one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(evaluation.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    outs = [tmp_path / f"{process}.json" for process in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, port, str(process), str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, out in enumerate(outs)
    ]
    for worker in workers:
        _, error = worker.communicate(timeout=240)
        assert worker.returncode == 0, error[-2000:]
    found = [json.loads(out.read_text()) for out in outs]
    assert found[0] == found[1]
    assert found[0]["ids"] == [str(i) for i in range(19)]
    assert found[0]["first"] == found[0]["ids"][:11]
    assert found[0]["score"] == [2.0 * i for i in range(19)]
    assert found[0]["loss"] == pytest.approx(18.0)
    expected = 100 * np.arange(13)[:, None] + 2 * np.arange(5)
    np.testing.assert_array_equal(found[0]["scores"], expected)
