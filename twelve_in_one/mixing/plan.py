"""The plan: which tasks train in which round, and when they are validated.

A round is one iteration of the paper: every active task is visited once, in list order. The plan
is a pure function of settings and controllers (`dsg`), so all hosts follow the same one, a run
resumes by arithmetic, and it can be printed before training. A trainer alternates between the two:

  while start < schedule.num_rounds:
      count = rounds_until_validation(schedule, start)
      for names in plan(schedule, state, start, count):
          train(names)
      start += count
      for name in validations(schedule, start - 1):
          state = {**state, name: dsg.update(controller, state[name], validate(name))}
      if start - 1 in schedule.official_resets:
          state = dsg.reset(state)

Source: Lu et al., "12-in-1: Multi-Task Vision and Language Representation Learning" (2020), and
the released code where the paper is silent.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from twelve_in_one.mixing import field_checks
from twelve_in_one.mixing.stop_and_go import State

Kind = Literal[
    "stop_and_go", "round_robin", "proportional", "temperature", "curriculum", "anti_curriculum"
]


@dataclasses.dataclass(frozen=True)
class PlannedTask:
    """The plan's view of a task.

    Attributes:
      name: the task's name.
      num_examples: training examples; the weight of proportional and temperature draws.
      num_batches: batches per epoch of its training set.
    """

    name: str
    num_examples: int
    num_batches: int

    def __post_init__(self):
        field_checks.raise_for(
            f"task {self.name}",
            field_checks.wrong(self, ("num_examples", "num_batches"), field_checks.whole(1)),
        )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which tasks train when.

    Only kind "stop_and_go" stops tasks: the paper's ablation replaces it by a round robin or a
    curriculum and does not combine them, so one setting names every variant. Scores and
    controllers are the same for all kinds; the other plans ignore them.

    Attributes:
      tasks: in the order in which a round visits them.
      kind: "stop_and_go" is round robin without stopped tasks; "round_robin" visits
        all tasks; "proportional" and "temperature" draw, with replacement, as many tasks per
        round as there are, weighted by their examples; "curriculum" adds the tasks one by one, easy
        ones first, "anti_curriculum" in the opposite order.
      num_rounds: length of training.
      gap: a stopped task still trains in rounds that are multiples of this (the paper's delta); 0
        never. The released flag's -1, said to mean never, turns stopping off: every number is a
        multiple of -1.
      validate_epochs: epochs of a task between its validations; one epoch counts as `num_batches`
        rounds whether the task trained in them or not.
      min_validation_rounds: fewest rounds between validations of a task.
      max_validation_rounds: most rounds between validations of a task, 0 for no limit.
      temperature: of kind "temperature": p ~ num_examples ** (1 / temperature); 1 is proportional,
        large is uniform.
      order: of the curricula: task names, easy ones first. The paper orders by how fast tasks
        converge, which takes a run to measure; empty takes the fewest batches per epoch first,
        our choice.
      curriculum_share: of the curricula: share of the rounds to divide into as many equal stages
        as there are tasks; each stage adds one, and after the last all train.
      seed: of the draws.
      official_resets: rounds after whose validations all controllers are reset; the released code's
        are in `official_num_rounds`.
    """

    tasks: tuple[PlannedTask, ...]
    kind: Kind
    num_rounds: int
    gap: int = 4
    validate_epochs: float = 1.0
    min_validation_rounds: int = 1
    max_validation_rounds: int = 0
    temperature: float = 2.0
    order: tuple[str, ...] = ()
    curriculum_share: float = 0.5
    seed: int = 0
    official_resets: tuple[int, ...] = ()

    def __post_init__(self):
        errors = [
            *field_checks.wrong(self, ("kind",), field_checks.one_of(Kind)),
            *field_checks.wrong(self, ("tasks",), (bool, "at least one task")),
            *field_checks.repeated(self.names),
            *field_checks.wrong(
                self, ("num_rounds", "min_validation_rounds"), field_checks.whole(1)
            ),
            *field_checks.wrong(self, ("max_validation_rounds", "seed"), field_checks.whole(0)),
            *field_checks.wrong(
                self, ("gap",), (field_checks.whole(0)[0], "an int >= 0, where 0 is never")
            ),
            *field_checks.wrong(
                self, ("validate_epochs", "temperature"), field_checks.number(0, open=True)
            ),
            *field_checks.wrong(self, ("curriculum_share",), field_checks.number(0, 1)),
        ]
        if self.order:
            errors += [f"order: {e}" for e in field_checks.repeated(self.order)]
            errors += [
                f"order: {e}" for e in field_checks.differing_names("task", self.order, self.names)
            ]
        if not errors:
            if 0 < self.max_validation_rounds < self.min_validation_rounds:
                errors.append(
                    f"max_validation_rounds={self.max_validation_rounds} is less than "
                    f"min_validation_rounds={self.min_validation_rounds} (0: no limit)"
                )
            inside = range(self.num_rounds)
            errors += [
                f"official_resets: no round {number!r} in {inside}"
                for number in self.official_resets
                if number not in inside
            ]
        field_checks.raise_for("schedule", errors)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names, in order."""
        return tuple(task.name for task in self.tasks)


def plan(schedule: Schedule, state: State, start: int, count: int) -> tuple[tuple[str, ...], ...]:
    """Task names of rounds start .. start + count - 1, for the current controllers.

    A round depends only on the arguments and its number, so any split of a range gives the same
    rounds. A round is empty if all tasks are stopped.

    Raises:
      ValueError: `state` lacks a task, or the range leaves the schedule.
    """
    _check_rounds(schedule, start, count)
    names = schedule.names
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"no stop-and-go state of {', '.join(missing)}")
    rounds = range(start, start + count)
    if schedule.kind in ("proportional", "temperature"):
        # [T] upper ends of the tasks' shares of [0, 1).
        ends = np.cumsum(list(draw_probabilities(schedule).values()))[:-1]
        return tuple(_draw(names, ends, (schedule.seed, number)) for number in rounds)
    if schedule.kind in ("curriculum", "anti_curriculum"):
        first = first_rounds(schedule)
        return tuple(tuple(n for n in names if first[n] <= number) for number in rounds)
    going = names
    if schedule.kind == "stop_and_go":
        going = tuple(name for name in names if not state[name].stopped)
    gap = schedule.gap
    return tuple(names if gap and number % gap == 0 else going for number in rounds)


def _draw(names: tuple[str, ...], ends: np.ndarray, seed: tuple[int, int]) -> tuple[str, ...]:
    """One round of draws; the round has its own generator, so it can be drawn alone."""
    draws = np.random.default_rng(seed).random(len(names))
    return tuple(names[i] for i in np.searchsorted(ends, draws, side="right"))


def draw_probabilities(schedule: Schedule) -> Mapping[str, float]:
    """Probability of each task in one draw of a proportional or temperature schedule."""
    exponent = 1.0 if schedule.kind == "proportional" else 1.0 / schedule.temperature
    largest = max(task.num_examples for task in schedule.tasks)
    # Relative to the largest, so that a low temperature cannot overflow.
    weights = {task.name: (task.num_examples / largest) ** exponent for task in schedule.tasks}
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def first_rounds(schedule: Schedule) -> Mapping[str, int]:
    """The first round of each task in a curriculum or anti-curriculum."""
    by_size = sorted(schedule.tasks, key=lambda task: task.num_batches)
    order = schedule.order or tuple(task.name for task in by_size)
    if schedule.kind == "anti_curriculum":
        order = order[::-1]
    stages = int(schedule.curriculum_share * schedule.num_rounds)
    return {name: i * stages // len(order) for i, name in enumerate(order)}


def expected_updates(schedule: Schedule) -> Mapping[str, int]:
    """Updates of each task over the whole schedule if no task stops; for draws, the mean."""
    rounds, names = schedule.num_rounds, schedule.names
    if schedule.kind in ("proportional", "temperature"):
        share = draw_probabilities(schedule)
        return {name: round(rounds * len(names) * share[name]) for name in names}
    if schedule.kind in ("curriculum", "anti_curriculum"):
        first = first_rounds(schedule)
        return {name: rounds - first[name] for name in names}
    return dict.fromkeys(names, rounds)


def validation_interval(schedule: Schedule, task: PlannedTask) -> int:
    """Rounds between two validations of a task: its share of epochs, rounded, then clipped."""
    interval = max(round(task.num_batches * schedule.validate_epochs), 1)
    interval = max(interval, schedule.min_validation_rounds)
    return min(interval, schedule.max_validation_rounds or interval)


def validations(schedule: Schedule, round: int) -> tuple[str, ...]:
    """Tasks to validate after a round, whether they trained in it or not; all after the last.

    Raises:
      ValueError: no such round.
    """
    _check_rounds(schedule, round, 1)
    if round == schedule.num_rounds - 1:
        return schedule.names
    return tuple(
        task.name
        for task in schedule.tasks
        if round != 0 and round % validation_interval(schedule, task) == 0
    )


def rounds_until_validation(schedule: Schedule, round: int) -> int:
    """Rounds from `round` on for which the current plan holds: until a controller can change.

    That is up to and including the next round with a validation or an official reset.

    Raises:
      ValueError: no such round.
    """
    _check_rounds(schedule, round, 1)
    intervals = [validation_interval(schedule, task) for task in schedule.tasks]
    # Round 0 validates nothing, so from there the first multiple is the interval itself.
    ends = [max(-(-round // interval), 1) * interval for interval in intervals]
    ends += [reset_round for reset_round in schedule.official_resets if reset_round >= round]
    return min(*ends, schedule.num_rounds - 1) - round + 1


class OfficialRounds(NamedTuple):
    """Length of the released code's run: rounds of one of its "epochs", of all, and its resets."""

    per_epoch: int
    total: int
    resets: tuple[int, ...]


def official_num_rounds(
    tasks: Sequence[PlannedTask],
    *,
    num_epochs: int = 20,
    num_train_epochs: int = 20,
    multiplier: float = 1.0,
) -> OfficialRounds:
    """The number of rounds that the released training script derives from its settings.

    The total is `num_epochs` epochs of the longest task, times `multiplier`; `num_train_epochs`
    only cuts it into "epochs" at whose ends checkpoints are written. All controllers are reset at
    the end of epochs 5 and 7, counted from 0, a leftover of the learning rate's steps.

    Args:
      tasks: those that train.
      num_epochs: of the task file (the script takes the last task's for all).
      num_train_epochs: the script's argument of that name.
      multiplier: the script's factor on the length.
    """
    per_task = [int(num_epochs * t.num_batches * multiplier / num_train_epochs) for t in tasks]
    per_epoch = max(per_task)
    resets = [epoch for epoch in (5, 7) if epoch < num_train_epochs]
    return OfficialRounds(
        per_epoch,
        per_epoch * num_train_epochs,
        tuple((epoch + 1) * per_epoch - 1 for epoch in resets),
    )


_COLUMNS = 60


def format_plan(schedule: Schedule, state: State, start: int, count: int) -> str:
    """A readable table of the tasks with a timeline of rounds start .. start + count - 1.

    It shows the plan for the current controllers; later validations may change it.

    Raises:
      ValueError: as in `plan`.
    """
    rounds = plan(schedule, state, start, count)
    width = max(-(-count // _COLUMNS), 1)
    columns = [rounds[i : i + width] for i in range(0, count, width)]
    expected = expected_updates(schedule)
    table = [("task", "examples", "batches", "validated every", "here", "of all", "")]
    for task in schedule.tasks:
        table.append(
            (
                task.name + (" (stopped)" if state[task.name].stopped else ""),
                f"{task.num_examples:,}",
                f"{task.num_batches:,}",
                f"{validation_interval(schedule, task):,}",
                f"{sum(names.count(task.name) for names in rounds):,}",
                f"{expected[task.name]:,}",
                "".join(_mark(task.name, column) for column in columns),
            )
        )
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    title = f"{schedule.kind}, rounds {start:,} .. {start + count - 1:,} of {schedule.num_rounds:,}"
    legend = (
        'Batches are of an epoch; "here" counts updates in these rounds, "of all" in the whole '
        f"schedule if nothing stops.\nA column is {width:,} round(s): # all of them train the "
        "task, 1-9 about so many tenths, . none."
    )
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]])
        for row in table
    ]
    return "\n".join([title, *(line.rstrip() for line in lines), legend])


def _mark(name: str, rounds: tuple[tuple[str, ...], ...]) -> str:
    trained = sum(name in names for names in rounds)
    if trained in (0, len(rounds)):
        return "#" if trained else "."
    return str(min(max(round(10 * trained / len(rounds)), 1), 9))


def _check_rounds(schedule: Schedule, start: int, count: int) -> None:
    if start < 0 or count < 0 or start + count > schedule.num_rounds:
        raise ValueError(
            f"{count} rounds from {start}: the schedule has rounds 0 .. {schedule.num_rounds - 1}"
        )
