"""Several processes in one workdir: none trains what another is at."""

import contextlib
import dataclasses
import threading

import pytest

from twelve_in_one.checkpoints import lock, state
from twelve_in_one.experiments import grid, runner


def test_waits_for_the_training_of_another(base, pretend, tmp_path, monkeypatch):
    trained = grid.all_tasks(base, 0)
    folder = trained.folder(tmp_path)
    _, other = pretend()
    began, tried, asked = threading.Event(), threading.Event(), []

    def train_elsewhere():
        folder.mkdir(parents=True)
        with lock.held(folder):
            began.set()
            assert tried.wait(60)
            other(trained.config, folder)

    def occupied(config, where):
        asked.append(where)
        try:
            with lock.held(where):
                raise AssertionError("trained what another is at")
        finally:
            tried.set()

    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0.01)
    thread = threading.Thread(target=train_elsewhere)
    thread.start()
    assert began.wait(60)
    results = runner.Runner(tmp_path, occupied, 1).run(trained)
    thread.join()
    assert asked == [folder]
    assert set(results["tasks"]) == set(base.tasks)


def test_what_was_cut_short_goes_on_with_its_own_settings_only(base, pretend, tmp_path):
    trained = grid.all_tasks(base, 0)
    folder = trained.folder(tmp_path)
    folder.mkdir(parents=True)
    state.write_config(folder, trained.config)
    changed = grid.all_tasks(base, 0)
    changed.config.optimizer.learning_rate = 9.0
    running, trainer = pretend()
    with pytest.raises(ValueError, match=r"optimizer.learning_rate is .* there and 9.0 here"):
        running.run(changed)
    assert not trainer.configs
    assert running.run(trained)["tasks"]


def test_workdirs_may_move(base, pretend, tmp_path):
    running, trainer = pretend()
    whole = grid.all_tasks(base, 0)
    running.run(grid.fine_tuned(base, "vqa", 0, whole, tmp_path / "before"))
    running.run(grid.fine_tuned(base, "vqa", 0, whole, tmp_path))
    assert len(trainer.configs) == 1
    with pytest.raises(ValueError, match="init_from.path"):
        running.run(
            dataclasses.replace(
                grid.fine_tuned(base, "vqa", 0, grid.group(base, "G1", 0), tmp_path),
                name="tuned-all-vqa",
            )
        )


def test_a_task_without_a_score_is_named(base, tmp_path):
    def train(config, folder):
        return {"tasks": {name: {} for name in config.tasks if name != "gqa"}}

    with pytest.raises(ValueError, match="all, seed 0: no score of gqa, .* test_splits"):
        runner.Runner(tmp_path, train, 1).run(grid.all_tasks(base, 0))


def test_takes_over_from_another_that_was_killed(base, pretend, tmp_path, monkeypatch):
    trained = grid.all_tasks(base, 0)
    _, pretended = pretend()
    other, asked = contextlib.ExitStack(), []

    def training(config, where):
        asked.append(where)
        if len(asked) == 1:
            where.mkdir(parents=True)
            other.enter_context(lock.held(where))
            monkeypatch.setattr(runner.time, "sleep", lambda seconds: other.close())
        with lock.held(where):
            pass
        return pretended(config, where)

    results = runner.Runner(tmp_path, training, 1).run(trained)
    assert len(asked) == 2 and set(results["tasks"]) == set(base.tasks)
