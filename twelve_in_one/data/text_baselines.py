"""What can be scored without looking: chance, the best constant answer, and words alone.

    python -m twelve_in_one.data.text_baselines --data_dir DATA

A score of a model says something only beside these. "words" is logistic regression on the one- and
two-word sequences of the text, fitted on the training split; it sees neither picture nor boxes. Of
regions and choices it may learn which position in the list tends to be right.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from twelve_in_one import extras
from twelve_in_one.config.paths import local_path
from twelve_in_one.data.pipeline import TaskStream
from twelve_in_one.data.stored.reader import built_folder, has_split
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import DataFolder, open_folder, open_stream
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.metrics.boxes import is_right
from twelve_in_one.tasks.task import Task
from twelve_in_one.tasks.twelve import TWELVE

_MAX_LABELS = 200  # the most common; logistic regression over thousands of answers takes hours
_BATCH = 256
_MANY_TEXTS = 100


@dataclasses.dataclass(frozen=True)
class Blind:
    """Scores of one task without its pictures, all in [0, 1].

    Attributes:
      task: name.
      examples: scored.
      chance: a uniform guess among the possible predictions.
      majority: always the answer that is best on the training split.
      words: logistic regression on the text.
    """

    task: str
    examples: int
    chance: float
    majority: float
    words: float


@dataclasses.dataclass(frozen=True)
class Table:
    """N examples as texts, and the score that each of L predictions would get.

    Attributes:
      texts: N.
      scores: float32[N, L].
      possible: bool[N, L].
    """

    texts: tuple[str, ...]
    scores: np.ndarray
    possible: np.ndarray


def tabulate(stream: TaskStream, max_examples: int) -> Table:
    """The first examples of a stream, made by the code that makes its batches."""
    task, kind = stream.task, KINDS[stream.task.kind]
    texts: list[str] = []
    scores, possible = [], []
    selection = stream.selection
    for number in range(min(selection.num_batches, -(-max_examples // selection.batch_size))):
        batch = stream.batch(number)
        rows = batch["_mask"]
        tokens = batch["tokens"][rows].reshape(int(rows.sum()), -1, task.max_tokens)
        decode = stream.encoding.tokenizer.decode
        if kind.ranked:
            # Each option is scored on its own, as in a model.
            texts += [decode(option) for example in tokens for option in example]
            scores.append(np.tile(np.eye(2)[[1, 0, 0, 0]], (len(tokens), 1)))
            possible.append(np.ones_like(scores[-1], bool))
            continue
        texts += [decode(example[0]) for example in tokens]
        targets = batch["targets"][rows]
        mask = np.ones_like(targets, bool)
        if kind.protocols:
            targets, mask = is_right(targets), batch["region_mask"][rows]
            if stream.encoding.candidates == "annotated":  # the whole picture is not one of them
                mask = mask & (np.arange(mask.shape[1]) > 0)
                targets = targets & mask
        elif kind.choices:
            mask = batch["choice_mask"][rows]
            targets = np.eye(targets.shape[1])[np.where(mask, targets, -1).argmax(axis=1)]
        scores.append(targets.astype(np.float32))
        possible.append(mask)
    return Table(tuple(texts), np.concatenate(scores), np.concatenate(possible))


def blind_scores(task: Task, train: Table, test: Table) -> Blind:
    """Fits on `train`, scores on `test`."""
    if KINDS[task.kind].ranked:
        return _blind_match(task, train, test)
    used = train.scores.sum(axis=0)
    occurs = (used > 0) & test.possible if KINDS[task.kind].noun == "answer" else test.possible
    chance = (test.scores * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    order = np.argsort(-used, kind="stable")
    labels = train.scores.argmax(axis=1)
    fits = (train.scores.max(axis=1) > 0) & np.isin(labels, order[:_MAX_LABELS])
    probability = np.zeros(test.scores.shape)
    model, classes = _fit(np.array(train.texts, object)[fits], labels[fits])
    probability[:, classes] = model(test.texts)
    picked = np.where(test.possible, probability, -1).argmax(axis=1)
    return Blind(
        task.name,
        len(test.texts),
        float(chance.mean()),
        float(test.scores[:, order[0]].mean()),
        float(test.scores[np.arange(len(picked)), picked].mean()),
    )


def _blind_match(task: Task, train: Table, test: Table) -> Blind:
    k = task.rows_per_example
    model, _ = _fit(np.array(train.texts, object), train.scores.argmax(axis=1))
    fits = model(test.texts)[:, 1].reshape(-1, k)
    best = np.isclose(fits, fits.max(axis=1, keepdims=True))
    score = best[:, 0] / best.sum(axis=1)  # equal options share the point
    return Blind(task.name, len(fits), 1 / k, 1 / k, float(score.mean()))


def _fit(
    texts: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[Sequence[str]], np.ndarray], np.ndarray]:
    """A function from texts to class probabilities float[N, C], and the classes int[C]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(np.unique(labels)) < 2:
        return (lambda wanted: np.ones((len(wanted), 1))), np.unique(labels)
    min_df = 2 if len(texts) >= _MANY_TEXTS else 1  # of few, each word may occur once
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), min_df=min_df, token_pattern=r"\S+"),
        LogisticRegression(C=0.3, max_iter=60),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline need not be optimal
        model.fit(texts, labels)
    return model.predict_proba, model.classes_


def score_task(
    folder: DataFolder, task: Task, split: str, *, max_examples: int, candidates: str = "detected"
) -> Blind:
    """Blind scores of one task of a data folder.

    Args:
      folder: of the data.
      task: with its shapes.
      split: to score on.
      max_examples: of each split.
      candidates: of tasks of kind "region", see `Encoding`.

    Raises:
      DataError: the task or one of its splits has not been built.
    """

    def table(which: str) -> Table:
        training = which == "train"
        stream = open_stream(
            folder,
            task,
            which,
            batch_size=_BATCH,
            training=training,
            encoding_options={"candidates": candidates},
        )
        return tabulate(stream, max_examples)

    return blind_scores(task, table("train"), table(split))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.text_baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_dir", type=local_path, required=True, help="as data.build leaves it"
    )
    parser.add_argument("--features", default="pixels", help="name of the region features")
    parser.add_argument("--split", default="val", help="what to score on; default val")
    parser.add_argument("--max_examples", type=int, default=20_000, help="of each split")
    args = parser.parse_args(argv)
    try:
        extras.require("reading built datasets", "data")
        folder = open_folder(args.data_dir, args.features)
        print(f"{'task':<12} {'examples':>9} {'chance':>7} {'majority':>9} {'words':>7}")
        for task in TWELVE:
            start = time.perf_counter()
            built = built_folder(args.data_dir, task.name, args.features)
            if not has_split(built, args.split):
                print(f"{task.name:<12} no split {args.split}", file=sys.stderr)
                continue
            row = score_task(folder, task, args.split, max_examples=args.max_examples)
            seconds = time.perf_counter() - start
            print(
                f"{row.task:<12} {row.examples:>9,} {row.chance:>7.3f} {row.majority:>9.3f} "
                f"{row.words:>7.3f}",
                flush=True,
            )
            print(f"{task.name}: {seconds:.0f} s", file=sys.stderr)
        return 0
    except (DataError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
