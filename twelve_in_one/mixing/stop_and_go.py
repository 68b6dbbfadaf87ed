"""Dynamic Stop-and-Go: a controller for each task, as a pure state machine.

A controller watches the validation score of its task; a task that no longer improves is stopped
(it then trains every `gap` rounds only, see `plan`), one that degrades while stopped goes
again. Controllers are pure functions of plain Python values, so all hosts decide the same.

Source: Lu et al., "12-in-1: Multi-Task Vision and Language Representation Learning" (2020), and
the released code where the paper is silent.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from twelve_in_one.mixing import field_checks

Mode = Literal["max", "min"]
ThresholdMode = Literal["rel", "abs"]


@dataclasses.dataclass(frozen=True)
class Controller:
    """Settings of stop-and-go, the same for all tasks; the defaults are the paper's.

    Attributes:
      mode: whether higher or lower scores are better.
      patience: consecutive validations without improvement that a task survives; one more stops it.
      threshold: margin by which a score must beat the best one to count as an improvement.
      threshold_mode: margins relative to the best score, or absolute. Relative ones make sense only
        for scores that are never negative.
      continue_threshold: margin by which a stopped task's score must fall short of the best one for
        the task to go again.
      cooldown: validations after a stop or a go that do not count missing improvements.
      official_restart: a stopped task goes again when its score is below the best one in either
        mode, as in the released code. For "max", the paper's only mode, that is the paper's rule;
        for "min" it means that a stopped task hardly ever goes again, and False mirrors the rule.
    """

    mode: Mode = "max"
    patience: int = 1
    threshold: float = 0.001
    threshold_mode: ThresholdMode = "rel"
    continue_threshold: float = 0.005
    cooldown: int = 1
    official_restart: bool = True

    def __post_init__(self):
        errors = [
            *field_checks.wrong(self, ("mode",), field_checks.one_of(Mode)),
            *field_checks.wrong(self, ("threshold_mode",), field_checks.one_of(ThresholdMode)),
            *field_checks.wrong(self, ("patience", "cooldown"), field_checks.whole(0)),
            *field_checks.wrong(self, ("threshold", "continue_threshold"), field_checks.number(0)),
        ]
        field_checks.raise_for("controller", errors)


@dataclasses.dataclass(frozen=True)
class TaskState:
    """A controller's memory of a task.

    Attributes:
      best: best score so far, None before the first one; never lowered.
      bad: consecutive validations without improvement.
      cooldown: validations for which `bad` stays 0.
      stopped: whether the task is in stop mode.
    """

    best: float | None = None
    bad: int = 0
    cooldown: int = 0
    stopped: bool = False

    def __post_init__(self):
        errors = [
            *field_checks.wrong(
                self, ("best",) if self.best is not None else (), field_checks.number(-math.inf)
            ),
            *field_checks.wrong(self, ("bad", "cooldown"), field_checks.whole(0)),
            *field_checks.wrong(
                self, ("stopped",), (lambda value: type(value) is bool, "true or false")
            ),
        ]
        field_checks.raise_for("state", errors)


State = Mapping[str, TaskState]


def init(tasks: Sequence[str]) -> State:
    """The state before the first validation: every task goes.

    Raises:
      ValueError: a task occurs twice.
    """
    field_checks.raise_for("tasks", field_checks.repeated(tasks))
    return {name: TaskState() for name in tasks}


def reset(state: State) -> State:
    """Clears the state, as the released code does twice (`official_resets`)."""
    return init(tuple(state))


def update(controller: Controller, state: TaskState, score: float) -> TaskState:
    """The state of a task after a validation.

    An improvement while stopped raises `best` but does not restart the task; only a drop does.

    Args:
      controller: the settings.
      state: the task's state before.
      score: its validation score.

    Raises:
      ValueError: `score` is not finite.
    """
    score = float(score)
    if not math.isfinite(score):
        raise ValueError(f"validation score {score} is not finite: stop-and-go cannot judge it")
    best, bad, cooldown = state.best, state.bad + 1, state.cooldown
    if best is None or _beyond(
        controller.mode, controller.threshold_mode, score, best, controller.threshold
    ):
        best, bad = score, 0
    if cooldown > 0:
        cooldown, bad = cooldown - 1, 0
    if bad > controller.patience:
        return TaskState(best, 0, controller.cooldown, True)
    worse: Mode = "min" if controller.mode == "max" or controller.official_restart else "max"
    if state.stopped and _beyond(
        worse, controller.threshold_mode, score, best, controller.continue_threshold
    ):
        return TaskState(best, 0, controller.cooldown, False)
    return TaskState(best, bad, cooldown, state.stopped)


def _beyond(
    mode: Mode, threshold_mode: ThresholdMode, score: float, best: float, margin: float
) -> bool:
    """Whether `score` is above ("max") or below ("min") `best` by more than a margin."""
    if mode == "max":
        return score > (best * (1.0 + margin) if threshold_mode == "rel" else best + margin)
    return score < (best * (1.0 - margin) if threshold_mode == "rel" else best - margin)


def to_json(state: State) -> dict[str, dict[str, Any]]:
    """The state as plain values; `from_json` restores it bit for bit, also after a JSON file."""
    return {name: dataclasses.asdict(task) for name, task in state.items()}


def from_json(raw: Any, tasks: Sequence[str]) -> State:
    """The state that `to_json` wrote, in the order of `tasks`.

    Raises:
      ValueError: other tasks or fields than expected, or values that no controller produces; lists
        all of them.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"stop-and-go state must be an object, got {type(raw).__name__}")
    errors = [*field_checks.repeated(tasks), *field_checks.differing_names("task", raw, tasks)]
    fields = [field.name for field in dataclasses.fields(TaskState)]
    state = {}
    for name in tasks:
        if name not in raw:
            continue
        task = raw[name]
        if not isinstance(task, dict):
            errors.append(f"{name}: must be an object, got {task!r}")
        elif differing := field_checks.differing_names("field", task, fields):
            errors += [f"{name}: {error}" for error in differing]
        else:
            try:
                state[name] = TaskState(**task)
            except ValueError as error:
                errors.append(f"{name}: {error}")
    field_checks.raise_for("stop-and-go state", errors)
    return state
