"""Scores of models that make vectors of pictures and of texts, without training on the task.

Retrieval: every caption is scored with every picture by the cosine of their vectors, in blocks on
the devices; ranks and measures are those of `retrieval.py`, in both directions. A picture counts
once, with up to five captions, as in Karpathy's splits (COCO: 5,000 and 25,000, Flickr30k: 1,000
and 5,000).

Zero-shot classification: a class is the mean of the vectors of the sentences that name it, scaled
to length 1 again; the class nearest to the picture is predicted.

Letters: N pictures, M captions, C classes, T sentences for a class, E size of a vector, L tokens.
"""

import collections
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from twelve_in_one.data.encode.retrieval import RetrievalSet
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, TextMisfit, examples
from twelve_in_one.data.images.texts import NamedClasses, TextTargets
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.evaluators import retrieval, rows, texts
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import Outcome
from twelve_in_one.parallel import sharding

CAPTIONS = 5  # of each picture
_BLOCK = 1024  # captions or pictures whose cosines are computed at a time, at most
_log = logging.getLogger(__name__)

Step = Callable[[Any, Mapping[str, Any]], Any]


def evaluate_stream(
    step: Step,
    text_step: Step,
    params: Any,
    batches: Iterable[Any],
    stream: Any,
    place: Callable[[Any], Any],
    mesh: Mesh,
    *,
    max_examples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], Ranking | Outcome]:
    """Scores the examples of a stream.

    Args:
      step: `System.embed` for batches of the stream, compiled.
      text_step: the same for batches of texts alone.
      params: see `rows.collect`, like the other arguments.
      batches: of the stream.
      stream: a `data.images.stream.ImageStream`.
      place: see above.
      mesh: of the parameters.
      max_examples: see above.
      progress: see above.

    Returns:
      The summary, see `rows.summarise` and `retrieval.summarise`, and the predictions.

    Raises:
      ValueError: see `rows.collect`; or a vector is not finite.
      DataError: an example cannot be read again.
    """
    found = rows.collect(step, params, batches, place, max_examples=max_examples, progress=progress)
    (part,) = stream.parts
    vectors = found.columns["images"]
    if not np.isfinite(vectors).all():
        raise ValueError("vectors of pictures are not finite: the model's weights are not usable")
    scored = texts.examples_of(part.images, found.example_ids)
    size = stream.selection.batch_size

    def embed(tokens: np.ndarray) -> np.ndarray:
        return embed_texts(text_step, params, tokens, mesh, size)

    if isinstance(part.encode, NamedClasses):
        labels = np.array([example.label for example in scored])
        classes = class_vectors(embed(part.encode.tokens), len(part.encode.templates))
        outcome = classified(found.example_ids, vectors, classes, labels, found.columns["scale"])
        return summarise_classes(outcome, labels, vectors @ classes.T), outcome
    ranking = _rank(scored, part.encode, vectors, embed, mesh)
    summary = retrieval.summarise(ranking)
    return summary | {"loss": float(found.means[0].sum())}, ranking


def embed_texts(
    step: Step, params: Any, tokens: np.ndarray, mesh: Mesh, size: int = _BLOCK
) -> np.ndarray:
    """float32[M, E], unit vectors of texts int32[M, L], `size` at a time."""
    count, multiple = len(tokens), sharding.batch_ways(mesh)
    found = []
    for _, block in retrieval.blocks(
        {"tokens": tokens}, count, -(-size // multiple) * multiple, mesh
    ):
        with jax.transfer_guard_device_to_host("allow"):
            found.append(jax.device_get(step(params, block).texts))
    return np.concatenate(found)[:count]


def _rank(
    scored: Sequence[ImageExample],
    encode: TextTargets,
    vectors: np.ndarray,
    embed: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
) -> Ranking:
    """The cosine of every caption with every picture."""
    image_of: dict[str, int] = {}
    first, captions, ids, image_of_caption = [], [], [], []
    count: collections.Counter[int] = collections.Counter()
    left_out = 0
    for row, example in enumerate(scored):
        image = image_of.setdefault(example.image_id or example.example_id, len(image_of))
        if image == len(first):
            first.append(row)
        known, _ = encode.texts(example)
        for number, text in enumerate(known):
            if count[image] == CAPTIONS:
                left_out += 1
                continue
            try:
                captions.append(encode.tokens_of(text, example.example_id))
            except TextMisfit as error:
                _log.warning("%s; it is no candidate", error)
                continue
            count[image] += 1
            several = len(known) > 1
            ids.append(f"{example.example_id}#{number}" if several else example.example_id)
            image_of_caption.append(image)
    if not captions:
        raise DataError(f"none of {len(scored)} pictures has a caption that fits the model")
    if left_out:
        _log.info("%d captions beyond %d of a picture are no candidates", left_out, CAPTIONS)
    candidates = RetrievalSet(
        {"vectors": embed(np.stack(captions))},
        {"vectors": vectors[np.array(first)]},
        np.array(image_of_caption),
        np.int32(0),
        tuple(ids),
        tuple(image_of),
    )
    step = jax.jit(_cosines, out_shardings=sharding.replicated(mesh))
    return retrieval.rank(step, {}, candidates, mesh, captions=_BLOCK, images=_BLOCK)


def _cosines(params: Any, captions: Any, images: Any, task_id: Any) -> jax.Array:
    del params, task_id
    return jax.numpy.matmul(captions["vectors"], images["vectors"].T, precision="highest")


def class_vectors(vectors: np.ndarray, templates: int) -> np.ndarray:
    """float32[C, E] of the vectors float32[C * T, E] of T sentences for each class."""
    means = vectors.reshape(-1, templates, vectors.shape[-1]).mean(axis=1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def classified(
    example_ids: tuple[str, ...],
    vectors: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    scale: np.ndarray,
) -> Outcome:
    """Predictions of classes.

    Args:
      example_ids: N of them.
      vectors: float32[N, E] of the pictures.
      classes: float32[C, E].
      labels: int[N], the right ones.
      scale: float32[N], the factor on cosines that makes probabilities.
    """
    logits = scale[:, None].astype(np.float64) * (vectors @ classes.T)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    best = log_p.argmax(axis=1)
    numbers = np.arange(len(labels))
    return Outcome(
        example_ids,
        best.astype(np.int32),
        (best == labels).astype(np.float32),
        np.exp(log_p[numbers, best]).astype(np.float32),
        np.ones(len(labels), np.float32),
        float(-log_p[numbers, labels].mean()),
    )


def summarise_classes(outcome: Outcome, labels: np.ndarray, cosines: np.ndarray) -> dict[str, Any]:
    """See `rows.summarise`; also the share among the best five, and the mean over classes."""
    own = cosines[np.arange(len(labels)), labels][:, None]
    further = {"mean_class": _mean_class(outcome.score, labels)}
    if cosines.shape[1] > 5:
        further["top-5"] = float(np.mean((cosines > own).sum(axis=1) < 5))
    return {
        "score": float(np.mean(outcome.score, dtype=np.float64)),
        "metric": "top-1",
        "loss": outcome.loss,
        "examples": outcome.examples,
        "metrics": further,
    }


def _mean_class(score: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([score[labels == label].mean() for label in np.unique(labels)]))


def nearest_captions(images: ImageSet, ranking: Ranking) -> dict[str, tuple[str, bool]]:
    """Image id -> the caption that scores highest with it, and whether that is one of its own."""
    known = {example.example_id: example.texts for example in examples(images)}

    def text(caption_id: str) -> str:
        name, _, number = caption_id.rpartition("#")
        return known[caption_id][0] if caption_id in known else known[name][int(number)]

    best = ranking.scores.argmax(axis=0)
    return {
        image: (text(ranking.caption_ids[row]), bool(ranking.image_of_caption[row] == number))
        for number, (image, row) in enumerate(zip(ranking.image_ids, best, strict=True))
    }
