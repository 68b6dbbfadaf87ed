"""Checkpoints of a run: everything a restarted job needs to continue as if uninterrupted.

One checkpoint holds the arrays of a train state (a named tuple) and `Progress`: positions in the
data, the stop-and-go controllers, scores, the sums of an open log window, and timers.
Orbax writes it in the background and gives it its name only when it is complete, so that a job may
be killed at any moment.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import flax.linen as nn
import jax

from twelve_in_one import atomic
from twelve_in_one.checkpoints import frozen, weights
from twelve_in_one.checkpoints.saved_rounds import (  # noqa: F401  (re-exported: callers need only this module)
    CHECKPOINTS,
    PROGRESS,
    Progress,
    all_rounds,
    choose_rounds,
    first_readable,
    mend_scores,
    read_progress,
    set_aside,
)
from twelve_in_one.checkpoints.trees import check_shapes, flatten, merge, unflatten
from twelve_in_one.checkpoints.weights import (
    DamagedError,
    await_stragglers,
    orbax_errors,
    stored_arrays,
)
from twelve_in_one.config import check
from twelve_in_one.config.settings import CheckpointOptions, RunConfig
from twelve_in_one.parallel import processes
from twelve_in_one.systems.base import System

CONFIG, MODEL = "config.json", "model"
_STATE = "state"
# Orbax moves discarded checkpoints here: no partial checkpoint ever has its final name.
_DELETED = "deleted"


class Checkpoints:
    """The checkpoints of a workdir, for the job that writes them. A context manager.

    With several processes, all of them make the same calls.
    """

    def __init__(self, workdir: str | os.PathLike[str], options: CheckpointOptions):
        import orbax.checkpoint as ocp  # slow to import
        from orbax.checkpoint import checkpoint_managers as managers

        def score(metrics: Mapping[str, float]) -> float:
            return metrics["score"]

        self._folder = Path(os.path.abspath(workdir)) / CHECKPOINTS
        policies: list[Any] = [managers.LatestN(options.keep_latest)]
        if options.keep_best:
            policies.append(
                managers.BestN(
                    get_metric_fn=score,
                    n=options.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        if options.keep_every_rounds:
            policies.append(managers.EveryNSteps(options.keep_every_rounds))
        self._ocp = ocp
        if jax.process_index() == 0:
            mend_scores(self._folder.parent)
        processes.barrier("scores")
        with orbax_errors(OSError, f"{self._folder} cannot be opened"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=managers.AnyPreservationPolicy(policies),
                    # Needed to write scores, which the policy of a restarted job reads.
                    best_fn=score,
                    todelete_subdir=_DELETED,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                ),
                item_names=(_STATE, PROGRESS),
                item_handlers={
                    _STATE: ocp.PyTreeCheckpointHandler(),
                    PROGRESS: ocp.JsonCheckpointHandler(),
                },
            )

            self._delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            with self._writing():
                self._manager.close()

    def save(self, state: Any, progress: Progress) -> None:
        """Starts writing a checkpoint; the state may be donated as soon as this returns.

        Raises:
          OSError: this or the previous checkpoint cannot be written.
        """
        self.wait()
        ocp, score = self._ocp, progress.mean_score
        with self._writing():
            self._manager.save(
                progress.round,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.PyTreeSave(state._asdict()),
                        PROGRESS: ocp.args.JsonSave(dataclasses.asdict(progress)),
                    }
                ),
                metrics=None if score is None else {"score": score},
            )

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError: a checkpoint could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._delete()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with orbax_errors(OSError, f"{self._folder} cannot be written"):
            try:
                yield
            except Exception:
                await_stragglers(self._folder)
                raise

    def _delete(self) -> None:
        if jax.process_index() == 0 and (self._folder / _DELETED).is_dir():
            shutil.rmtree(self._folder / _DELETED)

    def latest(self) -> int | None:
        """Round of the newest complete checkpoint."""
        return self._manager.latest_step()

    def restore_newest(self, abstract: Any) -> tuple[Any, Progress] | None:
        """Reads the newest readable checkpoint; None if there is no checkpoint.

        Warns of newer damaged ones, and moves them to `checkpoints/damaged`, out of the way of
        the repeated rounds. Deletes nothing.

        Raises:
          DamagedError: all are damaged; none is moved.
          ValueError: its model or optimizer has another shape.
        """
        rounds = sorted(self._manager.all_steps(), reverse=True)
        if not rounds:
            return None
        found, restored = first_readable(
            self._folder.parent, rounds, lambda round: self.restore(round, abstract)
        )
        damaged = rounds[: rounds.index(found)]
        if damaged:
            if jax.process_index() == 0:
                for round in damaged:
                    set_aside(self._folder / str(round))
            processes.barrier("damaged checkpoints")
            self._manager.reload()
        return restored

    def restore(self, round: int, abstract: Any) -> tuple[Any, Progress]:
        """Reads a checkpoint, on any number of devices.

        Args:
          round: of the checkpoint.
          abstract: train state of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          DamagedError: it cannot be read.
          ValueError: its model or optimizer has another shape.
        """
        path = self._folder / str(round)
        progress = read_progress(self._folder.parent, round)
        stored = stored_arrays(path / _STATE)
        check_shapes(_shapes(abstract._asdict()), _leaves(stored), f"{path} does not fit the run")
        ocp, target = self._ocp, abstract._asdict()
        wanted = ocp.args.PyTreeRestore(
            item=target,
            restore_args=jax.tree.map(
                lambda leaf: ocp.ArrayRestoreArgs(
                    sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
                ),
                target,
            ),
        )
        with orbax_errors(DamagedError, f"{path} cannot be read"):
            try:
                restored = self._manager.restore(round, args=ocp.args.Composite(**{_STATE: wanted}))
            except Exception:
                await_stragglers(path)
                raise
        return type(abstract)(**restored[_STATE]), progress


def restore_params(
    workdir: str | os.PathLike[str], round: int, system: System, shardings: Any = None
) -> Any:
    """The parameters of a checkpoint, without the optimizer's copies.

    Args:
      workdir: of the run.
      round: one of `all_rounds`.
      system: the model, in the layout that was trained.
      shardings: tree of the parameters' shardings; NumPy arrays if None.

    Raises:
      DamagedError: it cannot be read.
      ValueError: it is of another model.
    """
    path = Path(os.path.abspath(workdir)) / CHECKPOINTS / str(round) / _STATE
    stored = stored_arrays(path)["params"]
    there, where = flatten(stored), {} if shardings is None else flatten(shardings)
    known = read_progress(workdir, round).frozen
    rest: Any = {}
    if known:
        lacking = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where.get(path))
            for path, leaf in flatten(nn.unbox(system.abstract())).items()
            if path not in there
        }
        rest = frozen.read(workdir, unflatten(lacking), known, place=bool(where))
    check_shapes(weights.expected_shapes(system), flatten(merge(stored, rest)), str(path))
    target, wanted = {"params": stored}, None
    if where:
        kept = {path: sharding for path, sharding in where.items() if path in there}
        wanted = {"params": unflatten(kept)}
    return merge(weights.restore_tree(path, target, wanted, partial=True)["params"], rest)


def write_config(workdir: str | os.PathLike[str], config: Any) -> None:
    """Writes the ConfigDict of a run to its workdir, for later evaluation."""
    atomic.write(Path(workdir) / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(workdir: str | os.PathLike[str]) -> RunConfig:
    """The settings of a run.

    Raises:
      ValueError: there are none, or they do not fit this version of the code.
    """
    path = Path(workdir) / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; is {workdir} the workdir of a run?") from error
    try:
        return check.check(_of_today(raw))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_today(raw: Any) -> Any:
    """Updates a config of an earlier version, whose sections held the official options."""
    if not isinstance(raw, dict) or "system" in raw:
        return raw
    moved: dict[str, Any] = {}
    for name in ("optimizer", "schedule", "pretraining"):
        section = raw.get(name)
        if isinstance(section, dict):
            old = {key: x for key, x in section.items() if key.startswith("official_")}
            raw = raw | {name: {key: x for key, x in section.items() if key not in old}}
            moved |= {key.removeprefix("official_"): x for key, x in old.items()}
    return raw | {"system": {"official": moved}}


def _leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """{path: leaf} of nested dicts, tuples and named tuples, as Orbax names them."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))) for key in path)
        found[tuple(str(name) for name in names)] = leaf
    return found


def _shapes(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in _leaves(tree).items()}
