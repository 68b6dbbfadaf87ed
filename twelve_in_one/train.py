"""Trains one model on several tasks, in turn, and prints a table of what each has learnt.

    python -m twelve_in_one.train --config=configs/scenes.py --workdir=DIR

The story: config, model, compile, train, evaluate, save.
"""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags

from twelve_in_one import checkpoint, optim, steps
from twelve_in_one.data import scenes
from twelve_in_one.models.config import TwoStreamConfig, named_size
from twelve_in_one.models.two_stream import count_parameters, init_params
from twelve_in_one.tasks.base import Task
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.twelve import TWELVE

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the trained model and its metrics.")

# First entries of a batch's seed: what is trained on is never evaluated on.
_TRAIN, _EVAL = 0, 1


def check_config(config: Any) -> tuple[Task, ...]:
    """The tasks of a config.

    Raises:
      ValueError: every error of the config at once.
    """
    known = {task.name: task for task in TWELVE}
    errors = []
    unknown = [name for name in config.tasks if name not in known]
    if unknown or not config.tasks:
        errors.append(f"tasks: {unknown or 'none given'}; known: {', '.join(known)}")
    if len(set(config.tasks)) < len(config.tasks):
        errors.append(f"tasks: each may be named once, got {', '.join(config.tasks)}")
    for key in ("batch_size", "num_rounds", "num_eval_examples", "log_every_rounds"):
        if config[key] < 1:
            errors.append(f"{key} must be at least 1, got {config[key]}")
    if config.batch_size > 0 and config.num_eval_examples % config.batch_size:
        errors.append(
            f"num_eval_examples {config.num_eval_examples} must be a multiple of batch_size "
            f"{config.batch_size}"
        )
    if not 0 <= config.warmup_rounds < max(config.num_rounds, 1):
        errors.append(
            f"warmup_rounds {config.warmup_rounds} must be less than num_rounds "
            f"{config.num_rounds}, and not negative"
        )
    for key in ("learning_rate", "weight_decay"):
        if not 0 <= config[key] < np.inf:
            errors.append(f"{key} must be a number from 0 up, got {config[key]}")
    if config.seed < 0:
        errors.append(f"seed must not be negative, got {config.seed}")
    try:
        model = named_size(config.model)
        if model.vocab_size < scenes.VOCAB_SIZE:
            errors.append(f"model {config.model}: scenes need {scenes.VOCAB_SIZE} words")
    except ValueError as error:
        errors.append(f"model: {error}")
    if errors:
        raise ValueError("config: " + "; ".join(errors))
    return tuple(known[name] for name in config.tasks)


def draw(task: Task, model: TwoStreamConfig, seed: tuple[int, ...], size: int) -> scenes.Batch:
    """A batch of scenes that fits the model's heads."""
    num_labels = model.num_gqa_answers if task.head == "gqa" else model.num_vqa_answers
    return scenes.draw_batch(task, seed, size, dim=model.region_feature_dim, num_labels=num_labels)


def chance(batch: scenes.Batch, task: Task) -> float:
    """Expected score of a uniform guess among the answers, options, regions or choices."""
    if task.kind == "region":
        return float(np.mean(1.0 / batch["region_mask"].sum(axis=1)))
    if task.kind == "choice":
        return float(np.mean(1.0 / batch["choice_mask"].sum(axis=1)))
    if task.kind == "match":
        return 1.0 / task.rows_per_example
    # Answers that occur at all: a guess among the thousands of a real vocabulary is a low bar.
    return 1.0 / int((batch["targets"].sum(axis=0) > 0).sum())


def compile_steps(
    config: Any, model: TwoStreamConfig, tasks: Sequence[Task], state: Any, optimizer: Any
) -> dict[str, tuple[Any, Any]]:
    """Compiles train and eval steps in threads: {task name: (train, eval)}.

    Tasks that differ only in their id and data share an executable.
    """
    batches = {task.name: draw(task, model, (_TRAIN, 0), config.batch_size) for task in tasks}

    def signature(task: Task) -> tuple[Any, ...]:
        shapes = ((key, x.shape, x.dtype) for key, x in batches[task.name].items())
        return (task.head, task.kind, task.rows_per_example, *sorted(shapes, key=str))

    distinct = {signature(task): task for task in tasks}
    start, done = time.perf_counter(), itertools.count(1)

    def one(task: Task) -> tuple[Any, Any]:
        batch, key = batches[task.name], jax.random.key(0)
        train = jax.jit(steps.make_train_step(model, task, optimizer), donate_argnums=0)
        evaluate = jax.jit(steps.make_eval_step(model, task))
        pair = (
            train.lower(state, batch, key).compile(),
            evaluate.lower(state.params, batch).compile(),
        )
        number, seconds = next(done), time.perf_counter() - start
        left = seconds / number * (len(distinct) - number)
        logging.info("compiled %d/%d  %s  ETA %.0f s", number, len(distinct), task.name, left)
        return pair

    with ThreadPoolExecutor() as pool:
        compiled = dict(zip(distinct, pool.map(one, distinct.values()), strict=True))
    return {task.name: compiled[signature(task)] for task in tasks}


def evaluate(
    config: Any,
    model: TwoStreamConfig,
    tasks: Sequence[Task],
    compiled: Mapping[str, tuple[Any, Any]],
    params: Any,
) -> dict[str, dict[str, float]]:
    """Score, chance and loss of every task on examples that were not trained on."""
    results = {}
    for task in tasks:
        totals, chances = None, []
        for i in range(config.num_eval_examples // config.batch_size):
            batch = draw(task, model, (_EVAL, config.seed, i), config.batch_size)
            sums = compiled[task.name][1](params, batch)
            totals = sums if totals is None else Sums(*map(jax.numpy.add, totals, sums))
            chances.append(chance(batch, task))
        results[task.name] = {
            "score": float(totals.mean_score()),
            "chance": float(np.mean(chances)),
            "loss": float(totals.mean_loss()),
        }
    return results


def results_table(tasks: Sequence[Task], results: Mapping[str, Mapping[str, float]]) -> str:
    """The results as text, a row a task."""
    rows = [f"{'group':5}  {'task':18}  {'score':>6}  {'chance':>6}  {'loss':>8}"]
    for task in tasks:
        r = results[task.name]
        rows.append(
            f"{task.group:5}  {task.title:18}  {r['score']:6.3f}  {r['chance']:6.3f}  "
            f"{r['loss']:8.4f}"
        )
    return "\n".join(rows)


def train(config: Any, workdir: Path) -> dict[str, dict[str, float]]:
    """Runs the whole job; returns {task: {score, chance, loss}}."""
    tasks, start = check_config(config), time.perf_counter()
    model = named_size(config.model)
    workdir.mkdir(parents=True, exist_ok=True)

    # ---- model and optimizer
    total, warmup = config.num_rounds * len(tasks), config.warmup_rounds * len(tasks)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, total)
    groups = optim.two_stream_groups(head_learning_rate=1.0, weight_decay=config.weight_decay)
    optimizer = optim.adamw(schedule, groups)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(config.seed))
    state = steps.init_state(params, optimizer)
    logging.info(
        "%s model, %d parameters, %s", config.model, count_parameters(model), jax.devices()
    )

    # ---- compile
    compiled = compile_steps(config, model, tasks, state, optimizer)
    logging.info("compiled %d tasks in %.0f s", len(tasks), time.perf_counter() - start)

    # ---- train: every round, one update per task in turn
    key, loop_start = jax.random.key(config.seed), time.perf_counter()
    with (workdir / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        for r in range(config.num_rounds):
            sums = {}
            for task in tasks:
                batch = draw(task, model, (_TRAIN, config.seed, r), config.batch_size)
                state, sums[task.name] = compiled[task.name][0](state, batch, key)
            done = r + 1
            if done % config.log_every_rounds == 0 or done == config.num_rounds:
                losses = {name: float(s.mean_loss()) for name, s in sums.items()}
                bad = [name for name, loss in losses.items() if not np.isfinite(loss)]
                if bad:
                    raise FloatingPointError(f"round {done}: loss is not finite for {bad}")
                rate = done / (time.perf_counter() - loop_start)
                logging.info(
                    "round %d/%d  %.1f updates/s  %.0f examples/s  ETA %.0f s  mean score %.3f",
                    done,
                    config.num_rounds,
                    rate * len(tasks),
                    rate * len(tasks) * config.batch_size,
                    (config.num_rounds - done) / rate,
                    np.mean([float(s.mean_score()) for s in sums.values()]),
                )
                metrics.write(json.dumps({"round": done, "loss": losses}) + "\n")

    # ---- evaluate and save
    results = evaluate(config, model, tasks, compiled, state.params)
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    checkpoint.save_params(workdir / "model", state.params, model, overwrite=True)
    seconds = time.perf_counter() - start
    print(results_table(tasks, results))
    print(
        f"one model of {count_parameters(model):,} parameters, {total} updates of "
        f"{config.batch_size} examples, {seconds:.0f} s; saved to {workdir / 'model'}"
    )
    return results


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.INFO)
    train(_CONFIG.value, Path(_WORKDIR.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
