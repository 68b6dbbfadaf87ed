"""A small run examined on eight CPU devices as two machines of four."""

import dataclasses

import jax
import pytest
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs
from twelve_in_one.config import check
from twelve_in_one.preflight import figures, report, roofline, topology
from twelve_in_one.preflight.hlo import Collective

MACHINES = topology.parse("gpu:h100x4x2")


def config_of(name, **changes):
    config = configs.get(name)
    config.update_from_flattened_dict(changes)
    return check.check(config)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def examine(cache):
    def examine(layout, slices):
        changes = SMALL_MODEL | {
            "tasks": ("refcoco",),
            "model.heads": ("region_score",),
            "parallel.layout": layout,
            "parallel.slices": slices,
        }
        run = config_of("world:debug", **changes)
        return figures.examine(run, MACHINES, training_only=True, cache=cache)

    return examine


@pytest.fixture(scope="module")
def hybrid(examine):
    return examine("hsdp", 2)


def test_only_gradients_cross_slices(hybrid):
    (update,) = hybrid.figures
    assert dict(hybrid.mesh_shape) == {"slice": 2, "data": 4, "model": 1}
    crossing = [item for item in update.collectives if "slice" in item.axes]
    assert all("transpose(jvp" in item.source for item in crossing)  # of the backward pass
    sums = [item for item in crossing if item.kind == "all-reduce"]
    # A chip holds a part of each gradient, or all of one that nothing divides, and sums that alone;
    # beside these cross a few numbers of the loss.
    assert hybrid.state["parameters"] * 0.9 <= sum(item.bytes for item in sums)
    assert sum(item.bytes for item in sums) <= hybrid.state["parameters"] + 1024
    # The gradient of the table of words is made of those of the words in a batch.
    (words,) = (item for item in crossing if item.kind != "all-reduce")
    assert words.kind == "all-gather" and "text_embedding/word" in words.source
    tokens = hybrid.run.task["refcoco"].max_tokens
    width = hybrid.system.config.text.hidden_dim
    assert words.bytes <= update.rows * (tokens + 1) * (4 * width + 4)
    inside = [item for item in update.collectives if item not in crossing]
    assert all(item.axes == ("data",) and item.islands == 1 for item in inside)
    assert "all-gather" in {item.kind for item in inside}  # of parameters


def test_figures_are_kept(hybrid, examine, monkeypatch, cache):
    def fail(*args):
        raise AssertionError("compiled again")

    monkeypatch.setattr(figures, "_measured", fail)
    assert examine("hsdp", 2).figures == hybrid.figures
    (file,) = cache.iterdir()
    file.write_text("{}")
    with pytest.raises(AssertionError, match="compiled again"):
        examine("hsdp", 2)
    file.unlink()


def test_time_of_the_plan(hybrid):
    (time,) = report.stream_times(hybrid)
    (update,) = hybrid.figures
    least = report.bounds(hybrid)[update.name]
    assert time.seconds == least.step and time.rows == update.rows == 8
    assert time.updates == hybrid.run.schedule.num_rounds
    assert least.by == roofline.SLOW  # so small a model waits for the network
    text = report.describe(hybrid)
    assert "2 machine(s) of 4 h100: 8 chips" in text and "nothing: it fits" not in text
    assert report.as_json(hybrid)["programs"][0]["bound"]["memory"] > 0


def test_what_to_change(hybrid):
    assert report.fits(hybrid)
    (update,) = hybrid.figures
    large = dataclasses.replace(update, temporaries=100 << 30, total=110 << 30, rows=64)
    run = dataclasses.replace(
        hybrid.run, parallel=dataclasses.replace(hybrid.run.parallel, layout="dp")
    )
    tight = dataclasses.replace(
        hybrid, figures=(large,), run=run, state={"parameters": 10 << 30, "moments": 20 << 30}
    )
    assert not report.fits(tight)
    advice = "\n".join(report.advice(tight))
    assert "--config.parallel.layout=hsdp" in advice
    assert "--config.model.remat=full" in advice
    assert "--config.task.refcoco.accumulate=2" in advice
    assert "DOES NOT FIT" in report.describe(tight)


def test_batches_that_do_not_divide_are_told():
    notes = []
    shapes = {"_mask": jax.ShapeDtypeStruct((12,), bool)}
    assert figures._fitted("vqa", shapes, 8, 0, notes)["_mask"].shape == (16,)
    assert "its batch of 12 examples is no multiple of 8" in notes[0]
    assert figures._fitted("vqa", shapes, 8, 24, [])["_mask"].shape == (24,)


def test_sums_of_collectives():
    def one(size, axes, times, source=""):
        return Collective("all-reduce", size, axes, 4, 1, times, source)

    alone = dataclasses.replace(one(9, (), 1), ways=1)
    found = figures.summed(
        [
            one(10, ("data",), 1, "small"),
            one(7, ("data",), 3, "large"),
            one(5, ("model",), 1),
            alone,
        ]
    )
    assert found == (one(31, ("data",), 1, "large"), one(5, ("model",), 1))


def test_compiles_for_real_tpus(tmp_path):
    """A program for 16 chips, if the compiler for TPUs is installed."""
    pytest.importorskip("libtpu", reason="needs the extra `preflight`: pip install libtpu")
    import subprocess
    import sys

    command = [sys.executable, "-m", "twelve_in_one.preflight", "--config=world:debug"]
    command += ["--topology=v5e:4x4", "--training_only", "--config.tasks=('refcoco',)"]
    found = subprocess.run([*command, f"--cache={tmp_path}"], capture_output=True, text=True)
    assert "its batch of 8 examples is no multiple of 16" in found.stdout, found.stderr
    assert "along data: sends" in found.stdout
    assert found.returncode == 1
