"""A task as data: which head it reads, which loss it trains, and the shapes of its batches.

A batch is a dict (B examples; k trunk rows an example, the axis present only where k > 1):

* tokens int32[B, (k,) T], token_mask bool[B, (k,) T]
* regions float[B, (k,) R, F] (region 0 is the mean of the image's regions),
  boxes float32[B, (k,) R, 5], region_mask bool[B, (k,) R]
* task_id int32[]
* _mask bool[B], False for rows that only fill the batch up
* targets, by kind of task:
  "answer" float[B, L] soft scores; "verdict" float[B, L] one-hot; "match" int32[B] the option that
  fits; "region" float[B, R] IoU; "choice" float[B, M] IoU with choices int32[B, M] (regions) and
  choice_mask bool[B, M]. Kind "pretraining" has no targets but what `data/pretraining.py` lists.

Batches made from datasets also carry example_id str[B], for the host only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS
from twelve_in_one.tasks import losses, pretraining

Kind = Literal["answer", "verdict", "match", "region", "choice", "pretraining"]
Group = Literal["G1", "G2", "G3", "G4", "pretraining"]
TRUNK_KEYS = ("tokens", "token_mask", "regions", "boxes", "region_mask")
# Labels of the heads of kind "verdict" that the released code has, in their order.
VERDICTS: Mapping[str, tuple[str, ...]] = {
    "image_pair": ("False", "True"),
    "three_way": ("contradiction", "neutral", "entailment"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One of the datasets that a model is trained on.

    Attributes:
      name: short name, as in configs and result tables.
      title: name for people.
      group: the paper's group: G1 vocabulary VQA, G2 retrieval, G3 referring expressions, G4
        verification.
      task_id: row of the task-token table (the number in the reference's task file, unless a run's
        config names another).
      head: output head it reads; of kind "pretraining" the one that judges whole examples.
      kind: loss and layout of its targets.
      rows_per_example: trunk rows that one example takes (4 retrieval options, 2 images of a pair).
      max_tokens: text positions T, with CLS and SEP, before the task token.
      max_regions: region slots R, with the global region.
      batch_size: examples a batch, of the paper's run.
      learning_rate: of the paper's run.
      num_choices: choice slots M of kind "choice", else 0.
      detected_slots: of kind "choice": slots for detected regions, with the global one; annotated
        boxes follow.
    """

    name: str
    title: str
    group: Group
    task_id: int
    head: str
    kind: Kind
    rows_per_example: int
    max_tokens: int
    max_regions: int
    batch_size: int
    learning_rate: float
    num_choices: int = 0
    detected_slots: int = 101

    @property
    def heads(self) -> tuple[str, ...]:
        """All output heads it reads."""
        return PRETRAINING_HEADS if self.kind == "pretraining" else (self.head,)


def label_names(task: Task, answers: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What the labels of kinds "answer" and "verdict" mean, in their order.

    Args:
      task: one of these.
      answers: head -> answers, of heads whose labels come with the data.

    Raises:
      ValueError: there are none for its head.
    """
    names = VERDICTS.get(task.head) or answers.get(task.head)
    if not names:
        raise ValueError(f"no answer vocabulary for {task.name}, which reads head {task.head!r}")
    return names


def names_of_labels(task: Task, answers: Mapping[str, int]) -> dict[int, str]:
    """`label_names` by label, where the data gives answer -> label."""
    fixed = VERDICTS.get(task.head)
    return dict(enumerate(fixed)) if fixed else {label: name for name, label in answers.items()}


def trunk_inputs(task: Task, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The batch as rows of the trunk: [B, k, ...] unfolded to [B * k, ...], and the task id."""
    inputs = {key: batch[key] for key in TRUNK_KEYS}
    if task.rows_per_example > 1:
        inputs = {key: x.reshape(-1, *x.shape[2:]) for key, x in inputs.items()}
    return inputs | {"task_id": batch["task_id"]}


def task_loss(
    task: Task, outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]
) -> losses.Sums:
    """Loss and score of a batch.

    Args:
      task: the task the batch belongs to.
      outputs: output of each of `task.heads` for the rows of `trunk_inputs`.
      batch: see the module docstring.
    """
    if task.kind == "pretraining":
        return pretraining.loss(outputs, batch)
    logits, targets, mask = outputs[task.head], batch["targets"], batch["_mask"]
    if task.kind == "answer":
        return losses.answer_loss(logits, targets, mask)
    if task.kind == "verdict":
        return losses.verdict_loss(logits, targets, mask)
    if task.kind == "match":
        # [B * k] -> [B, k]
        return losses.match_loss(logits.reshape(-1, task.rows_per_example), targets, mask)
    if task.kind == "region":
        return losses.region_loss(logits, targets, batch["region_mask"], mask)
    choices = batch["choices"]
    real = jnp.take_along_axis(batch["region_mask"], choices, axis=1) & batch["choice_mask"]
    return losses.choice_loss(logits, targets, choices, real, mask)


def task_count(task: Task, batch: Mapping[str, Any]) -> jax.Array:
    """What the loss of a batch is divided by: `Sums.count` of `task_loss`, known before it."""
    if task.kind == "pretraining":
        return pretraining.counts(batch)
    return jnp.sum(batch["_mask"], dtype=jnp.float32)
