"""The command line of the evaluator, and how it follows a run."""

import json
import os
import shutil

import pytest

from twelve_in_one import evaluate
from twelve_in_one.checkpoints import state, weights
from twelve_in_one.evaluators.follow import FILE, follow, is_complete, read_rounds


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / state.CHECKPOINTS).mkdir()
    return tmp_path


def save(workdir, *rounds):
    for round in rounds:
        (workdir / state.CHECKPOINTS / str(round)).mkdir()


def finish(workdir):
    (workdir / "results.json").write_text("{}")


class Job:
    """A run that goes on each time it is looked at: `steps` are called one by one."""

    def __init__(self, workdir, *steps):
        self.workdir, self.steps, self.restored = workdir, list(steps), []

    def restore(self, round):
        self.restored.append(round)
        if not (self.workdir / state.CHECKPOINTS / str(round)).is_dir():
            raise ValueError(f"{round}: no such checkpoint")
        return round

    def evaluate(self, round, params):
        assert params == round
        if self.steps:
            self.steps.pop(0)()
        return {"round": round, "split": "val", "average": round / 100}

    def follow(self, split="val", last_round=30, **options):
        settings = dict(last_round=last_round, idle_seconds=0.05, poll_seconds=0.01) | options
        return follow(self.workdir, split, self.restore, self.evaluate, **settings)


def rounds_of(workdir):
    return [json.loads(line)["round"] for line in (workdir / FILE).read_text().splitlines()]


def test_every_checkpoint_once_until_the_end(workdir):
    save(workdir, 10)
    job = Job(workdir, lambda: save(workdir, 20), lambda: (save(workdir, 30), finish(workdir)))
    assert job.follow(idle_seconds=60) == 3
    assert rounds_of(workdir) == [10, 20, 30]
    assert Job(workdir).follow(idle_seconds=60) == 0
    assert rounds_of(workdir) == [10, 20, 30]


def test_what_was_done_before_a_restart(workdir):
    save(workdir, 10, 20, 30)
    finish(workdir)
    done = {"round": 10, "split": "val"}
    broken = '{"round": 20, "spl'  # killed while writing
    (workdir / FILE).write_text(f"{json.dumps(done)}\n{broken}")
    assert Job(workdir).follow() == 2
    assert rounds_of(workdir) == [10, 20, 30]


def test_another_split_is_not_done(workdir):
    save(workdir, 10)
    (workdir / FILE).write_text(json.dumps({"round": 10, "split": "test"}) + "\n")
    assert read_rounds(workdir / FILE, "val") == set()
    assert Job(workdir).follow() == 1


def test_checkpoints_that_go_away(workdir, capsys):
    """Round 20 is deleted while round 10 is evaluated."""
    save(workdir, 10, 20, 30)
    finish(workdir)
    gone = workdir / state.CHECKPOINTS / "20"
    job = Job(workdir, lambda: shutil.rmtree(gone))
    assert job.follow() == 2
    assert job.restored == [10, 20, 30] and rounds_of(workdir) == [10, 30]
    assert "round 20: deleted before it could be read" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_read_is_an_error(workdir):
    save(workdir, 10)
    job = Job(workdir)

    def restore(round):
        raise ValueError("damaged")

    job.restore = restore
    with pytest.raises(ValueError, match="damaged"):
        job.follow()


def test_a_damaged_checkpoint_is_left_out_until_it_comes_anew(workdir, capsys):
    """The others are evaluated; the run, which goes on from the older one, writes it again."""
    save(workdir, 10, 20, 30)
    finish(workdir)
    folder = workdir / state.CHECKPOINTS / "20"
    damaged = {folder.stat().st_mtime_ns}

    def again():
        folder.rmdir()
        folder.mkdir()
        os.utime(folder, ns=(0, 1))
        damaged.clear()

    job = Job(workdir, lambda: None, again)
    whole = job.restore

    def restore(round):
        if round == 20 and damaged:
            raise weights.DamagedError(f"{folder} is damaged")
        return whole(round)

    job.restore = restore
    assert job.follow() == 3
    assert rounds_of(workdir) == [10, 30, 20]
    told = capsys.readouterr().err
    assert told.count(f"round 20: damaged checkpoint, left out: {folder} is damaged") == 1


def test_nothing_comes_any_more(workdir, capsys):
    save(workdir, 10)
    assert Job(workdir).follow() == 1
    assert "no checkpoint for 0 s: evaluated 1 checkpoints" in capsys.readouterr().err


def test_a_run_that_was_prolonged_goes_on(workdir):
    """Its folder still has the model of the end before."""
    save(workdir, 10, 30)
    assert not is_complete(workdir, 30)
    (workdir / state.MODEL).mkdir()
    assert is_complete(workdir, 30) and not is_complete(workdir, 40)


def test_a_damaged_list_names_the_line(workdir):
    (workdir / FILE).write_text('{"round": 10, "split": "val"}\nnonsense\n')
    with pytest.raises(ValueError, match=f"{FILE}: line 2 cannot be read"):
        Job(workdir).follow()


MODEL = ["--model", "m", "--data_dir", "d", "--features", "pixels"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one of the arguments --workdir --model is required"),
        (["--workdir", "w", "--model", "m"], "not allowed with argument"),
        (["--model", "m"], "--model needs --data_dir and --features"),
        ([*MODEL, "--follow"], "--follow and --round need --workdir"),
        (["--workdir", "w", "--round", "last"], "--round should be a number"),
        (["--workdir", "w", "--max_examples", "-1"], "--max_examples should not be negative"),
        (["--workdir", "w", "--follow", "--submissions", "s"], "leave --follow out"),
        ([*MODEL, "--submissions", "s", "--max_examples", "9"], "leave --max_examples out"),
    ],
)
def test_command_lines_that_make_no_sense(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.parse_arguments(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_splits_by_default():
    assert evaluate.parse_arguments(MODEL).split == "reported"
    assert evaluate.parse_arguments(["--workdir", "w", "--follow"]).split == "val"
    given = evaluate.parse_arguments(["--workdir", "w", "--follow", "--split", "test"])
    assert given.split == "test"


def test_following_waits_for_a_run_to_describe_itself(tmp_path, monkeypatch, capsys):
    """The workdir comes with the third look at it; what then is read fails."""
    config, looks = tmp_path / "run" / state.CONFIG, []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            config.parent.mkdir()
            config.write_text("{")

    monkeypatch.setattr(evaluate.time, "sleep", sleep)
    argv = ["--workdir", str(config.parent), "--follow", "--poll_seconds", "7"]
    assert evaluate.main(argv) == 1
    assert looks == [7, 7, 7]
    waiting, error = capsys.readouterr().err.splitlines()
    assert waiting.startswith(f"waiting for {config}, which a run writes")
    assert error.startswith(f"error: {config}: Expecting property name")


def test_following_gives_up_on_a_run_that_does_not_come(tmp_path, capsys):
    argv = ["--workdir", str(tmp_path), "--follow", "--poll_seconds", "0.01"]
    assert evaluate.main([*argv, "--idle_minutes", "0.0005"]) == 1
    waiting, error = capsys.readouterr().err.splitlines()
    assert waiting.startswith("waiting for ")
    assert f"{tmp_path / state.CONFIG}: not there after 0.0005 minutes" in error
    assert evaluate.main(argv[:2]) == 1
    assert "waiting" not in capsys.readouterr().err


def test_help_shows_how_to_use_it(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.parse_arguments(["--help"])
    assert ended.value.code == 0
    assert "python -m twelve_in_one.evaluate --workdir DIR" in capsys.readouterr().out


def test_no_model_folder(tmp_path, capsys):
    argv = ["--model", str(tmp_path), "--data_dir", str(tmp_path), "--features", "pixels"]
    assert evaluate.main(argv) == 1
    assert "a model folder is what training saves" in capsys.readouterr().err
