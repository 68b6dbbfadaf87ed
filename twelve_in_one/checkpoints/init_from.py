"""Initialises a run with some or all weights of another model, and reports the result."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one.checkpoints import frozen, inputs_record, state, weights
from twelve_in_one.checkpoints.open_model import open_model
from twelve_in_one.checkpoints.report import Report, StateDictError, nearest_names
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.config.settings import InitFrom, task_key
from twelve_in_one.data import trained_on
from twelve_in_one.data.image_serving import ImageServing
from twelve_in_one.data.serving import TASKS_FILE, Serving, answers_file, load_serving
from twelve_in_one.data.trained_on import TrainedOn
from twelve_in_one.systems.base import Inputs, System

_log = logging.getLogger(__name__)


def load(options: InitFrom, params: Any, system: System, serving: Serving) -> tuple[Any, Report]:
    """Replaces parameters by those of the source.

    Args:
      options: the source and which parameters to take from it.
      params: nested dict of arrays, drawn at random and placed.
      system: the model.
      serving: vocabularies of the run; the source's must equal those whose weights are taken.

    Returns:
      Parameters placed as `params` are, and the report.

    Raises:
      StateDictError: parameters that the source lacks or has in another shape, unless this is
        allowed; parameters of the source that the model does not know.
      ValueError: the source cannot be read, or its inputs (words, answers, regions, task tokens)
        differ from those of the run.
    """
    source, other = _read(Path(options.path))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    if system.scanned:
        params = system.unstack(params)
    ours, theirs = flatten(params), flatten(source)
    wanted = _matcher(options.include, options.exclude)
    offered = {path: array for path, array in theirs.items() if wanted("/".join(path))}
    report = _report(ours, offered, theirs, options, wanted, system.optional)
    if other is not None:  # first, as different vocabularies cause many wrong shapes
        asked = {*report.loaded, *(name for name, *_ in report.wrong_shape)}
        _check_inputs(options.path, system.inputs, other, serving, asked)
    elif report.loaded:
        _log.warning(
            "%s does not say with which word pieces and answers it was trained: make sure that "
            "those of the data are its own (of released weights, trainval_label2ans.pkl)",
            options.path,
        )
    if not report.ok:
        raise StateDictError(report)
    for name in report.loaded:
        path = tuple(name.split("/"))
        ours[path] = jax.device_put(np.asarray(offered[path]), ours[path].sharding)
    merged = unflatten(ours)
    if system.scanned:  # compiled, as only then the result is placed correctly
        merged = jax.jit(system.stack, out_shardings=shardings)(merged)
    return merged, report


def encoder_of(options: InitFrom, workdir: Path) -> Any:
    """The parameters of the frozen encoder of a run, begun or not, as NumPy arrays.

    Raises:
      ValueError: neither the workdir nor the source of its weights has any.
    """
    found = frozen.read_encoder(workdir)
    if found is None:
        source, _ = _read(Path(options.path))
        found = source.get("encoder")
    if found is None:
        raise ValueError(f"{options.path}: holds no image encoder")
    return found


def trained_on_of(path: Path) -> TrainedOn:
    """The training examples that the weights of a source have seen."""
    folder = path / state.MODEL if (path / state.MODEL).is_dir() else path
    return trained_on.read(folder / trained_on.FILE) or trained_on.nothing(
        f"what the weights of {path} were trained on"
    )


def _read(source: Path) -> tuple[Any, Serving | None]:
    """Parameters in the unrolled layout, and the vocabularies they were trained with if known."""
    path = source
    if (source / state.MODEL).is_dir():
        path = source / state.MODEL
    elif state.all_rounds(source):
        raise ValueError(
            f"{path}: the run there has not ended; write its weights with "
            f"`python -m twelve_in_one.export --from {path} --to FOLDER --format params` and begin "
            "with these"
        )
    try:
        params, _, _ = weights.load_params(path)
    except weights.DamagedError:
        if path == source or not state.all_rounds(source):
            raise
        model = open_model(source)  # warns, and takes a checkpoint
        return model.params, model.serving
    known = (path / TASKS_FILE).is_file()
    return params, load_serving(path) if known else None


def _matcher(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    def matches(patterns: Sequence[str], name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in patterns)

    return lambda name: matches(include, name) and not matches(exclude, name)


def _report(
    ours: Mapping[Any, Any],
    offered: Mapping[Any, Any],
    theirs: Mapping[Any, Any],
    options: InitFrom,
    wanted: Callable[[str], bool],
    optional: tuple[str, ...],
) -> Report:
    allowed = _matcher(options.allow_missing, ())
    loaded, initialised, missing, wrong_shape = [], [], [], []
    for path, array in ours.items():
        name = "/".join(path)
        found = offered.get(path)
        if found is not None and found.shape == array.shape:
            loaded.append(name)
        elif not wanted(name) or allowed(name):
            initialised.append(name)
        elif found is None:
            missing.append(name)
        else:
            wrong_shape.append((name, str(found.shape), str(array.shape)))
    unknown = ["/".join(path) for path in offered if path not in ours]
    unused = ["/".join(path) for path in theirs if path not in offered]
    # A source may have heads that this run does not use; anything else unknown is a mistake.
    unexpected = [name for name in unknown if not name.startswith(optional)]
    unused += [name for name in unknown if name.startswith(optional)]
    names = ["/".join(path) for path in ours]
    return Report(
        loaded=tuple(loaded),
        initialised=tuple(initialised),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong_shape),
        unused=tuple(unused),
        nearest=nearest_names(unexpected, names),
    )


def _check_inputs(path: str, known: Inputs, source: Serving, run: Serving, asked: set[str]) -> None:
    """Weights of words, answers, regions and task tokens are meaningless with other inputs.

    Raises:
      ValueError: lists the differences and the remedies.
    """

    def reads(prefix: str) -> bool:
        return bool(prefix) and any(name.startswith(prefix) for name in asked)

    if isinstance(source, ImageServing) or isinstance(run, ImageServing):
        _check_image_inputs(path, known, source, run, reads)
        return
    words = known.words
    if reads(words) and source.tokenizer.lower_case != run.tokenizer.lower_case:
        raise ValueError(
            f"{path}: trained with lower_case {source.tokenizer.lower_case}, the data were built "
            f"with {run.tokenizer.lower_case}: build them as the source's were, or exclude "
            f"{words!r} in init_from"
        )
    if reads(words):
        pieces = source.tokenizer.vocabulary, run.tokenizer.vocabulary
        how = inputs_record.difference(*pieces, "word piece")
        if how:
            raise ValueError(
                f"{path}: its word pieces are not those of the data (vocab.txt differs): {how}; "
                f"build the data with its vocabulary, or exclude {words!r} in init_from"
            )
    for head, answers in run.answers.items():
        prefix = known.answers.format(head=head)
        if reads(prefix):
            how = inputs_record.difference(source.answers.get(head, ()), answers, "answer")
            if how:
                raise ValueError(
                    f"{path}: the answers of its {head!r} head are not those of the data: {how}; "
                    f"put its {answers_file(head)} into the data folder, or exclude "
                    f"'{prefix}.*' in init_from"
                )
    before, now = source.preprocessing, run.preprocessing
    regions = known.regions
    if reads(regions):
        for key in ("image_descriptor", "boxes"):
            was, given = getattr(before, key), getattr(now, key)
            if was != given:
                raise ValueError(
                    f"{path}: it learnt from other regions than those of the data ({key} "
                    f"{was!r}, here {given!r}): build the data with its regions, or exclude "
                    f"'{regions}.*' in init_from"
                )
        if before.region_source != now.region_source:
            _log.warning(
                "%s learnt from region features called %r, the data have %r: make sure that one "
                "detector made both",
                path,
                before.region_source,
                now.region_source,
            )
    if reads(known.task_ids):
        rows = {task.name: task.task_id for task in source.tasks}
        for task in run.tasks:
            row = rows.get(task.name, task.task_id)
            if row != task.task_id:
                raise ValueError(
                    f"{path}: task {task.name} has row {row} of its task tokens, here "
                    f"{task.task_id}: set config.task.{task_key(task.name)}.task_token={row}, or "
                    f"exclude '{known.task_ids}.*' in init_from"
                )


def _check_image_inputs(
    path: str,
    known: Inputs,
    source: Serving | ImageServing,
    run: Serving | ImageServing,
    reads: Callable[[str], bool],
) -> None:
    """The same for pictures: tokens and lists of classes."""
    if reads(known.words) and source.tokenizer != run.tokenizer:
        raise ValueError(
            f"{path}: its tokens are not those of the run: name its tokenizer as "
            f"config.text.tokenizer, or exclude '{known.words}.*' in init_from"
        )
    for head, labels in run.answers.items():
        prefix = known.answers.format(head=head)
        if reads(prefix) and source.answers.get(head, ()) != labels:
            raise ValueError(
                f"{path}: the classes of its {head!r} are not those of the run: exclude "
                f"'{prefix}.*' in init_from"
            )
