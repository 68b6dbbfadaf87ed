"""The scores of a model on a task: predictions for every example, and summary measures.

`make_eval_step` runs on the devices, `evaluate_stream` applies it to a whole split, `summarise`
turns the outcome into the usual measures. Retrieval over all candidates is in `retrieval.py`, the
complete evaluation in `suite.py`. Letters as in `tasks/task.py`; E examples.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.parallel import processes, sharding
from twelve_in_one.parallel.placement import HOST_ONLY
from twelve_in_one.systems.base import System
from twelve_in_one.tasks.kinds import KINDS, Candidates, Kind
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.task import Task

Batch = Mapping[str, Any]
EvalStep = Callable[[Any, Any], "EvalOutput"]


class EvalOutput(NamedTuple):
    """The output for one batch; padding rows score 0.

    Attributes:
      sums: over the rows that count.
      prediction: int32[B], label, option, region or choice (its slot among the M choices); of kind
        "pretraining" 1 where the caption seems to belong to another image. Masked slots are never
        chosen.
      score: float32[B], of the prediction.
      confidence: float32[B], probability of the prediction by the model: softmax of kinds "match"
        and "pretraining", else a sigmoid, as in the loss.
      oracle: float32[B], the best score of any possible prediction.
    """

    sums: Sums
    prediction: jax.Array
    score: jax.Array
    confidence: jax.Array
    oracle: jax.Array


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An evaluation, the same on every process; examples in the order of the stream.

    Attributes:
      example_ids: E ids.
      prediction: int32[E], see `EvalOutput`, also for the next three.
      score: float32[E].
      confidence: float32[E].
      oracle: float32[E].
      loss: mean over the examples.
      parts: mean loss and mean score of each part, of a loss of several parts.
    """

    example_ids: tuple[str, ...]
    prediction: np.ndarray
    score: np.ndarray
    confidence: np.ndarray
    oracle: np.ndarray
    loss: float
    parts: tuple[tuple[float, float], ...] = ()

    @property
    def examples(self) -> int:
        """E."""
        return len(self.example_ids)


def make_eval_step(system: System, task: Task) -> EvalStep:
    """Predicts one batch without dropout, as a function of (params, batch), to be jitted.

    Within `sharding.use` every device holds all of the output, so that every process can read it.

    Args:
      system: the model.
      task: the task of the batches; static, so that only its head is compiled.
    """
    judge, kind = system.judge(task), KINDS[task.kind]

    def eval_step(params: Any, batch: Batch) -> EvalOutput:
        sums, candidates = judge(params, batch)
        rows = (sharding.constrain(x, None) for x in _judged(kind, candidates, batch["_mask"]))
        return EvalOutput(sums, *rows)

    return eval_step


def _judged(
    kind: Kind, candidates: Candidates, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Prediction, score, confidence and oracle of every row; see `EvalOutput`."""
    logits, credit, real = candidates
    if real is not None:
        logits = jnp.where(real, logits, -jnp.inf)
    credit = jnp.where(mask[:, None], credit, 0).astype(jnp.float32)
    best = jnp.argmax(logits, axis=1).astype(jnp.int32)
    if kind.right_first:  # among candidates with equal scores a wrong one is taken
        others = jnp.where(credit > 0, -jnp.inf, logits)
        wrong = jnp.argmax(others, axis=1).astype(jnp.int32)
        best = jnp.where(jnp.max(logits, axis=1) > jnp.max(others, axis=1), best, wrong)
    probability = jax.nn.softmax(logits) if kind.softmax else jax.nn.sigmoid(logits)

    def chosen(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, best[:, None], axis=1)[:, 0]

    return best, chosen(credit), chosen(probability), jnp.max(credit, axis=1)


class Collected(NamedTuple):
    """The outputs for the examples of a stream, in its order, the same on every process.

    Attributes:
      example_ids: E ids.
      columns: field of the step's output -> array [E, ...].
      totals: float64[3, parts], sums of loss, score and count.
    """

    example_ids: tuple[str, ...]
    columns: dict[str, np.ndarray]
    totals: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """float64[2, parts], mean loss and mean score."""
        return self.totals[:2] / np.maximum(self.totals[2], 1)


def collect(
    eval_step: Callable[[Any, Any], Any],
    params: Any,
    stream: Iterable[Batch],
    place: Callable[[Batch], Any],
    *,
    max_examples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Collected:
    """Runs an evaluation. With several processes, all of them make the same call.

    Batches are sent ahead and results fetched late, so that devices and host work in parallel;
    the processes synchronise once, at the end.

    Args:
      eval_step: (params, batch) -> a named tuple of "sums" and of arrays with one row per example,
        compiled; every device holds its whole output.
      params: of the model, on the devices.
      stream: this process's rows of every batch, as a `TaskStream` not for training yields them:
        rows p * B / P to (p + 1) * B / P for process p of P.
      place: makes global arrays of them, see `sharding.shard_batch`.
      max_examples: number of first examples to use; 0 for all.
      progress: called with the number of rows done.

    Raises:
      ValueError: no examples, a loss that is not finite, or a process that does not hold as many
        rows as it gave.
    """
    host, hosts = jax.process_index(), jax.process_count()
    waiting: collections.deque[tuple[list[str], np.ndarray, np.ndarray, Any]] = collections.deque()
    ids: list[list[str]] = []
    columns: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    totals = np.zeros((3, 1))  # of `Sums`, becomes [3, parts]

    def fetch() -> None:
        nonlocal totals
        names, mask, own, output = waiting.popleft()
        sums, *rows = jax.device_get(tuple(output))
        totals = totals + np.stack([np.ravel(x).astype(np.float64) for x in sums])
        ids.append(names)
        columns["mask"].append(mask)
        for name, values in zip(output._fields[1:], rows, strict=True):
            columns[name].append(values[own])
        if progress:
            progress(len(ids) * len(names) * hosts)

    for number, batch in enumerate(stream):
        rows = len(batch["example_id"])
        inputs = {key: value for key, value in batch.items() if key != HOST_ONLY}
        if max_examples:
            first = (number * hosts + host) * rows
            inputs["_mask"] = inputs["_mask"] & (first + np.arange(rows) < max_examples)
        placed = place(inputs)
        output = eval_step(params, placed)
        with jax.transfer_guard_device_to_host("allow"):  # which takes this for an accident
            for leaf in jax.tree.leaves(output):
                leaf.copy_to_host_async()
        # Texts that come through TensorFlow are bytes.
        names = [i.decode() if isinstance(i, bytes) else str(i) for i in batch["example_id"]]
        waiting.append((names, inputs["_mask"], _own_rows(placed["_mask"], rows), output))
        if len(waiting) > sharding.max_in_flight():
            fetch()
        if max_examples and (number + 1) * hosts * rows >= max_examples:
            break
    while waiting:
        fetch()
    own = {"example_ids": ids} | {key: np.stack(x).tolist() for key, x in columns.items() if x}
    return _joined(processes.gather(own), {k: x[0].dtype for k, x in columns.items()}, totals)


def evaluate_stream(
    eval_step: EvalStep,
    params: Any,
    stream: Iterable[Batch],
    place: Callable[[Batch], Any],
    *,
    max_examples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Evaluates a stream with a step of `make_eval_step`; see `collect`.

    Raises:
      ValueError: see `collect`; or outputs that are not finite.
    """
    found = collect(eval_step, params, stream, place, max_examples=max_examples, progress=progress)
    return _outcome(found)


def _own_rows(placed: jax.Array, rows: int) -> np.ndarray:
    """Positions of this process's rows in the global batch, in the order given.

    A mesh may put the devices of a process anywhere along the data axis.
    """
    starts = {shard.index[0].start or 0: len(shard.data) for shard in placed.addressable_shards}
    own = np.concatenate([start + np.arange(starts[start]) for start in sorted(starts)])
    if len(own) != rows:
        raise ValueError(
            f"this process gave {rows} rows of a batch and holds {len(own)}: the mesh's data axis "
            "must be at least as long as there are processes"
        )
    return own


def _joined(
    parts: list[dict[str, Any]], dtypes: Mapping[str, Any], totals: np.ndarray
) -> Collected:
    """Puts the rows of all processes, batch by batch, into the order of the stream."""
    if len({len(part["example_ids"]) for part in parts}) > 1:
        raise ValueError(f"processes made {[len(part['example_ids']) for part in parts]} batches")
    if not np.any(totals[2]):
        raise ValueError("nothing to evaluate: the stream has no examples")

    def joined(key: str, dtype: Any) -> np.ndarray:
        # P of [batches, rows, ...] -> [batches, P, rows, ...] -> [flat, ...]
        stacked = np.stack([np.array(part[key], dtype) for part in parts], axis=1)
        count = stacked.shape[0] * stacked.shape[1] * stacked.shape[2]
        return stacked.reshape(count, *stacked.shape[3:])

    kept = joined("mask", bool)
    columns = {name: joined(name, dtype)[kept] for name, dtype in dtypes.items() if name != "mask"}
    return Collected(tuple(joined("example_ids", object)[kept]), columns, totals)


def _outcome(found: Collected) -> Outcome:
    means, confidence = found.means, found.columns["confidence"]
    loss = float(means[0].sum())
    broken = np.flatnonzero(~np.isfinite(confidence))
    if broken.size or not np.isfinite(loss):
        which = f", first {found.example_ids[broken[0]]}" if broken.size else ""
        raise ValueError(
            f"the model's outputs of {broken.size} examples{which} are not finite (mean loss "
            f"{loss}): its weights are not usable"
        )
    parts = tuple(map(tuple, means.T.tolist())) if means.shape[1] > 1 else ()
    return Outcome(found.example_ids, **found.columns, loss=loss, parts=parts)


def summarise(
    task: Task, outcome: Outcome, *, candidates: str = "detected", answered: bool = True
) -> dict[str, Any]:
    """The training measures of a task; all but the loss are shares in [0, 1].

    The figures of each benchmark's own program are in `official.py`.

    | kind | score | further |
    |---|---|---|
    | answer | soft accuracy; an answer outside the vocabulary counts as wrong | vocabulary_recall |
    | region | share of predicted boxes with IoU > 0.5 | oracle_recall |
    | choice | accuracy | |
    | verdict | accuracy; wrong without a gold label | consistency (NLVR2) |
    | match | accuracy among four, for validation; the test is in `retrieval.py` | |
    | pretraining | share of masked words that are right | loss and score of every part |

    Oracle and vocabulary recall are the scores of the best prediction: a detector may have
    missed a box, and the vocabulary may lack an answer.

    Args:
      task: the evaluated task.
      outcome: of the evaluation.
      candidates: the boxes that tasks of kind "region" choose from, "detected" or "annotated";
        scores of the two protocols are not comparable.
      answered: whether the answers are known; those of some tests are not public.

    Returns:
      {"score", "metric", "loss", "examples", "metrics": {name: value}}, and "protocol" (the
      candidates) of kind "region". Without answers, score and loss are None.
    """
    kind = KINDS[task.kind]
    result = {"score": None, "metric": "accuracy", "loss": None, "examples": outcome.examples}
    if not answered:
        return result | {"metrics": {}}
    further = kind.further(task, outcome)
    score = outcome.parts[0][1] if outcome.parts else _mean(outcome.score)
    result |= {"score": score, "metric": kind.metric(task, candidates), "loss": outcome.loss}
    if kind.protocols:
        result["protocol"] = candidates
    return result | {"metrics": further if outcome.parts else {"accuracy": score} | further}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))
