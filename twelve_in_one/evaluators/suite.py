"""The final test of every task, by the protocol of its published numbers.

Retrieval ranks all images for every caption; all other tasks score their examples one by one. The
two test splits of RefCOCO and RefCOCO+ are scored separately and together.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from twelve_in_one.config.settings import EvaluationOptions
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.cut_texts import count_cut
from twelve_in_one.data.encode.retrieval import read_retrieval_set
from twelve_in_one.data.pipeline import AllTrainedOn, Stream, as_dataset
from twelve_in_one.evaluators import detections, embeddings, official, retrieval, rows, texts
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import EvalStep, Outcome
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.placement import Placement
from twelve_in_one.systems.base import AnyTask, System
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import Task

Progress = Callable[[str, int, int], None]
_BLIND = ("chance", "majority", "words")
_SEEING = ("shuffled", "frame", "neighbour", "probe")  # of some tasks on pictures
_LARGE_MATRIX = 100 << 20  # bytes of scores that are worth a log line
_PEEKED = 100  # records; a test's answers are public or not; single examples may lack theirs


def evaluate_task(
    system: System,
    placement: Placement,
    params: Any,
    stream: Stream,
    *,
    options: EvaluationOptions,
    max_examples: int = 0,
    prefetch: int = 2,
    compiled: EvalStep | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Outcome | Ranking]:
    """Scores one split of one task. With several processes, all of them make the same call.

    Args:
      system: the model.
      placement: of the parameters.
      params: of the model.
      stream: the split, not for training; this process's rows.
      options: sizes of the blocks of retrieval.
      max_examples: number of first examples to use; for retrieval, the first images with this
        many captions, which makes it easier. 0 for all.
      prefetch: number of batches to prepare ahead.
      compiled: evaluation step for batches of these shapes; compiled here if None.
      name: of task and split, for progress.
      progress: called with a name, the amount done and the total.

    Returns:
      The output of `rows.summarise` or `retrieval.summarise`, with "official", see
      `official.figures`; and the predictions.

    Raises:
      DataError: a record cannot be used; names it.
      ValueError: the model's outputs are not finite.
    """
    task = stream.task
    kind = KINDS[task.kind]
    report: Progress = progress or (lambda name, done, total: None)
    with sharding.use(placement.mesh, placement.layout):
        if kind.ranked:
            candidates = read_retrieval_set(
                stream,
                max_captions=max_examples,
                progress=functools.partial(report, f"{name} images"),
            )
            count, size = len(candidates.caption_ids), len(candidates.image_ids)
            pairs = f"{name} pairs"
            if 4 * count * size > _LARGE_MATRIX:
                pairs += f" ({count:,} x {size:,}, {4 * count * size / 2**20:,.0f} MB)"
            ranked = retrieval.rank(
                _pair_step(system, _nameless(task), placement.mesh, placement.layout),
                params,
                candidates,
                placement.mesh,
                captions=options.retrieval_captions,
                images=options.retrieval_images,
                progress=functools.partial(report, pairs),
            )
            summary = retrieval.summarise(ranked)
            return summary | {"official": official.figures(task, ranked, summary)}, ranked
        if kind.embedded:
            summary, predictions = score_embedded(
                system,
                placement,
                params,
                stream,
                compiled=compiled,
                max_examples=max_examples,
                prefetch=prefetch,
                progress=functools.partial(report, name),
            )
            return summary | {"official": official.figures(task, predictions, summary)}, predictions
        if kind.detected:
            summary, predictions = score_detected(
                system,
                placement,
                params,
                stream,
                thorough=True,
                compiled=compiled,
                max_examples=max_examples,
                prefetch=prefetch,
                progress=functools.partial(report, name),
            )
            return summary, predictions
        if kind.generated:  # tests ask for more than validations do
            encode = stream.parts[0].encode
            table = encode.candidates if encode.labels else None
            key = None if table is None else (table.shape, table.tobytes())
            alike = dataclasses.replace(_nameless(task), name="", task_id=0)
            compiled = _text_step(system, alike, key, placement.mesh, placement.layout)
        elif compiled is None:
            compiled = _eval_step(system, _nameless(task), placement.mesh, placement.layout)
        summary, outcome = score_stream(
            compiled,
            params,
            stream,
            placement.place,
            answered=has_answers(stream),
            max_examples=max_examples,
            prefetch=prefetch,
            progress=functools.partial(report, name),
        )
    return summary | {"official": _official(stream, outcome, summary)}, outcome


def score_stream(
    step: EvalStep,
    params: Any,
    stream: Stream,
    place: Callable[[Any], Any],
    *,
    answered: bool = True,
    max_examples: int = 0,
    prefetch: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Outcome]:
    """Scores the examples of a stream one by one, as validation and all tests but rankings do.

    Args:
      step: compiled, see `make_step`.
      params: of the model.
      stream: not for training.
      place: see `rows.collect`.
      answered: whether the answers are known.
      max_examples: number of first examples to use; 0 for all.
      prefetch: number of batches to prepare ahead.
      progress: called with the amount done and the total.

    Returns:
      The output of `rows.summarise` or `texts.summarise`, and the predictions.
    """
    task, selection = stream.task, stream.selection
    kind, total = KINDS[task.kind], selection.num_examples
    if max_examples:
        total = min(total, max_examples)
    batches = as_dataset(stream, stop=-(-total // selection.batch_size), prefetch=prefetch)
    options = dict(
        max_examples=max_examples,
        progress=lambda done: progress and progress(min(done, total), total),
    )
    iterator = batches.as_numpy_iterator()
    if kind.generated:
        outcome = texts.evaluate_stream(step, params, iterator, stream, place, **options)
        return texts.summarise(task, outcome), outcome
    outcome = rows.evaluate_stream(step, params, iterator, place, **options)
    candidates = stream.encoding.candidates if kind.protocols else "detected"
    return rows.summarise(task, outcome, candidates=candidates, answered=answered), outcome


def score_embedded(
    system: System,
    placement: Placement,
    params: Any,
    stream: Any,
    *,
    compiled: Any = None,
    max_examples: int = 0,
    prefetch: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Outcome | Ranking]:
    """`score_stream` for tasks whose kind is `embedded`; arguments as of `evaluate_task`."""
    selection = stream.selection
    total = min(selection.num_examples, max_examples or selection.num_examples)
    batches = as_dataset(stream, stop=-(-total // selection.batch_size), prefetch=prefetch)
    with sharding.use(placement.mesh, placement.layout):
        step = _embed_step(system, placement.mesh, placement.layout)
        return embeddings.evaluate_stream(
            compiled or step,
            step,
            params,
            batches.as_numpy_iterator(),
            stream,
            placement.place,
            placement.mesh,
            max_examples=max_examples,
            progress=lambda done: progress and progress(min(done, total), total),
        )


def score_detected(
    system: System,
    placement: Placement,
    params: Any,
    stream: Any,
    *,
    thorough: bool,
    compiled: Any = None,
    max_examples: int = 0,
    prefetch: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], detections.DetectionOutcome]:
    """`score_stream` for tasks whose kind is `detected`; `thorough` adds chance and intervals."""
    selection = stream.selection
    total = min(selection.num_examples, max_examples or selection.num_examples)
    batches = as_dataset(stream, stop=-(-total // selection.batch_size), prefetch=prefetch)
    with sharding.use(placement.mesh, placement.layout):
        return detections.evaluate_stream(
            compiled or _detect_step(system, placement.mesh, placement.layout),
            params,
            batches.as_numpy_iterator(),
            stream,
            placement.place,
            thorough=thorough,
            max_examples=max_examples,
            progress=lambda done: progress and progress(min(done, total), total),
        )


def _official(stream: Stream, outcome: Outcome, summary: Mapping[str, Any]) -> Any:
    """See `official.figures`; looks up answers if there are any."""
    task = stream.task
    if KINDS[task.kind].noun != "answer":
        return official.figures(task, outcome, summary)
    source = SOURCES.get(task.name)
    return official.figures(
        task,
        outcome,
        summary,
        words={label: answer for answer, label in stream.encoding.answers.items()},
        records=stream.selection.reader.official(),
        expected=source is not None and source.official is not None,
    )


def has_answers(stream: Stream) -> bool:
    """Whether the split has answers, judged by its first records.

    Targets that are all 0 do not settle it: all answers may be outside the vocabulary.
    """
    if isinstance(stream.task, ImageTask) or not KINDS[stream.task.kind].noun:
        return True
    reader = stream.selection.reader
    first = (reader.record(int(position)) for position in stream.selection.records[:_PEEKED])
    return any(
        annotation.answers or annotation.label >= 0
        for record in first
        for annotation in record.annotations
    )


def make_step(system: System, stream: Any) -> Any:
    """The step of validations of a stream, to be jitted."""
    kind = KINDS[stream.task.kind]
    if kind.embedded:
        return system.embed
    if kind.detected:
        return system.detect
    if kind.generated:
        return system.writer(stream.task, None, thorough=False)
    return rows.make_eval_step(system, stream.task)


def evaluate_all(
    system: System,
    placement: Placement,
    params: Any,
    splits: Mapping[str, Sequence[str]],
    open_stream: Callable[[str, str], Stream],
    *,
    options: EvaluationOptions,
    max_examples: int = 0,
    prefetch: int = 2,
    compiled: Mapping[str, EvalStep] | None = None,
    baselines: Callable[[Task, str], Mapping[str, float]] | None = None,
    keep: Callable[[Stream, str, Outcome | Ranking], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores several tasks, one after the other.

    Args:
      system: the model.
      placement: of the parameters.
      params: of the model.
      splits: task name -> its splits to score.
      open_stream: (task name, split) -> this process's rows of it, not for training.
      options: see `evaluate_task`.
      max_examples: per split.
      prefetch: number of batches to prepare ahead.
      compiled: task name -> evaluation step for batches of the streams' shapes.
      baselines: (task, split) -> chance, majority and words, see `data.text_baselines`; not called
        for retrieval and pretraining.
      keep: called with each stream, split and predictions, e.g. to write them.
      progress: see `evaluate_task`.

    Returns:
      {"tasks": {name: {"title", "group", "metric", "score", "loss", "examples", "chance",
      "majority", "words", "metrics", "official": {split: figures}, ...}}, "average", "parameters",
      "seconds"}. Several splits of a task are averaged by their numbers of examples, and "metrics"
      has those of each as "split/name"; official figures, and "trained_on": {split: how much of it
      the model has seen, see `pipeline.Seen`}, are per split. Tasks with unpublished answers are
      not in "tasks" but in "unscored", and splits that the model has seen completely are in
      "trained_on_only", with their number of examples. "cut_texts" has one line for each split
      with texts too long for the task.
    """
    start = time.perf_counter()
    tasks: dict[str, Any] = {}
    unscored: dict[str, int] = {}
    seen_only: dict[str, int] = {}
    cut_texts: list[str] = []
    for name, wanted in splits.items():
        parts = {}
        for split in wanted:
            try:
                stream = open_stream(name, split)
            except AllTrainedOn as error:
                seen_only[f"{name}/{split}"] = error.records
                continue
            task = stream.task
            if not isinstance(task, ImageTask):
                cut = count_cut(stream)
                if cut.num_cut:
                    cut_texts.append(str(cut))
            part, predictions = evaluate_task(
                system,
                placement,
                params,
                stream,
                options=options,
                max_examples=max_examples,
                prefetch=prefetch,
                compiled=compiled[name] if compiled else None,
                name=f"{name}/{split}",
                progress=progress,
            )
            part = dict.fromkeys(_BLIND) | part
            if stream.selection.seen is not None:
                seen = dataclasses.asdict(stream.selection.seen)
                part["trained_on"] = seen | {"unknown": list(seen["unknown"])}
            if baselines and part["score"] is not None and KINDS[task.kind].blind:
                part |= baselines(task, split)
            parts[split] = part
            if keep:
                keep(stream, split, predictions)
        scored = {split: part for split, part in parts.items() if part["score"] is not None}
        if len(scored) < len(parts):
            left = parts.keys() - scored.keys()
            unscored[name] = sum(parts[split]["examples"] for split in left)
        if scored:
            apart = {
                key: {split: part.pop(key, None) for split, part in scored.items()}
                for key in ("official", "trained_on")
            }
            tasks[name] = {"title": task.title, "group": task.group} | _together(scored)
            for key, by_split in apart.items():
                tasks[name][key] = {split: found for split, found in by_split.items() if found}
    scores = [entry["score"] for entry in tasks.values()]
    return {
        "tasks": tasks,
        "average": math.fsum(scores) / len(scores) if scores else None,
        "unscored": unscored,
        "trained_on_only": seen_only,
        "cut_texts": cut_texts,
        "parameters": system.num_parameters,
        "seconds": time.perf_counter() - start,
    }


def _together(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Combines splits of a task, weighted by their number of examples."""
    if len(parts) == 1:
        return dict(*parts.values())
    total = sum(part["examples"] for part in parts.values())
    first = next(iter(parts.values()))

    def mean(values: Sequence[float | None]) -> float | None:
        if None in values:
            return None
        weighted = zip(values, parts.values(), strict=True)
        return math.fsum(value * part["examples"] for value, part in weighted) / total

    numbers = ("score", "loss", *_BLIND, *(key for key in _SEEING if key in first))
    together = {key: mean([part[key] for part in parts.values()]) for key in numbers}
    metrics = {
        key: mean([part["metrics"][key] for part in parts.values()]) for key in first["metrics"]
    }
    for split, part in parts.items():
        metrics |= {f"{split}/{key}": value for key, value in part["metrics"].items()}
    return first | together | {"examples": total, "metrics": metrics}


def _nameless(task: AnyTask) -> AnyTask:
    """The task without the fields that programs ignore: tasks equal otherwise share a program."""
    if isinstance(task, ImageTask):
        return dataclasses.replace(task, title="", batch_size=0, prompt="")
    sizes = dict.fromkeys(("max_tokens", "max_regions", "num_choices", "detected_slots"), 0)
    return dataclasses.replace(
        task, name="", title="", group="G1", task_id=0, batch_size=0, learning_rate=0.0, **sizes
    )


# Jitted functions are kept: a job that follows another evaluates the same tasks repeatedly.
# They are valid only for the mesh and layout they were compiled under.
@functools.lru_cache(maxsize=32)
def _eval_step(system: System, task: Task, mesh: Mesh, layout: str) -> Any:
    del mesh, layout
    return jax.jit(rows.make_eval_step(system, task))


@functools.lru_cache(maxsize=32)
def _text_step(system: System, task: AnyTask, table: Any, mesh: Mesh, layout: str) -> Any:
    """Of tasks of one group; `table` is the shape and the bytes of texts to rank, or None."""
    del mesh, layout
    ranked = None if table is None else np.frombuffer(table[1], np.int32).reshape(table[0])
    return jax.jit(system.writer(task, ranked, thorough=True))


@functools.lru_cache(maxsize=32)
def _embed_step(system: System, mesh: Mesh, layout: str) -> Any:
    del layout
    return jax.jit(system.embed, out_shardings=sharding.replicated(mesh))


@functools.lru_cache(maxsize=32)
def _detect_step(system: System, mesh: Mesh, layout: str) -> Any:
    del layout
    return jax.jit(system.detect, out_shardings=sharding.replicated(mesh))


@functools.lru_cache(maxsize=32)
def _pair_step(system: System, task: Task, mesh: Mesh, layout: str) -> Any:
    del mesh, layout
    return jax.jit(system.pair_scores(task))
