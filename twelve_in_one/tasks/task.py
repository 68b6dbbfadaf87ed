"""A task as data: its head, its loss, and the shapes of its batches.

A batch is a dict (B examples; k trunk rows per example, the axis present only if k > 1):

* tokens int32[B, (k,) T], token_mask bool[B, (k,) T]
* regions float[B, (k,) R, F] (region 0 is the mean of the image's regions),
  boxes float32[B, (k,) R, 5], region_mask bool[B, (k,) R]
* task_id int32[]
* _mask bool[B], False for rows that only fill the batch
* targets, by kind of task:
  "answer" float[B, L] soft scores; "verdict" float[B, L] one-hot; "match" int32[B] the option that
  fits; "region" float[B, R] IoU; "choice" float[B, M] IoU with choices int32[B, M] (regions) and
  choice_mask bool[B, M]. Kind "pretraining" has only the targets listed in
  `data/encode/pretraining.py`.

Batches made from datasets also carry example_id str[B], for the host only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from twelve_in_one.tasks import kinds
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.losses import Sums

Group = Literal["G1", "G2", "G3", "G4", "pretraining"]
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
      head: output head it reads; for kind "pretraining" the one that judges whole examples.
      kind: loss and layout of its targets.
      rows_per_example: trunk rows that one example takes (4 retrieval options, 2 images of a pair).
      max_tokens: text positions T, with CLS and SEP, before the task token.
      max_regions: region slots R, with the global region.
      batch_size: examples per batch, in the paper's run.
      learning_rate: in the paper's run.
      num_choices: choice slots M for kind "choice", else 0.
      detected_slots: for kind "choice": slots for detected regions, with the global one; annotated
        boxes follow.
    """

    name: str
    title: str
    group: Group
    task_id: int
    head: str
    kind: kinds.Name
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
        return KINDS[self.kind].heads or (self.head,)


def label_names(task: Task, answers: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Meanings of the labels of kinds "answer" and "verdict", in their order.

    Args:
      task: one of these.
      answers: head -> answers, for heads whose labels come with the data.

    Raises:
      ValueError: there are none for its head.
    """
    names = VERDICTS.get(task.head) or answers.get(task.head)
    if not names:
        raise ValueError(f"no answer vocabulary for {task.name}, which reads head {task.head!r}")
    return names


def names_of_labels(task: Task, answers: Mapping[str, int]) -> dict[int, str]:
    """`label_names` by label, from answer -> label in the data."""
    fixed = VERDICTS.get(task.head)
    return dict(enumerate(fixed)) if fixed else {label: name for name, label in answers.items()}


def task_loss(task: Task, outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> Sums:
    """Loss and score of a batch.

    Args:
      task: the task the batch belongs to.
      outputs: output of each of `task.heads` for the rows of the batch.
      batch: see the module docstring.
    """
    return KINDS[task.kind].loss(task, outputs, batch)


def task_count(task: Task, batch: Mapping[str, Any]) -> jax.Array:
    """The divisor of a batch's loss: `Sums.count` of `task_loss`, known before it."""
    return kinds.batch_count(KINDS[task.kind], batch)
