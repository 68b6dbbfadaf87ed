"""Trainings that are only pretended: what an experiment makes of results needs no real ones."""

import json

import pytest

from twelve_in_one.checkpoints import state
from twelve_in_one.config import defaults
from twelve_in_one.config.settings import task_key
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.logs import metrics_writer
from twelve_in_one.mixing import plan
from twelve_in_one.tasks.twelve import TASKS
from twelve_in_one.training.finish import RESULTS

NUMBERS = {name: number for number, name in enumerate(TASKS)}


@pytest.fixture
def base():
    """A short run of all tasks."""
    config = defaults.world_config()
    defaults.shorten(config)
    config.schedule.num_rounds = 20
    return config


def batches(config):
    """Of each task; where tasks may stop, every one does at another time."""
    planned = tuple(plan.PlannedTask(name, 1, 1) for name in config.tasks)
    names = ("kind", "num_rounds", "order", "curriculum_share")
    schedule = plan.Schedule(planned, **{name: config.schedule[name] for name in names})
    expected = dict(plan.expected_updates(schedule))
    if config.schedule.kind == "stop_and_go":
        expected = {name: count - NUMBERS[name] % 5 for name, count in expected.items()}
    return expected


class Pretended:
    """A trainer that writes what a training leaves, without training.

    Attributes:
      configs: of the trainings it was asked for, by folder below the workdir. What scores low
        in them has validated well: nobody may choose by test scores.
    """

    def __init__(self, workdir, score):
        self.workdir, self.configs, self._score = workdir, {}, score

    def __call__(self, config, folder):
        folder.mkdir(parents=True, exist_ok=True)
        state.write_config(folder, config)
        name = folder.parent.name
        self.configs[str(folder.relative_to(self.workdir))] = config
        tasks, records = {}, []
        for task, updates in batches(config).items():
            score = self._score(name, task, config.seed)
            tasks[task] = {
                "title": task, "metric": "accuracy", "score": score, "validation": 1 - score,
                "updates": updates, "chance": 0.1, "words": None,
                "examples": 100 if config.data.clean or task != "vgqa" else 120,
            }  # fmt: skip
            # The more to the right in the list, the sooner at the best score.
            for number in range(1, 21):
                reached = min(number / (20 - NUMBERS[task]), 1)
                validation = 0.25 + 0.5 * reached
                records.append(
                    {"event": "validation", "round": number, "task": task, "score": validation}
                )
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / metrics_writer.FILE).write_text(lines)
        results = {"tasks": tasks, "parameters": 100 * len(tasks)}
        (folder / RESULTS).write_text(json.dumps(results))
        return results


@pytest.fixture
def pretend(tmp_path):
    """pretend(score, total) -> (runner, its trainer); score(name of the training, task, seed)."""

    def make(score=lambda name, task, seed: 0.5, total=0):
        trainer = Pretended(tmp_path, score)
        return Runner(tmp_path, trainer, total), trainer

    return make


class PretendedPictures:
    """The same for systems of pictures, all of whose updates are of a mixture.

    In a run of stop-and-go the first task stops after half of the rounds, and its rows go.
    """

    def __init__(self, workdir, score):
        self.workdir, self.configs, self._score = workdir, {}, score

    def __call__(self, config, folder):
        folder.mkdir(parents=True)
        state.write_config(folder, config)
        name = folder.parent.name
        self.configs[str(folder.relative_to(self.workdir))] = config
        options = {task: config.task[task] for task in config.tasks}
        learnt = [
            task
            for task, one in options.items()
            if one.get("train", True) and one.get("group") != "zero_shot"
        ]
        rounds, stops = config.schedule.num_rounds, config.schedule.kind == "stop_and_go"
        records = []
        for half in (1, 2):
            rows = dict.fromkeys(learnt, 60) | {"contrast": 100}
            if stops and half == 2:
                rows[learnt[0]] = 0
            losses = dict.fromkeys(rows, 1.0)
            timing = {"examples_per_s": 40.0 + half}
            place = {"round": half * rounds // 2}
            records.append(
                {"event": "train", **place, "rows": rows, "loss": losses, "timing": timing}
            )
            for task in learnt:
                entry = {"task": task, "score": 0.5, "stopped": task == learnt[0]}
                records.append({"event": "validation", **place, **entry})
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / metrics_writer.FILE).write_text(lines)
        tasks = {
            task: {
                "title": task.upper(), "group": "g", "metric": "m",
                "score": self._score(name, task, config.seed),
                "metrics": {"text_R@1": 0.25}, "examples": 100, "updates": rounds, "chance": 0.1,
                "words": None,
            }
            for task in config.tasks
        }  # fmt: skip
        results = {"tasks": tasks, "parameters": 100, "updates": rounds}
        (folder / RESULTS).write_text(json.dumps(results))
        return results


@pytest.fixture
def pretend_pictures(tmp_path):
    """As `pretend`, for systems of pictures."""

    def make(score=lambda name, task, seed: 0.5):
        trainer = PretendedPictures(tmp_path, score)
        return Runner(tmp_path, trainer, 0), trainer

    return make


@pytest.fixture
def forget(tmp_path):
    """forget(task option): takes it out of all config.json, as if it had not been known then."""

    def change(option):
        for path in tmp_path.glob("*/*/config.json"):
            config = json.loads(path.read_text())
            for task in config["tasks"]:
                del config["task"][task_key(task)][option]
            path.write_text(json.dumps(config))

    return change
