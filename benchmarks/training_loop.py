"""What the training loop costs beside its steps: plan, mixture, placement, logging, data.

    python benchmarks/training_loop.py --config world --rounds 20 --repeats 3

Takes turns with three things: steps in the loop's order on batches that lie on the devices; the
loop with batches that are in memory; the loop with batches made beside it. The second less the
first is what plan, placement and logging cost, the third less the second what making batches takes
from the same processors. Waiting for data is what the loop's own clock says, which training logs.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from twelve_in_one import configs
from twelve_in_one.checkpoints import state
from twelve_in_one.config import check
from twelve_in_one.data.mixture import Mixture
from twelve_in_one.data.pipeline import yield_often
from twelve_in_one.logs import metrics_writer
from twelve_in_one.logs.window import LogWindow
from twelve_in_one.mixing import stop_and_go
from twelve_in_one.parallel import processes, sharding
from twelve_in_one.training import job, loop, programs


def bare_seconds(this: job.Job, compiled: programs.Programs, train_state: Any, rounds: int) -> Any:
    """Seconds of the steps alone, round after round, and the final state."""
    batches = {name: this.placement.place(s.batch(0)) for name, s in this.train_streams.items()}
    key = this.placement.everywhere(jax.random.key(0))
    flags = [this.placement.everywhere(jax.numpy.bool_(value)) for value in (False, True)]
    jax.block_until_ready((batches, train_state))
    start = time.perf_counter()
    for _ in range(rounds):
        for i, name in enumerate(this.names):
            gradient, _ = compiled.grad[name](
                train_state.params, train_state.step, batches[name], key
            )
            last = i == len(this.names) - 1
            train_state = compiled.update(train_state, gradient, flags[i > 0], flags[last])
        jax.block_until_ready(train_state.step)
    return time.perf_counter() - start, train_state


class Kept:
    """A mixture with its batches in memory."""

    def __init__(self, streams: Any):
        self._batches = {name: stream.batch(0) for name, stream in streams.items()}
        self.positions = dict.fromkeys(streams, 0)

    def next(self, task: str) -> Any:
        """The same batch each time."""
        self.positions[task] += 1
        return dict(self._batches[task])


def loop_seconds(
    this: job.Job, compiled: programs.Programs, train_state: Any, mixture: Any
) -> tuple[float, float, Any]:
    """Seconds of the loop's rounds by its own clock, share of waiting for data, and the state."""
    with contextlib.ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoints = stack.enter_context(state.Checkpoints(workdir, this.run.checkpoint))
        writer = stack.enter_context(metrics_writer.open_writer(workdir))
        position = loop.Position(0, stop_and_go.init(this.names), {}, LogWindow(this.parts), 0.0)
        stop = processes.StopRequest()
        train_state, _ = loop.run_rounds(
            this, compiled, train_state, {}, position, mixture, checkpoints, writer, stop
        )
        lines = metrics_writer.read(workdir / metrics_writer.FILE)
    (timing,) = (line["timing"] for line in lines if line["event"] == "train")
    return this.run.schedule.num_rounds / timing["rounds_per_s"], timing["data_wait"], train_state


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="world", help="as for training, e.g. world:debug")
    parser.add_argument("--rounds", type=int, default=20, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    config = configs.get(args.config)
    # One validation, after the last round, excluded from the loop's clock.
    config.schedule.num_rounds = args.rounds
    config.schedule.min_validation_rounds = config.schedule.num_rounds
    config.schedule.max_validation_rounds = 0
    config.evaluation.max_validation_examples = 1
    config.log.every_rounds = args.rounds
    run = check.check(config)
    yield_often()
    seconds: dict[str, list[float]] = {"steps alone": [], "loop, kept batches": [], "loop": []}
    waits = []
    with tempfile.TemporaryDirectory() as workdir:
        this = job.open_job(run, Path(workdir))
    with sharding.use(this.placement.mesh, this.placement.layout):
        abstract, frozen = job.abstract_of(this)
        compiled, _ = job.compile_job(this, abstract, frozen)
        train_state, _ = programs.random_state(this.system, this.optimizer, abstract, run.seed)
        mixtures = {
            "loop, kept batches": Kept(this.train_streams),
            "loop": Mixture(this.train_streams, prefetch=run.data.prefetch),
        }
        for repeat in range(args.repeats + 1):
            lap, train_state = bare_seconds(this, compiled, train_state, args.rounds)
            laps = {"steps alone": lap}
            for name, mixture in mixtures.items():
                laps[name], wait, train_state = loop_seconds(this, compiled, train_state, mixture)
            if repeat:  # the first laps read records that are in memory for later ones
                waits.append(wait)
                for name, lap in laps.items():
                    seconds[name].append(lap)
    print(f"{args.rounds} rounds of {len(this.names)} updates, median and best of {args.repeats}")
    for name, laps in seconds.items():
        print(f"{name:20} {statistics.median(laps):8.3f} s {min(laps):8.3f} s")
    bare, kept, whole = seconds.values()
    for name, ours, theirs in (
        ("plan, placement, logging", kept, bare),
        ("making batches beside it", whole, kept),
    ):
        median = statistics.median(ours) / statistics.median(theirs) - 1
        print(f"{name:26} {median:+8.1%} {min(ours) / min(theirs) - 1:+8.1%}")
    print(f"{'waiting for data':26} {statistics.median(waits):8.1%}")


if __name__ == "__main__":
    main()
