"""Whether models that answer about a thing also find it (the paper's grounding consistency).

On images that have both questions and referring expressions and that no model trained on, every
question is paired with every expression. A pair's weight is its number of shared content words. It
is right if the question is answered and the referent localised; the score is the weighted share of
right pairs.

Our choice: the paper counts shared nouns and adjectives found by a part-of-speech tagger. Here a
content word is any word, as spelt, that is not among `FUNCTION_WORDS`. Questions are VQA's training
questions on images that cleaning takes out of training, expressions those of the test splits. A
question is answered right if its soft score is above one half (two of ten people suffice); a
referent is localised if the IoU is above one half, as in the task's own score.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.data.builders.sources import SOURCES
from twelve_in_one.data.stored.records import Annotation
from twelve_in_one.evaluators import suite
from twelve_in_one.evaluators.target import of_workdir, open_stream, splits_to_score
from twelve_in_one.experiments import grid, summary
from twelve_in_one.experiments.comparison import Outcome
from twelve_in_one.experiments.grid import Training
from twelve_in_one.experiments.main import BEGUN_WITH, batches_used, best_factor
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.training.programs import Placement

TITLES = {
    "single": "single-task",
    "all": "all tasks",
    "tuned": "all tasks → fine-tuned",
}
MODELS = tuple(TITLES)
ALWAYS = ("all",)
QUESTIONS = "vqa"
EXPRESSIONS = ("refcoco", "refcoco+")
# English words that say nothing about the contents of a picture.
_FUNCTION_WORDS = """
a an the this that these those some any no not all both each every other another one ones
i you he she it we they me him her us them my your his its our their who whom whose which what where
when why how is are was were be been being am do does did done doing has have had having can could
will would shall should may might must of in on at to from by with without for as into onto over
under above below near next between behind before after than then there here and or but if so nor
yet only just also too very more most less least much many
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_NOTE = """\
Weighted share of right pairs in percent, mean over seeds ± half of a 95 % interval; differences are
paired by seed, bold where the interval does not hold 0. Below it the plain shares of questions and
of expressions on the same images that are right. Words that both share are all but function words;
the paper counts nouns and adjectives."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A question or an expression, and whether a model was right about it.

    Attributes:
      image: id.
      text: of it.
      right: answered, or localised.
    """

    image: str
    text: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Results for all pairs of a question and an expression about one image.

    Attributes:
      score: share of right pairs, weighted by shared content words.
      pairs: number with a weight above 0.
      weight: sum over all pairs.
      images: number with such pairs.
    """

    score: float
    pairs: int
    weight: int
    images: int


def content_words(text: str) -> frozenset[str]:
    """The lower-case words of a text that are not in `FUNCTION_WORDS`."""
    return frozenset(re.findall(r"[^\W_]+", text.lower())) - FUNCTION_WORDS


def consistency(questions: Sequence[Judged], expressions: Sequence[Judged]) -> Consistency:
    """The weighted accuracy of all pairs about one image.

    Raises:
      ValueError: no pair shares a word.
    """
    of_image: dict[str, list[tuple[frozenset[str], bool]]] = {}
    for item in expressions:
        of_image.setdefault(item.image, []).append((content_words(item.text), item.right))
    pairs = weight = right = 0
    images = set()
    for question in questions:
        words = content_words(question.text)
        for others, localised in of_image.get(question.image, ()):
            shared = len(words & others)
            if shared:
                pairs, weight = pairs + 1, weight + shared
                right += shared * (question.right and localised)
                images.add(question.image)
    if not weight:
        raise ValueError(
            f"consistency: none of {len(questions)} questions shares a word with any of "
            f"{len(expressions)} expressions about its image"
        )
    return Consistency(right / weight, pairs, weight, len(images))


def count(base: Any, seeds: Sequence[int], models: Sequence[str]) -> int:
    """Trainings that `run` needs.

    Raises:
      ValueError: the config lacks the tasks, or does not clean.
    """
    names = _names(base)
    if QUESTIONS not in names or len(names) < 2:
        raise ValueError(
            f"consistency needs {QUESTIONS} and one of {', '.join(EXPRESSIONS)} in config.tasks"
        )
    if not base.data.clean:
        raise ValueError("consistency needs images that nobody trained on: config.data.clean=True")
    single = len(names) * (len(grid.RATE_FACTORS) - 1 + len(seeds)) if "single" in models else 0
    tuned = len(names) * len(seeds) if "tuned" in models else 0
    return len(seeds) + single + tuned


def _names(base: Any) -> list[str]:
    return [name for name in base.tasks if name in (QUESTIONS, *EXPRESSIONS)]


def run(runner: Runner, base: Any, seeds: Sequence[int], models: Sequence[str]) -> list[Outcome]:
    """Trains what is missing, and scores every model on images that none trained on.

    Args:
      runner: of the trainings.
      base: config of all tasks.
      seeds: of the trainings.
      models: of `MODELS`, "all" among them.

    Raises:
      ValueError: as in `Runner.run`, or no question shares a word with an expression.
      Stopped: as in `Runner.run`.
    """
    names, factors = _names(base), {}
    if "single" in models:
        factors = {name: best_factor(runner, base, name, seeds[0]) for name in names}
    outcomes = []
    for seed in seeds:
        source = grid.all_tasks(base, seed)
        updates = batches_used(runner, source)
        trainings: dict[str, Mapping[str, Training]] = {
            "single": {
                name: grid.single_task(
                    base, name, seed, updates=updates[name], rate_factor=factors[name]
                )
                for name in factors
            },
            "all": dict.fromkeys(names, source),
            "tuned": {
                name: grid.fine_tuned(base, name, seed, source, runner.workdir) for name in names
            },
        }
        results, parameters = {}, {}
        for model in (name for name in MODELS if name in models):
            chosen = trainings[model]
            found = {one.name: runner.run(one) for one in chosen.values()}
            judged = {
                name: judge(training.folder(runner.workdir), name)
                for name, training in chosen.items()
            }
            results[model] = _entries(judged)
            parameters[model] = sum(one["parameters"] for one in found.values())
        outcomes.append(Outcome(results, parameters))
    return outcomes


def judge(workdir: Path, name: str) -> list[Judged]:
    """A trained model's results on a task's examples, on images that no model trained on.

    Args:
      workdir: of the training, complete.
      name: of one of its tasks.

    Raises:
      ValueError: the model or its data cannot be read.
    """
    subject, _ = of_workdir(workdir)
    (task,) = (task for task in subject.tasks if task.name == name)
    placement = Placement.make(subject.system.abstract(), subject.layout, subject.model_axis)
    params, _, _ = model_folder.load(
        workdir / state.MODEL, shardings=placement.params, scan_layers=subject.system.scanned
    )
    asks = name == QUESTIONS
    splits = ("train",)
    if not asks:
        built, _ = splits_to_score(subject, [task], "test")
        splits = tuple(x for x in built.get(name, ()) if x in SOURCES[name].test_splits)
    found = []
    for split in splits:
        stream = open_stream(subject, placement, task, split, removed=asks)
        _, outcome = suite.evaluate_task(
            subject.system,
            placement,
            params,
            stream,
            options=subject.options,
            prefetch=subject.prefetch,
        )
        right = dict(zip(outcome.example_ids, outcome.score > 0.5, strict=True))
        found += [
            Judged(annotation.image_id, annotation.text, bool(right[annotation.example_id]))
            for annotation in _annotations(stream)
        ]
    jax.clear_caches()  # the next model cannot reuse the programs
    return found


def _annotations(stream: Any) -> Iterator[Annotation]:
    reader = stream.selection.reader
    for position in stream.selection.records:
        yield from reader.record(int(position)).annotations


def _entries(judged: Mapping[str, Sequence[Judged]]) -> dict[str, dict[str, Any]]:
    """Measure -> its entry as in `results.json`."""
    questions = judged[QUESTIONS]
    sets = {name: judged[name] for name in EXPRESSIONS if name in judged}
    everything = list(itertools.chain.from_iterable(sets.values()))
    if len(sets) > 1:
        sets["both"] = everything
    entries: dict[str, dict[str, Any]] = {}
    for name, expressions in sets.items():
        found = consistency(questions, expressions)
        entries[name] = {
            "title": f"questions × {name}",
            "score": found.score,
            "examples": found.pairs,
            "weight": found.weight,
            "images": found.images,
        }
    shared = {x.image for x in questions} & {x.image for x in everything}
    for name, items in (("questions", questions), ("expressions", everything)):
        right = [item.right for item in items if item.image in shared]
        entries[name] = {
            "title": f"{name} alone",
            "score": sum(right) / len(right),
            "examples": len(right),
            "images": len(shared),
        }
    return entries


def report(outcomes: Sequence[Outcome]) -> str:
    """The table, with its numbers of pairs and images."""
    entries = next(iter(outcomes[0].results.values()))
    facts = {
        "pairs": {name: f"{entry['examples']:,}" for name, entry in entries.items()},
        "images": {name: f"{entry['images']:,}" for name, entry in entries.items()},
    }
    return f"{summary.by_task(outcomes, TITLES, {}, facts, BEGUN_WITH)}\n\n{_NOTE}"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Gains on the first kind of model, one line per measure."""
    summary.plot(outcomes, TITLES, {}, path)
