"""What the training loop costs beside its steps: plan, mixture, placement, logging, data.

    python benchmarks/training_loop.py --config configs/world.py --rounds 20 --repeats 3

Runs rounds of the loop, and before and after it the same steps in the same order on batches that
lie on the devices already. The share of time in which the loop waits for data is that of its own
clock, which training logs too.
"""

import argparse
import contextlib
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from twelve_in_one import (
    config_check,
    distributed,
    dsg,
    job,
    loop,
    metrics_writer,
    programs,
    sharding,
    state,
)
from twelve_in_one.data.mixture import Mixture
from twelve_in_one.log_window import LogWindow


def load_config(path: str, argument: str) -> Any:
    """The ConfigDict of a config file."""
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no config file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def bare_seconds(this: job.Job, compiled: programs.Programs, train_state: Any, rounds: int) -> Any:
    """Seconds of the steps alone, a round after the other, and the state after them."""
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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/world.py")
    parser.add_argument("--argument", default="", help="of the config, e.g. debug")
    parser.add_argument("--rounds", type=int, default=20, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    config = load_config(args.config, args.argument)
    # One validation, after the last round, which the loop's clock leaves out.
    config.schedule.num_rounds = args.rounds * (args.repeats + 1)
    config.schedule.min_validation_rounds = config.schedule.num_rounds
    config.schedule.max_validation_rounds = 0
    config.log.every_rounds = args.rounds
    run = config_check.check(config)
    with contextlib.ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        this = job.open_job(run, workdir)
        stack.enter_context(sharding.use(this.placement.mesh, this.placement.layout))
        compiled, _, abstract = job.compile_job(this)
        train_state = programs.random_state(this.placement, this.optimizer, abstract, run.seed)
        _, train_state = bare_seconds(this, compiled, train_state, 2)
        steps = []
        for _ in range(args.repeats):
            seconds, train_state = bare_seconds(this, compiled, train_state, args.rounds)
            steps.append(seconds)
        checkpoints = stack.enter_context(state.Checkpoints(workdir, run.checkpoint))
        writer = stack.enter_context(metrics_writer.open_writer(workdir))
        position = loop.Position(0, dsg.init(this.names), {}, LogWindow(this.names), 0.0)
        mixture = Mixture(this.train_streams, prefetch=run.data.prefetch)
        stop = distributed.StopRequest()
        train_state, _ = loop.run_rounds(
            this, compiled, train_state, position, mixture, checkpoints, writer, stop
        )
        for _ in range(args.repeats):
            seconds, train_state = bare_seconds(this, compiled, train_state, args.rounds)
            steps.append(seconds)
        lines = metrics_writer.read(workdir / metrics_writer.FILE)
    # The first laps read records that later ones find in memory.
    laps = [line["timing"] for line in lines if line["event"] == "train"][1:]
    loops = [args.rounds / lap["rounds_per_s"] for lap in laps]
    print(f"{args.rounds} rounds of {len(this.names)} updates, median and best of several")
    for name, seconds in (("steps alone", steps), ("loop", loops)):
        print(f"{name:18} {statistics.median(seconds):8.3f} s {min(seconds):8.3f} s")
    cost = statistics.median(loops) / statistics.median(steps) - 1
    print(f"cost of the loop   {cost:+8.1%}   {min(loops) / min(steps) - 1:+8.1%}")
    print(f"waiting for data   {statistics.median(lap['data_wait'] for lap in laps):8.1%}")


if __name__ == "__main__":
    main()
