"""Several processes in one workdir: none trains what another is at."""

import contextlib
import threading

from twelve_in_one import workdir_lock
from twelve_in_one.experiments import grid, runner


def test_waits_for_the_training_of_another(base, pretend, tmp_path, monkeypatch):
    trained = grid.all_tasks(base, 0)
    folder = trained.folder(tmp_path)
    _, other = pretend()
    began, tried, asked = threading.Event(), threading.Event(), []

    def train_elsewhere():
        folder.mkdir(parents=True)
        with workdir_lock.held(folder):
            began.set()
            assert tried.wait(60)
            other(trained.config, folder)

    def occupied(config, where):
        asked.append(where)
        try:
            with workdir_lock.held(where):
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


def test_takes_over_from_another_that_was_killed(base, pretend, tmp_path, monkeypatch):
    trained = grid.all_tasks(base, 0)
    _, pretended = pretend()
    other, asked = contextlib.ExitStack(), []

    def training(config, where):
        asked.append(where)
        if len(asked) == 1:
            where.mkdir(parents=True)
            other.enter_context(workdir_lock.held(where))
            monkeypatch.setattr(runner.time, "sleep", lambda seconds: other.close())
        with workdir_lock.held(where):
            pass
        return pretended(config, where)

    results = runner.Runner(tmp_path, training, 1).run(trained)
    assert len(asked) == 2 and set(results["tasks"]) == set(base.tasks)
