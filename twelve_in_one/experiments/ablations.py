"""The benefit of task tokens and stop-and-go (paper Table 6).

If no task is stopped, stop-and-go is a round robin, and there is nothing to compare.

Variants without stop-and-go train for as many whole rounds as bring their updates closest to those
of the full variant of that seed, whose tasks were stopped at times. Curricula add tasks in the
order in which they converged in the full variant (`convergence_order`).
"""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config.settings import task_key
from twelve_in_one.experiments import grid, paper, summary
from twelve_in_one.experiments.comparison import Outcome, group_averages
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.logs import metrics_writer
from twelve_in_one.mixing import plan
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.twelve import TWELVE

TITLES = {
    "full": "token per dataset, stop-and-go",
    "head-token": "token per head",
    "no-token": "no task token",
    "no-stop": "no stop-and-go (round robin)",
    "curriculum": "curriculum",
    "anti-curriculum": "anti-curriculum",
    "vanilla": "neither (no token, round robin)",
}
MODELS = tuple(TITLES)
ALWAYS = ("full",)
# Share of its best gain over chance at which a task counts as converged; our choice.
CONVERGED = 0.95
_KINDS = {
    "no-stop": "round_robin",
    "vanilla": "round_robin",
    "curriculum": "curriculum",
    "anti-curriculum": "anti_curriculum",
}
_TASKS = {task.name: task for task in TWELVE}
_NOTE = """\
Averages of the paper's groups and of all tasks in percent, mean over seeds ± half of a 95 %
interval; Δ is the difference from the first row, paired by seed, bold where the interval does not
hold 0. Variants without stop-and-go train for as many rounds as give the updates of the first row;
the others for as many rounds. Curricula begin with the tasks that converged first in the first row,
anti-curricula with the last; the rate falls with the rounds, of which they have more, so that tasks
that come late train at lower rates."""


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config has no stop-and-go or no task's own token to leave out.
    """
    if base.schedule.kind != "stop_and_go":
        raise ValueError(
            f"ablations need config.schedule.kind=stop_and_go, it is {base.schedule.kind}"
        )
    shared = [name for name in base.tasks if base.task[task_key(name)].task_token]
    if not base.model.num_tasks or shared:
        raise ValueError(
            "ablations need a task token for each task: config.model.num_tasks is "
            f"{base.model.num_tasks}, and config.task.*.task_token is set for "
            f"{', '.join(shared) or 'none'}"
        )
    return len(models) * len(seeds)


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and collects the results of every seed.

    The full variant comes first, as it determines the others' rounds and order.

    Args:
      runner: of the trainings.
      base: config of the full variant.
      seeds: of the trainings.
      models: of `MODELS`, "full" among them.

    Raises:
      ValueError: as in `Runner.run`, or there is no history of validations, or no task was stopped,
        so that a round robin would be the same.
      Stopped: as in `Runner.run`.
    """
    outcomes = []
    for seed in seeds:
        full = Training("ablation-full", seed, grid.with_tasks(base, base.tasks, seed))
        found = {"full": runner.run(full)}
        updates = sum(entry["updates"] for entry in found["full"]["tasks"].values())
        if "no-stop" in models and updates == len(base.tasks) * base.schedule.num_rounds:
            raise ValueError(
                f"{full.folder(runner.workdir)}: no task was stopped, so no-stop would be the same "
                "run: take data on which tasks converge, such as that of --config=world:small, "
                "validate oftener, or leave no-stop out of --models"
            )
        order: tuple[str, ...] = ()
        if {"curriculum", "anti-curriculum"} & set(models):
            history = metrics_writer.read(full.folder(runner.workdir) / metrics_writer.FILE)
            order = convergence_order(history, found["full"]["tasks"])
        for variant in (name for name in MODELS if name in models and name != "full"):
            found[variant] = runner.run(training(base, variant, seed, updates, order))
        outcomes.append(
            Outcome(
                {variant: one["tasks"] for variant, one in found.items()},
                {variant: one["parameters"] for variant, one in found.items()},
            )
        )
    return outcomes


def training(
    base: Any, variant: str, seed: int, updates: int, order: Sequence[str] = ()
) -> Training:
    """A variant.

    Args:
      base: config of the full variant.
      variant: of `MODELS` except "full".
      seed: of the run.
      updates: of the full variant, all tasks together.
      order: of the curricula, from `convergence_order`.
    """
    config = grid.with_tasks(base, base.tasks, seed)
    if variant == "head-token":
        for name in base.tasks:
            with_head = (task for task in TWELVE if task.head == _TASKS[name].head)
            config.task[task_key(name)].task_token = next(with_head).task_id
    if variant in ("no-token", "vanilla"):
        config.model.num_tasks = 0
    if variant in _KINDS:
        schedule = config.schedule
        schedule.kind, config.system.official.resets = _KINDS[variant], ()
        if "curriculum" in variant:
            schedule.order = tuple(order)
        schedule.num_rounds = rounds_for(
            updates, base.tasks, schedule.kind, schedule.curriculum_share
        )
    return Training(f"ablation-{variant}", seed, config)


def rounds_for(updates: int, tasks: Sequence[str], kind: str, curriculum_share: float) -> int:
    """Rounds of a schedule without stops whose updates come closest to a number.

    Args:
      updates: of all tasks together.
      tasks: their names.
      kind: "round_robin", "curriculum" or "anti_curriculum".
      curriculum_share: see `plan.Schedule`.
    """
    planned = tuple(plan.PlannedTask(name, 1, 1) for name in tasks)

    def total(rounds: int) -> int:
        schedule = plan.Schedule(
            planned, kind=kind, num_rounds=rounds, curriculum_share=curriculum_share
        )
        return sum(plan.expected_updates(schedule).values())

    # One more round never means fewer updates, and every round has at least one.
    enough = bisect.bisect_left(range(1, updates + 1), updates, key=total) + 1
    candidates = range(max(enough - 1, 1), enough + 1)
    return min(candidates, key=lambda rounds: abs(total(rounds) - updates))


def convergence_order(
    history: Sequence[Mapping[str, Any]], tasks: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """The tasks of a run, in the order in which they converged.

    A task has converged in the round in which its validation score, interpolated from chance in
    round 0 through the validations, reaches `CONVERGED` of its best gain over chance; a task never
    better than chance has not converged, and comes last. The paper gives no measure of this.

    Args:
      history: records of the run's `metrics.jsonl`.
      tasks: name -> entry of its `results.json`, for "chance".

    Raises:
      ValueError: a task was never validated.
    """
    converged = {}
    for name, entry in tasks.items():
        curve = [
            (record["round"], record["score"])
            for record in history
            if record["event"] == "validation" and record["task"] == name
        ]
        if not curve:
            raise ValueError(f"no validation of {name} in the history of the run of all tasks")
        # Retrieval validates among a few images, but is tested among all.
        rows = _TASKS[name].rows_per_example
        chance = 1 / rows if KINDS[_TASKS[name].kind].ranked else entry.get("chance") or 0.0
        converged[name] = _crossing(curve, chance)
    return tuple(sorted(converged, key=lambda name: converged[name]))


def _crossing(curve: Sequence[tuple[int, float]], chance: float) -> float:
    gains = [(0, 0.0), *((number, score - chance) for number, score in curve)]
    goal = CONVERGED * max(gain for _, gain in gains)
    if goal <= 0:
        return math.inf
    steps = itertools.pairwise(gains)
    (start, low), (end, high) = next(step for step in steps if step[1][1] >= goal)
    return start + (end - start) * (goal - low) / (high - low)


def report(outcomes: Sequence[Outcome]) -> str:
    """Averages of groups, one row per variant, with the paper's below."""
    table = summary.by_variant(outcomes, TITLES, group_averages(outcomes))
    return f"{table}\n\n{_NOTE}\n\n{paper.table_6(TITLES, list(outcomes[0].results))}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences from the full variant, one line per group."""
    averages = group_averages(outcomes)
    summary.plot(outcomes, TITLES, averages, path, only_averages=True)
