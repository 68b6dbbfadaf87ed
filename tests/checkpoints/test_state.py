"""Checkpoints of a run: bit for bit, on any devices, whatever happens while they are written."""

import dataclasses
import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.spoiled_files import truncate_arrays

from twelve_in_one.checkpoints import state
from twelve_in_one.checkpoints.state import Checkpoints, Progress
from twelve_in_one.config.settings import CheckpointOptions
from twelve_in_one.models.two_stream.trunk import abstract_params
from twelve_in_one.optim import adamw, param_groups
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.placement import Placement
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.training import programs, steps

ALL = CheckpointOptions(every_rounds=1, keep_latest=9, keep_best=0, keep_every_rounds=0)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
    "adamw": adamw.adamw(
        1e-3, [param_groups.ParamGroup(".*", 1.0, 0.01)], official_unreached="skip_until_touched"
    ),
}
BUMP = jax.jit(
    lambda s: jax.tree.map(lambda x: x + 1 if x.dtype != bool else ~x, s), donate_argnums=0
)
LARGE = 500_000  # numbers that are still being written when `save` returns


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(
        text=dict(num_layers=1),
        visual=dict(num_layers=1),
        text_connections=(0,),
        visual_connections=(0,),
        heads=("vqa",),
    )


def progress(round, score=None, **fields):
    scores = {} if score is None else {"vqa": score}
    return dataclasses.replace(Progress(round, {"vqa": round}, {}, scores, {}, 1.5), **fields)


def small_state(value=0.0, size=3):
    value = jnp.float32(value)
    params = {"w": jnp.full((size,), value), "b": {"kernel": jnp.full((2, 2), value)}}
    return steps.init_state(params, OPTIMIZERS["sgd"])


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def noise(tree, seed=0):
    """The tree with a random number in every leaf, and flags that are set here and there."""
    rng = np.random.default_rng(seed)

    def one(leaf):
        if leaf.dtype == bool:
            return jnp.asarray(rng.random(leaf.shape) < 0.5)
        numbers = rng.normal(size=leaf.shape) * (1e9 if leaf.dtype == jnp.int32 else 1)
        return jnp.asarray(numbers, leaf.dtype)

    return jax.tree.map(one, tree)


def on_host(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_round_trip(tmp_path, name):
    """Every leaf, though the arrays are overwritten as soon as `save` returns."""
    params = {**small_state(size=LARGE).params, "scale": jnp.ones(2, jnp.bfloat16)}
    now = noise(steps.init_state(params, OPTIMIZERS[name]))
    expected = {}
    with Checkpoints(tmp_path, ALL) as checkpoints:
        assert checkpoints.latest() is None
        for round in (1, 2):
            expected[round] = on_host(now)
            checkpoints.save(now, progress(round))
            now = BUMP(now)
        checkpoints.wait()
        assert checkpoints.latest() == 2
        for round in (1, 2):
            restored, found = checkpoints.restore(round, abstract(now))
            assert_same(restored, expected[round])
            assert found == progress(round)
    with Checkpoints(tmp_path, ALL) as checkpoints:  # of the job that is started again
        assert checkpoints.latest() == 2
        assert_same(checkpoints.restore(2, abstract(now))[0], expected[2])


def test_progress_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    numbers = [*map(float, rng.normal(size=20) * 10.0 ** rng.integers(-300, 300, 20))]
    saved = Progress(
        round=7,
        positions={"vqa": 2**40, "refcoco+": 0},
        controllers={"vqa": {"best": -math.inf, "bad": 1, "cooldown": 0, "stopped": False}},
        scores={"vqa": 0.1 + 0.2, "refcoco+": 1 / 3},
        window={"vqa": {str(i): number for i, number in enumerate(numbers)}},
        seconds=1e5 / 7,
    )
    with Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(small_state(), saved)
        checkpoints.wait()
        assert checkpoints.restore(7, abstract(small_state()))[1] == saved
    assert state.read_progress(tmp_path, 7) == saved


def test_mean_score():
    assert progress(1).mean_score is None
    assert progress(1, 0.25).mean_score == 0.25
    both = dict(positions={"vqa": 1, "coco": 0}, scores={"vqa": 0.25, "coco": 0.75})
    assert progress(1, **both).mean_score == 0.5
    # A task that has not been validated: the mean would be over others than later on.
    assert progress(1, 0.9, positions={"vqa": 1, "coco": 0}).mean_score is None


def kept(options, scores):
    """Rounds that should be left, of checkpoints with these scores at rounds 1, 2, ..."""
    rounds = range(1, len(scores) + 1)
    latest = set(rounds[-options.keep_latest :])
    scored = [(score, round) for round, score in zip(rounds, scores, strict=True) if score]
    best = {round for _, round in sorted(scored)[::-1][: options.keep_best]}
    every = options.keep_every_rounds
    return sorted(latest | best | {round for round in rounds if every and round % every == 0})


@pytest.mark.parametrize(
    "latest, best, every", [(1, 0, 0), (1, 1, 0), (2, 2, 0), (1, 1, 4), (3, 0, 3)]
)
def test_what_is_kept(tmp_path, latest, best, every):
    rng = random.Random(latest + 10 * best + 100 * every)
    scores = [None, *(rng.choice((0.2, 0.3, 0.5, 0.5, 0.7, 0.9)) for _ in range(8))]
    options = CheckpointOptions(1, latest, best, every)
    with Checkpoints(tmp_path, options) as checkpoints:
        for round, score in enumerate(scores, start=1):
            checkpoints.save(small_state(round), progress(round, score))
    assert state.all_rounds(tmp_path) == kept(options, scores)
    left = [(scores[r - 1], r) for r in state.all_rounds(tmp_path) if scores[r - 1] is not None]
    assert state.choose_rounds(tmp_path, "best") == [r for _, r in sorted(left, reverse=True)]
    with Checkpoints(tmp_path, options) as checkpoints:
        for round in state.all_rounds(tmp_path):
            restored, _ = checkpoints.restore(round, abstract(small_state()))
            assert_same(restored, on_host(small_state(round)))


def test_kept_over_a_restart(tmp_path):
    """What an earlier job left counts as well."""
    options = CheckpointOptions(1, 1, 1, 0)
    scores = [0.4, 0.9, 0.5, 0.6, 0.7]
    for part in (range(1, 4), range(4, 6)):
        with Checkpoints(tmp_path, options) as checkpoints:
            for round in part:
                checkpoints.save(small_state(), progress(round, scores[round - 1]))
    assert state.all_rounds(tmp_path) == [2, 5]
    assert state.choose_rounds(tmp_path, "best") == [2, 5]


def test_rounds(tmp_path, caplog):
    assert state.all_rounds(tmp_path) == []
    for name in ("best", "latest", "2"):
        with pytest.raises(ValueError, match=f"no checkpoint of round {name}; there are none"):
            state.choose_rounds(tmp_path, name)
    with Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(small_state(), progress(2))
    with pytest.raises(ValueError, match="no checkpoint was validated yet"):
        state.choose_rounds(tmp_path, "best")
    with Checkpoints(tmp_path, ALL) as checkpoints:
        for round, score in ((9, 0.5), (10, 0.75), (11, 0.75), (100, 0.25)):
            checkpoints.save(small_state(), progress(round, score))
    (tmp_path / "checkpoints" / "7").touch()  # no folder
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert state.all_rounds(tmp_path) == [2, 9, 10, 11, 100]
    assert state.choose_rounds(tmp_path, "best") == [11, 10, 9, 100]
    assert state.choose_rounds(tmp_path, "latest") == [100, 11, 10, 9, 2]
    assert state.choose_rounds(tmp_path, "9") == [9]
    with pytest.raises(ValueError, match="round 7; there are 2, 9, 10, 11, 100, latest and best"):
        state.choose_rounds(tmp_path, "7")
    metadata = tmp_path / "checkpoints" / "11" / "progress" / "metadata"
    for content in ("{", "[]", '{"round": 11}'):
        metadata.write_text(content)
        caplog.clear()
        assert state.choose_rounds(tmp_path, "best") == [10, 9, 100]
        assert str(metadata) in caplog.text


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def break_progress(folder):
    (folder / "progress" / "metadata").write_text("{")


@pytest.mark.parametrize("damage", [truncate_arrays, break_progress])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(tmp_path, caplog, damage):
    """It is named and kept, and its round can be saved again, as often as that happens."""
    target, folder = abstract(small_state()), tmp_path / "checkpoints"
    with Checkpoints(tmp_path, ALL) as checkpoints:
        assert checkpoints.restore_newest(target) is None
        for round in (1, 2):
            checkpoints.save(small_state(round), progress(round))
    for kept in ("2", "2-2"):
        damage(folder / "2")
        before = contents(folder / "2")
        caplog.clear()
        with Checkpoints(tmp_path, ALL) as checkpoints:
            restored, found = checkpoints.restore_newest(target)
            assert_same(restored, on_host(small_state(1)))
            assert found == progress(1)
            assert f"damaged checkpoint: {folder / '2'}" in caplog.text
            assert "going on from round 1" in caplog.text
            assert f"{folder / '2'} is now {folder / 'damaged' / kept}" in caplog.text
            assert contents(folder / "damaged" / kept) == before
            assert checkpoints.latest() == 1
            checkpoints.save(small_state(2), progress(2))
        assert_usable(tmp_path, [1, 2])


def test_without_a_whole_checkpoint_nothing_is_moved(tmp_path):
    with Checkpoints(tmp_path, ALL) as checkpoints:
        for round in (1, 2):
            checkpoints.save(small_state(round), progress(round))
    for round in (1, 2):
        truncate_arrays(tmp_path / "checkpoints" / str(round))
    before = contents(tmp_path)
    message = f"no checkpoint to go on from: .*{tmp_path}/checkpoints/2.*{tmp_path}/checkpoints/1"
    with (
        Checkpoints(tmp_path, ALL) as checkpoints,
        pytest.raises(state.DamagedError, match=message),
    ):
        checkpoints.restore_newest(abstract(small_state()))
    assert contents(tmp_path) == before


def test_damaged_scores_are_written_anew(tmp_path, caplog):
    options = CheckpointOptions(1, 1, 1, 0)
    with Checkpoints(tmp_path, options) as checkpoints:
        for round, score in ((1, 0.5), (2, 0.25)):
            checkpoints.save(small_state(round), progress(round, score))
    file = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    expected = json.loads(file.read_text())
    file.write_text('{"sc')
    with Checkpoints(tmp_path, options) as checkpoints:
        assert str(file) in caplog.text
        assert json.loads(file.read_text()) == expected
        checkpoints.save(small_state(3), progress(3, 0.25))
    assert state.all_rounds(tmp_path) == [1, 3]  # the best is still known as such


def place(config, layout, *, devices, model=1):
    mesh = sharding.make_mesh(model=model, devices=jax.devices()[:devices])
    shardings = sharding.param_shardings(abstract_params(config), mesh, layout)
    return Placement(mesh, layout, shardings)


def test_other_devices(tmp_path, config):
    """Eight devices write; one and a mesh of two by four read."""
    optimizer = OPTIMIZERS["momentum"]
    wide = programs.abstract_state(Vilbert(config), place(config, "fsdp", devices=8), optimizer)
    shardings = programs.shardings_of(wide)
    saved = jax.device_put(noise(on_host_zeros(wide)), shardings)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(saved.params))
    expected = on_host(saved)
    with Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(saved, progress(3))
        checkpoints.wait()
        for layout, devices, model in (("dp", 1, 1), ("fsdp_tp", 8, 4)):
            narrow = place(config, layout, devices=devices, model=model)
            target = programs.abstract_state(Vilbert(config), narrow, optimizer)
            restored, _ = checkpoints.restore(3, target)
            assert_same(restored, expected)
            for leaf, where in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
                assert leaf.sharding == where.sharding
            params = state.restore_params(tmp_path, 3, Vilbert(config), narrow.params)
            assert_same(params, expected.params)
            for leaf, where in zip(
                jax.tree.leaves(params), jax.tree.leaves(narrow.params), strict=True
            ):
                assert leaf.sharding == where


def on_host_zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, config, random_params):
    """Of a run with one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    params = jax.tree.map(jnp.asarray, random_params(config))
    with Checkpoints(folder, ALL) as checkpoints:
        checkpoints.save(steps.init_state(params, OPTIMIZERS["momentum"]), progress(5))
    return folder


def test_params_alone(workdir, config, random_params):
    params = state.restore_params(workdir, 5, Vilbert(config))
    assert_same(params, random_params(config))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    with pytest.raises(ValueError, match="checkpoints/6"):
        state.restore_params(workdir, 6, Vilbert(config))
    larger = dataclasses.replace(config, vocab_size=43)
    with pytest.raises(ValueError, match=r"word/embedding has shape \(41, 16\), expected \(43, 16"):
        state.restore_params(workdir, 5, Vilbert(larger))
    with pytest.raises(ValueError, match="no heads/gqa"):
        more = dataclasses.replace(config, heads=("vqa", "gqa"))
        state.restore_params(workdir, 5, Vilbert(more))


def test_other_runs_are_refused(workdir, config, tiny_config):
    def restore(config, name):
        target = programs.abstract_state(
            Vilbert(config), place(config, "dp", devices=1), OPTIMIZERS[name]
        )
        with Checkpoints(workdir, ALL) as checkpoints:
            return checkpoints.restore_newest(target)

    where = "checkpoints/5 does not fit the run"
    larger = dataclasses.replace(config, max_positions=17)
    with pytest.raises(ValueError, match=rf"{where}: .*position/embedding has shape \(13, 16\)"):
        restore(larger, "momentum")
    deeper = dataclasses.replace(config, heads=("vqa", "image_pair"))
    with pytest.raises(ValueError, match=f"{where}: .*no .*/heads/image_pair"):
        restore(deeper, "momentum")
    for name in ("sgd", "adamw"):
        with pytest.raises(ValueError, match=f"{where}: .*opt_state"):
            restore(config, name)
    assert_same(
        restore(config, "momentum")[0].params, state.restore_params(workdir, 5, Vilbert(config))
    )
    with Checkpoints(workdir, ALL) as checkpoints, pytest.raises(ValueError, match="points/6"):
        checkpoints.restore(6, abstract(small_state()))


def assert_usable(folder, rounds, restore=small_state, **fields):
    """The rounds are there and hold what was saved; the newest is the one to go on from."""
    assert state.all_rounds(folder) == rounds
    with Checkpoints(folder, ALL) as checkpoints:
        assert checkpoints.latest() == rounds[-1]
        for round in rounds:
            restored, found = checkpoints.restore(round, abstract(restore(**fields)))
            assert_same(restored, on_host(restore(round, **fields)))
            assert found.round == round


def test_half_written_checkpoints_are_ignored(tmp_path):
    with Checkpoints(tmp_path, ALL) as checkpoints:
        for round in (1, 2):
            checkpoints.save(small_state(round), progress(round))
    folder = tmp_path / "checkpoints"
    half = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", half)
    shutil.rmtree(half / "progress")
    assert state.all_rounds(tmp_path) == [1, 2]
    assert_usable(tmp_path, [1, 2])
    assert not half.exists()
    with Checkpoints(tmp_path, ALL) as checkpoints:  # the round that was cut short, again
        checkpoints.save(small_state(3), progress(3))
    assert_usable(tmp_path, [1, 2, 3])


WRITER = """
import itertools, sys
import jax
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp, optax
from twelve_in_one.checkpoints import state
from twelve_in_one.config.settings import CheckpointOptions
from twelve_in_one.training import steps
with state.Checkpoints(sys.argv[1], CheckpointOptions(1, 3, 0, 0)) as checkpoints:
    for round in itertools.count(1):
        value = jnp.float32(round)
        params = {"w": jnp.full((500_000,), value), "b": {"kernel": jnp.full((2, 2), value)}}
        train_state = steps.init_state(params, optax.sgd(0.1))
        checkpoints.save(train_state, state.Progress(round, {"vqa": round}, {}, {}, {}, 1.5))
        print(round, flush=True)
"""


def test_killed_while_writing(tmp_path):
    """Jobs that are killed at some moment; each time the newest whole checkpoint is good."""
    rng = random.Random()
    for number in range(2):
        folder = tmp_path / str(number)
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            for _ in range(4):
                begun = int(job.stdout.readline())
            time.sleep(rng.uniform(0, 0.1))
            job.send_signal(signal.SIGKILL)
        rounds = state.all_rounds(folder)
        # That round 4 was begun means that round 3 is whole.
        assert rounds and rounds[-1] >= begun - 1 == 3
        assert_usable(folder, rounds, size=LARGE)


def test_full_disk(tmp_path):
    """The error names the folder; what is there stays, and can be gone on from."""

    def large(round):
        return small_state(round)._replace(
            params={"w": jnp.asarray(np.random.default_rng(0).random(100_000, np.float32))}
        )

    with Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(small_state(1), progress(1))
    # Python ignores the signal that comes with it, so that writing fails as on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(OSError, match=f"{tmp_path / 'checkpoints'} cannot be written: "),
        Checkpoints(tmp_path, ALL) as checkpoints,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            checkpoints.save(large(2), progress(2))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_usable(tmp_path, [1])
    with Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(small_state(2), progress(2))
    assert_usable(tmp_path, [1, 2])


def test_a_failure_in_the_background_is_not_lost(tmp_path):
    """A write that fails after `save` has returned comes up at the end of the job at the latest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    numbers = np.random.default_rng(0).random(100_000, np.float32)
    train_state = small_state()._replace(params={"w": jnp.asarray(numbers)})
    try:
        with (
            pytest.raises(OSError, match=f"{tmp_path / 'checkpoints'} cannot be written: "),
            Checkpoints(tmp_path, ALL) as checkpoints,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
            checkpoints.save(train_state, progress(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state.all_rounds(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/checkpoints cannot be opened: "):
        Checkpoints(tmp_path / "file", ALL)


def test_an_error_of_the_job_is_not_covered_up(tmp_path):
    with pytest.raises(FloatingPointError), Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(small_state(1), progress(1))
        raise FloatingPointError
    assert_usable(tmp_path, [1])


def test_what_a_workdir_holds(tmp_path):
    """The layout that others read."""
    with Checkpoints(tmp_path, ALL) as checkpoints:
        checkpoints.save(small_state(), progress(4, 0.5))
    written = json.loads((tmp_path / "checkpoints/4/progress/metadata").read_text())
    assert written == dataclasses.asdict(progress(4, 0.5))
    assert Path(tmp_path, "checkpoints", "4", "state").is_dir()
