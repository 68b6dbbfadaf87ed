"""Scores of the texts that a model writes.

| group | score | further |
|---|---|---|
| classify | share of texts that are exactly the class | by ranking the classes, by the nearest |
| caption | CIDEr-D (1 is 100 of papers) | BLEU, ROUGE-L |
| vqa | credit of the answer among people's | exact matches |
| ocr | share of texts that are exactly the answer | |

All also have the loss per text (perplexity is its exponential), the share of texts that do not end,
the loss and the score with another picture ("shuffled"), and the score without the picture
("words"): a model whose score is no better has not learnt to look. Of clips there is also the
score with the middle frame alone, repeated ("frame"), and how much better whole clips are. If the
tokens of the pictures are stored, "neighbour" and "probe" are the scores of `feature_baselines` on
them.
Letters: E examples, L tokens.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twelve_in_one.data.images.image_set import ImageExample, ImageSet, TextMisfit, examples
from twelve_in_one.data.images.texts import TextTargets
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.evaluators import feature_baselines, rows
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.tasks.metrics import captions
from twelve_in_one.tasks.metrics.texts import nearest_names
from twelve_in_one.tasks.metrics.vqa import normalise_answer

_SEES_NOTHING = 0.01  # the loss with another picture is less than this higher, in nats per token
_MAJORITY_EXAMPLES = 20_000
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextOutcome:
    """An evaluation, the same on every process; examples in the order of the stream.

    Attributes:
      example_ids: E ids.
      texts: E texts.
      score: float32[E], of each.
      confidence: float32[E], probability of the whole text.
      finished: bool[E], whether it ends.
      loss: mean over the examples, of the right text.
      other_loss: the same with the picture of another example.
      further: further measures.
      words: score of what it writes without the picture; None if that was not asked for.
      shuffled: score of what it writes with the picture of another example; None likewise.
      frame: score of what it writes with one frame of the clip; None likewise, and of pictures.
    """

    example_ids: tuple[str, ...]
    texts: tuple[str, ...]
    score: np.ndarray
    confidence: np.ndarray
    finished: np.ndarray
    loss: float
    other_loss: float
    further: Mapping[str, float]
    words: float | None
    shuffled: float | None
    frame: float | None = None

    @property
    def examples(self) -> int:
        """E."""
        return len(self.example_ids)


def evaluate_stream(
    step: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    stream: Any,
    place: Callable[[Any], Any],
    *,
    max_examples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TextOutcome:
    """Writes and scores the texts of a stream.

    Args:
      step: of `System.writer`, compiled.
      params: see `rows.collect`, like the other arguments.
      batches: of the stream.
      stream: a `data.images.stream.ImageStream`, which knows the right texts.
      place: see above.
      max_examples: see above.
      progress: see above.

    Raises:
      ValueError: see `rows.collect`; or a loss is not finite.
      DataError: an example cannot be read again.
    """
    found = rows.collect(step, params, batches, place, max_examples=max_examples, progress=progress)
    (part,) = stream.parts
    encode = part.encode
    loss, other_loss = found.means[0]
    if not np.isfinite(loss):
        raise ValueError(f"the mean loss is {loss}: the model's weights are not usable")
    scored = examples_of(part.images, found.example_ids)

    def written(tokens: np.ndarray) -> list[str]:
        lengths = [len(encode.tokenizer.encode(encode.prompt_of(example))) for example in scored]
        return [
            encode.tokenizer.decode(row[length:])
            for row, length in zip(tokens, lengths, strict=True)
        ]

    texts = written(found.columns["tokens"])
    score, further = score_texts(stream.task, encode, scored, texts)
    if encode.labels and (found.columns["ranked"] >= 0).all():
        labels = np.array([example.label for example in scored])
        further["ranked"] = float(np.mean(found.columns["ranked"] == labels))
    unseen: dict[str, float | None] = {}
    for column in ("blind", "other", "still"):
        tokens = found.columns[column]
        if tokens.shape[1]:
            wrong, _ = score_texts(stream.task, encode, scored, written(tokens))
            unseen[column] = float(np.mean(wrong, dtype=np.float64))
            if column == "still" and len(wrong) > 1:
                further |= _gain(score, wrong)
    return TextOutcome(
        found.example_ids,
        tuple(texts),
        score,
        np.exp(np.minimum(found.columns["log_probability"], 0.0)),
        found.columns["finished"],
        float(loss),
        float(other_loss),
        further,
        unseen.get("blind"),
        unseen.get("other"),
        unseen.get("still"),
    )


def _gain(score: np.ndarray, frame: np.ndarray) -> dict[str, float]:
    """How much better whole clips are than one frame, with half of a 95 % interval."""
    gain = score.astype(np.float64) - frame
    half = 1.96 * np.std(gain, ddof=1) / len(gain) ** 0.5
    return {"above_frame": float(np.mean(gain)), "above_frame_95": float(half)}


def examples_of(images: ImageSet, ids: Sequence[str]) -> list[ImageExample]:
    """The examples with predictions: those of the set in their order, but for unreadable ones."""
    found, known = [], examples(images)
    for wanted in ids:
        for example in known:
            if example.example_id == wanted:
                found.append(dataclasses.replace(example, data=b""))
                break
        else:
            raise DataError(f"{images.name}: no example {wanted}, which has a prediction")
    return found


def score_texts(
    task: ImageTask, encode: TextTargets, examples: Sequence[ImageExample], texts: Sequence[str]
) -> tuple[np.ndarray, dict[str, float]]:
    """Score of each text, float32[E], and further measures of all.

    Args:
      task: sets the measure.
      encode: knows the right texts.
      examples: E of them.
      texts: E predictions.

    Raises:
      DataError: an example has no right text.
    """
    right = [encode.texts(example) for example in examples]
    if task.group == "caption":
        names = [example.image_id or example.example_id for example in examples]
        found = captions.evaluate(
            [{"image_id": n, "caption": text} for n, text in zip(names, texts, strict=True)],
            {n: known for n, (known, _) in zip(names, right, strict=True)},
        )
        per_image = found["per_image"]
        score = np.array([per_image[name]["CIDEr-D"] / 100 for name in names], np.float32)
        measures = ("BLEU-1", "BLEU-4", "ROUGE-L")
        return score, {name: found[name] / 100 for name in measures}
    if task.group == "vqa":
        normal = [normalise_answer(text) for text in texts]
        credit = [
            max((s for t, s in zip(*known, strict=True) if normalise_answer(t) == text), default=0)
            for text, known in zip(normal, right, strict=True)
        ]
        score = np.array(credit, np.float32)
        return score, {"exact": float(np.mean(score >= 1))}
    # As the tokenizer writes them: lower-cased, and blanks of one kind.
    score = np.array(
        [
            any(_plain(encode, one) == text for one in known)
            for text, (known, _) in zip(texts, right, strict=True)
        ],
        np.float32,
    )
    if not encode.labels:
        return score, {}
    nearest = nearest_names(texts, [_plain(encode, label) for label in encode.labels]).index
    return score, {"nearest": float(np.mean(nearest == [example.label for example in examples]))}


def _plain(encode: TextTargets, text: str) -> str:
    return encode.tokenizer.decode(encode.tokenizer.encode(text))


def metric_of(task: ImageTask) -> str:
    """Name of the score."""
    names = {
        "classify": "top-1",
        "caption": "CIDEr-D",
        "vqa": "soft accuracy",
        "ocr": "exact match",
    }
    return names[task.group]


def summarise(task: ImageTask, outcome: TextOutcome) -> dict[str, Any]:
    """See `rows.summarise`; with "words", "shuffled" and "frame" if they were asked for."""
    score = float(np.mean(outcome.score, dtype=np.float64))
    gap = outcome.other_loss - outcome.loss
    if gap < _SEES_NOTHING:
        _log.warning(
            "%s: the loss of the right text is %.3f with its picture and %.3f with another: the "
            "model does not look at the pictures",
            task.name,
            outcome.loss,
            outcome.other_loss,
        )
    further = {
        **outcome.further,
        "unfinished": 1 - float(np.mean(outcome.finished)),
        "loss_with_other_pictures": outcome.other_loss,
    }
    found = {
        "score": score,
        "metric": metric_of(task),
        "loss": outcome.loss,
        "examples": outcome.examples,
        "metrics": further,
    }
    if outcome.words is None:
        return found
    frame = {} if outcome.frame is None else {"frame": outcome.frame}
    return found | {"words": outcome.words, "shuffled": outcome.shuffled} | frame


def baselines_of(inputs: Any, limit: int) -> Callable[[ImageTask, str], dict[str, float]]:
    """(task, split) -> "chance", where there is a list of classes, and "majority": of the text that
    is commonest in training. Without pictures nothing is better for classes ("words"). With stored
    tokens also "neighbour" and, but for captions, "probe", see `feature_baselines`.
    """
    tasks = {task.task.name: task for task in inputs.tasks}
    system = inputs.system()

    @functools.cache
    def baselines(task: ImageTask, split: str) -> dict[str, float]:
        run = tasks[task.name]
        test = inputs.images(run, split)
        labels = inputs.labels.get(task.name, ())
        if task.kind == "names":
            # Never trained on; the best constant is the commonest class of what is scored.
            counted = collections.Counter(x.label for x in examples(test, limit))
            majority = max(counted.values()) / counted.total()
            return {"chance": 1 / len(labels), "majority": majority, "words": majority}
        train = inputs.images(run, run.options.train_split)
        if task.kind == "class":
            counts = [
                collections.Counter(x.label for x in examples(s, n))
                for s, n in ((train, 0), (test, limit))
            ]
            common = max(counts[0], key=lambda label: (counts[0][label], -label))
            majority = counts[1][common] / sum(counts[1].values())
            return {"chance": 1 / len(labels), "majority": majority, "words": majority}
        encode = inputs.evaluation_stream(run, split, system).parts[0].encode
        counted: collections.Counter[str] = collections.Counter()
        for example in examples(train, _MAJORITY_EXAMPLES):
            with contextlib.suppress(TextMisfit):
                counted.update(dict(zip(*encode.texts(example), strict=True)))
        common = max(counted, key=lambda text: (counted[text], text))
        scored = [x for x in examples(test, limit) if _has_text(encode, x)]
        texts = [_plain(encode, common)] * len(scored)
        score, _ = score_texts(task, encode, scored, texts)
        found = {"majority": float(np.mean(score, dtype=np.float64))}
        if inputs.features(run, split, system) is not None:
            found |= _of_features(inputs, run, split, system, encode, limit)
        return found | ({"chance": 1 / len(labels)} if labels else {})

    return baselines


def _of_features(
    inputs: Any, run: Any, split: str, system: Any, encode: TextTargets, limit: int
) -> dict[str, float]:
    """Scores of `feature_baselines`."""

    def examples_of(split: str, limit: int) -> tuple[list[ImageExample], feature_baselines.Seen]:
        images, features = inputs.images(run, split), inputs.features(run, split, system)
        count = min(limit or images.num_examples, images.num_examples)
        numbers = [number for number in range(count) if features.has(number)]
        read = {number: dataclasses.replace(images.read(number), data=b"") for number in numbers}
        known = {number: x for number, x in read.items() if _has_text(encode, x)}
        best = []
        for example in known.values():
            right, credit = encode.texts(example)
            best.append(right[int(np.argmax(credit))])
        kept = list(known.values())
        return kept, feature_baselines.seen(features, list(known), kept, best)

    _, train = examples_of(run.options.train_split, 0)
    scored, test = examples_of(split, limit)
    found = {"neighbour": feature_baselines.nearest(train, test)}
    probed = None if run.task.group == "caption" else feature_baselines.probe(train, test)
    if probed is not None:
        found["probe"] = probed
    scores = {}
    for name, texts in found.items():
        plain = [_plain(encode, text) for text in texts]
        scores[name] = float(np.mean(score_texts(run.task, encode, scored, plain)[0]))
    return scores


def _has_text(encode: TextTargets, example: ImageExample) -> bool:
    try:
        return bool(encode.texts(example))
    except TextMisfit:
        return False
