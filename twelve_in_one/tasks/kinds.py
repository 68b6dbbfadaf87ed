"""The differences between kinds of tasks, as one table: loss, prediction, measures and meaning.

Other layers have their own tables by kind, beside the code that they need: targets in
`data/encode/examples.py`, official figures in `evaluators/official.py`. Letters as in
`tasks/task.py`; C candidates of a prediction, E examples.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS
from twelve_in_one.tasks import losses, pretraining
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.metrics.boxes import is_right

Name = Literal[
    "answer",
    "verdict",
    "match",
    "region",
    "choice",
    "pretraining",
    "class",
    "text",
    "pairs",
    "names",
    "boxes",
]
Batch = Mapping[str, Any]
Outputs = Mapping[str, jax.Array]


class _Task(Protocol):
    """The fields of a `tasks.task.Task` that are read here."""

    name: str
    head: str
    rows_per_example: int
    heads: tuple[str, ...]


class _Outcome(Protocol):
    """The fields of an `evaluators.rows.Outcome` that are read here."""

    example_ids: tuple[str, ...]
    score: np.ndarray
    oracle: np.ndarray
    parts: tuple[tuple[float, float], ...]


class Candidates(NamedTuple):
    """Candidates of a prediction.

    Attributes:
      logits: [B, C].
      credit: float or bool[B, C], the score that each would get.
      real: bool[B, C], which of them may be chosen; None if all may.
    """

    logits: jax.Array
    credit: jax.Array
    real: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
      loss: (task, outputs of its heads, batch) -> loss and score; None if the system has its own.
      candidates: (task, output of its head, batch) -> candidates of a prediction; None if texts
        are generated.
      meaning: of the head's scores, for people; "{head}" becomes its name.
      metric: (task, candidates that the run names) -> name of the score.
      further: (task, outcome) -> further measures, shares in [0, 1].
      softmax: probabilities are a softmax over the candidates, otherwise a sigmoid of each.
      right_first: candidate 0 is the right one, so a tie counts as wrong.
      count: batch -> divisor of the loss, `Sums.count` of `loss`; number of rows if None.
      heads: all heads read, if more than the task's own.
      noun: name of its labels, "answer" or "label"; "" if predictions have no names.
      located: predictions are boxes of the picture.
      protocols: the run chooses the candidates (`TaskOptions.candidates`), and numbers of
        the two protocols cannot be compared.
      choices: chooses among annotated boxes, `num_choices` of them.
      pretrains: on pairs of picture and caption, as the only task.
      ranked: tested by ranking all candidates of a split for every query, not row by row.
      blind: chance, majority and words can be scored, see `data.text_baselines`.
      generated: predictions are texts, and `evaluators.texts` scores them.
      embedded: predictions come from vectors of pictures and of texts, and
        `evaluators.embeddings` scores them.
      detected: predictions are boxes with classes, and `evaluators.detections` scores them.
    """

    loss: Callable[[_Task, Outputs, Batch], Sums] | None
    candidates: Callable[[_Task, jax.Array, Batch], Candidates] | None
    meaning: str
    metric: Callable[[_Task, str], str] = lambda task, candidates: "accuracy"
    further: Callable[[_Task, _Outcome], dict[str, float]] = lambda task, outcome: {}
    softmax: bool = False
    right_first: bool = False
    count: Callable[[Batch], jax.Array] | None = None
    heads: tuple[str, ...] = ()
    noun: str = ""
    located: bool = False
    protocols: bool = False
    choices: bool = False
    pretrains: bool = False
    ranked: bool = False
    blind: bool = True
    generated: bool = False
    embedded: bool = False
    detected: bool = False


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))


def _answer_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    return losses.answer_loss(outputs[task.head], batch["targets"], batch["_mask"])


def _verdict_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    return losses.verdict_loss(outputs[task.head], batch["targets"], batch["_mask"])


def _labels(task: _Task, logits: jax.Array, batch: Batch) -> Candidates:
    return Candidates(logits, batch["targets"])


def _options(task: _Task, logits: jax.Array) -> jax.Array:
    """[B * k] -> [B, k]."""
    return logits.reshape(-1, task.rows_per_example)


def _match_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    logits = _options(task, outputs[task.head])
    return losses.match_loss(logits, batch["targets"], batch["_mask"])


def _matches(task: _Task, logits: jax.Array, batch: Batch) -> Candidates:
    options = _options(task, logits)
    return Candidates(options, jax.nn.one_hot(batch["targets"], options.shape[1]))


def _region_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    real = batch["region_mask"]
    return losses.region_loss(outputs[task.head], batch["targets"], real, batch["_mask"])


def _regions(task: _Task, logits: jax.Array, batch: Batch) -> Candidates:
    real = batch["region_mask"]
    return Candidates(logits, is_right(batch["targets"]) & real, real)


def _real_choices(batch: Batch) -> jax.Array:
    """bool[B, M]."""
    real = jnp.take_along_axis(batch["region_mask"], batch["choices"], axis=1)
    return real & batch["choice_mask"]


def _choice_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    real, choices = _real_choices(batch), batch["choices"]
    return losses.choice_loss(outputs[task.head], batch["targets"], choices, real, batch["_mask"])


def _choices(task: _Task, logits: jax.Array, batch: Batch) -> Candidates:
    real, targets = _real_choices(batch), batch["targets"]
    right = jnp.argmax(jnp.where(real, targets, -jnp.inf), axis=1)
    logits = jnp.take_along_axis(logits, batch["choices"], axis=1)
    return Candidates(logits, jax.nn.one_hot(right, targets.shape[1]), real)


def _class_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    return losses.match_loss(outputs[task.head], batch["targets"], batch["_mask"])


def _classes(task: _Task, logits: jax.Array, batch: Batch) -> Candidates:
    return Candidates(logits, jax.nn.one_hot(batch["targets"], logits.shape[1]))


def _pretraining_loss(task: _Task, outputs: Outputs, batch: Batch) -> Sums:
    return pretraining.loss(outputs, batch)


def _alignments(task: _Task, logits: jax.Array, batch: Batch) -> Candidates:
    return Candidates(logits, jax.nn.one_hot(batch["is_misaligned"], 2))


def _verdict_measures(task: _Task, outcome: _Outcome) -> dict[str, float]:
    return {"consistency": _consistency(outcome)} if task.name == "nlvr2" else {}


def _consistency(outcome: _Outcome) -> float:
    """Share of NLVR2's sentences with a correct verdict on all their pairs of pictures.

    An identifier is split-number-pair-sentence; without the pair it identifies the sentence
    (NLVR2's evaluation script).
    """
    right: dict[tuple[str, ...], bool] = {}
    for example_id, score in zip(outcome.example_ids, outcome.score, strict=True):
        parts = example_id.split("-")
        sentence = (*parts[:-2], parts[-1])
        right[sentence] = right.get(sentence, True) and score == 1
    return sum(right.values()) / len(right)


def _parts(task: _Task, outcome: _Outcome) -> dict[str, float]:
    found: dict[str, float] = {}
    for head, (loss, score) in zip(task.heads, outcome.parts, strict=True):
        found |= {f"{head}_loss": loss, f"{head}_score": score}
    return found


KINDS: Mapping[str, Kind] = {
    "answer": Kind(
        _answer_loss,
        _labels,
        "scores of answers-{head}.json in its order; columns beyond it have no answer",
        metric=lambda task, candidates: "soft accuracy",
        further=lambda task, outcome: {"vocabulary_recall": _mean(outcome.oracle)},
        noun="answer",
    ),
    "verdict": Kind(
        _verdict_loss, _labels, "scores of the verdicts", further=_verdict_measures, noun="label"
    ),
    "match": Kind(
        _match_loss,
        _matches,
        "how well each caption fits each image",
        metric=lambda task, candidates: f"{task.rows_per_example}-way accuracy",
        softmax=True,
        right_first=True,
        ranked=True,
        blind=False,  # without the picture all images are equal
    ),
    "region": Kind(
        _region_loss,
        _regions,
        "scores of the regions, also of padding",
        metric=lambda task, candidates: (
            "accuracy" if candidates == "detected" else f"accuracy, {candidates}"
        ),
        further=lambda task, outcome: {"oracle_recall": _mean(outcome.oracle)},
        located=True,
        protocols=True,
    ),
    "choice": Kind(
        _choice_loss,
        _choices,
        "scores of the regions, also of padding and of those that are no choice",
        located=True,
        choices=True,
    ),
    "pretraining": Kind(
        _pretraining_loss,
        _alignments,
        "scores of whether the text belongs to the image",
        metric=lambda task, candidates: "masked words",
        further=_parts,
        softmax=True,
        count=pretraining.counts,
        heads=PRETRAINING_HEADS,
        pretrains=True,
        blind=False,  # there are no questions
    ),
    "class": Kind(
        _class_loss,
        _classes,
        "scores of labels-{head}.json in its order",
        metric=lambda task, candidates: "top-1",
        softmax=True,
        noun="label",
    ),
    "text": Kind(None, None, "log-probabilities of tokens", generated=True),
    "pairs": Kind(
        None,
        None,
        "similarities of pictures and captions",
        metric=lambda task, candidates: "R@1",
        blind=False,  # without the picture all are equal
        embedded=True,
    ),
    "boxes": Kind(
        None,
        None,
        "boxes of classes with scores",
        metric=lambda task, candidates: "AP",
        blind=False,  # without the picture there are no boxes
        detected=True,
    ),
    "names": Kind(
        None,
        None,
        "similarities of pictures and names of classes",
        metric=lambda task, candidates: "top-1",
        embedded=True,
    ),
}


def batch_count(kind: Kind, batch: Batch) -> jax.Array:
    """The divisor of a batch's loss: `Sums.count` of the loss, known before it."""
    if kind.count is not None:
        return kind.count(batch)
    return jnp.sum(batch["_mask"], dtype=jnp.float32)
