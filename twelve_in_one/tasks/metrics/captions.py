"""BLEU, ROUGE-L and CIDEr-D of captions, equal to the official COCO caption evaluation.

Inputs are predicted captions and the reference captions of the same images; captions are cut into
words by `ptb`, without Java. Scores are in percent, as papers quote them: a CIDEr-D of 1.2 is 120.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from twelve_in_one.tasks.metrics.ptb import tokenize
from twelve_in_one.tasks.metrics.vqa import answers_by_id, describe_ids

MAX_N = 4  # words of the longest n-grams
Ngrams = Mapping[tuple[str, ...], int]
_SMALL, _TINY = 1e-9, 1e-15  # of the official BLEU, where nothing matches
_BETA_SQUARED = 1.2**2  # of ROUGE-L: recall counts more
_LENGTH_VARIANCE = 6.0**2  # of CIDEr-D, in bigrams


@dataclasses.dataclass(frozen=True)
class _Caption:
    """A caption cut up.

    Attributes:
      words: of BLEU and CIDEr-D.
      pieces: of ROUGE-L, which takes an empty caption for one empty word.
      ngrams: counts of its 1-grams to 4-grams, by length.
    """

    words: list[str]
    pieces: list[str]
    ngrams: tuple[Ngrams, ...]


@dataclasses.dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references an n-gram occurs: rare ones weigh more in CIDEr-D.

    Attributes:
      num_images: that were counted.
      counts: n-gram, as words -> images.
    """

    num_images: int
    counts: Mapping[tuple[str, ...], int] = dataclasses.field(repr=False)


def document_frequencies(references: Mapping[Hashable, Sequence[str]]) -> DocumentFrequencies:
    """Counts the n-grams of a set of references, such as a whole split when a part is scored."""
    return _frequencies([[_cut(caption) for caption in given] for given in references.values()])


def evaluate(
    predictions: Iterable[Mapping[str, Any]],
    references: Mapping[Any, Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> dict[str, Any]:
    """Scores one predicted caption per image.

    Args:
      predictions: records {"image_id", "caption"}, as sent to the test server.
      references: image id -> its captions, of exactly the predicted images.
      frequencies: of n-grams, for CIDEr-D; None counts them in `references`, as is official. A
        single image then scores 0.

    Returns:
      "BLEU-1" ... "BLEU-4": of the whole set, in percent; not a mean over images.
      "ROUGE-L", "CIDEr-D": means over images, times 100.
      "per_image": {image id: the same scores of that image}.
      "num_images": of them.
      "empty": number of predictions without a word, which score 0.

    Raises:
      ValueError: images without a prediction, predicted twice, unknown, or without references; or a
        record is malformed. Names the image ids.
    """
    predicted = answers_by_id(predictions, "image_id", "caption")
    _check_images(predicted, references)
    cut_references = {i: [_cut(caption) for caption in references[i]] for i in predicted}
    cut = {image: _cut(caption) for image, caption in predicted.items()}
    if frequencies is None:
        frequencies = _frequencies(cut_references.values())
    weight = _weights(frequencies)
    total = [0] * (2 * MAX_N + 2)
    rouge, cider, per_image = [], [], {}
    for image, caption in cut.items():
        given = cut_references[image]
        counts = _bleu_counts(caption, given)
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rouge.append(_rouge_l(caption, given))
        cider.append(_cider_d(caption, given, weight))
        per_image[image] = _in_percent(_bleu(counts), rouge[-1], cider[-1])
    number = len(cut)
    return _in_percent(_bleu(total), math.fsum(rouge) / number, math.fsum(cider) / number) | {
        "per_image": per_image,
        "num_images": number,
        "empty": sum(not caption.words for caption in cut.values()),
    }


def _check_images(predicted: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    for images, what, remedy in (
        ((i for i in references if i not in predicted), "without a prediction", "caption them"),
        ((i for i in predicted if i not in references), "without references", "give them"),
        (
            (i for i in references if not references[i]),
            "with an empty list of references",
            "fill it",
        ),
        (
            (i for i in references if isinstance(references[i], str)),
            "whose references are one text",
            "give a list",
        ),
    ):
        found = list(images)
        if found:
            raise ValueError(f"images {what}: {describe_ids(found)}; {remedy} or leave them out")


def _in_percent(bleu: Sequence[float], rouge_l: float, cider_d: float) -> dict[str, float]:
    scores = {f"BLEU-{n}": score for n, score in enumerate(bleu, start=1)}
    scores |= {"ROUGE-L": rouge_l, "CIDEr-D": cider_d}
    return {name: 100 * score for name, score in scores.items()}


def _cut(caption: str) -> _Caption:
    text = " ".join(tokenize(caption))
    words = text.split()  # a telephone number is one piece, of several words
    ngrams = tuple(
        collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))
        for n in range(1, MAX_N + 1)
    )
    return _Caption(words, text.split(" "), ngrams)


# BLEU


def _bleu_counts(caption: _Caption, references: Sequence[_Caption]) -> list[int]:
    """Right n-grams by n, n-grams by n, words, words of the reference nearest in length."""
    length = len(caption.words)
    right = []
    for n, ngrams in enumerate(caption.ngrams):
        sources = [reference.ngrams[n] for reference in references]
        right.append(sum(min(c, max(s.get(x, 0) for s in sources)) for x, c in ngrams.items()))
    nearest = min((abs(len(r.words) - length), len(r.words)) for r in references)[1]
    return [*right, *(max(0, length - n) for n in range(MAX_N)), length, nearest]


def _bleu(counts: Sequence[int]) -> list[float]:
    right, number = counts[:MAX_N], counts[MAX_N : 2 * MAX_N]
    length, reference_length = counts[2 * MAX_N :]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (right[n] + _TINY) / (number[n] + _SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


# ROUGE-L


def _rouge_l(caption: _Caption, references: Sequence[_Caption]) -> float:
    common = [_longest_common(reference.pieces, caption.pieces) for reference in references]
    # The best precision and the best recall may be those of different references.
    precision = max(common) / len(caption.pieces)
    recall = max(x / len(reference.pieces) for x, reference in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)


def _longest_common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence; a column of the table is the bits of a number."""
    places: dict[str, int] = collections.defaultdict(int)
    for bit, word in enumerate(one):
        places[word] |= 1 << bit
    column = all_ones = (1 << len(one)) - 1
    for word in two:
        matched = column & places.get(word, 0)
        column = (column + matched | column - matched) & all_ones
    return len(one) - column.bit_count()


# CIDEr-D


def _frequencies(references: Iterable[Sequence[_Caption]]) -> DocumentFrequencies:
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    images = 0
    for given in references:
        images += 1
        counts.update({ngram for caption in given for ngrams in caption.ngrams for ngram in ngrams})
    return DocumentFrequencies(images, counts)


def _weights(frequencies: DocumentFrequencies) -> Callable[[tuple[str, ...]], float]:
    """n-gram -> its weight: the logarithm of images per image that has it, at most of all."""
    if frequencies.num_images < 1:
        raise ValueError("frequencies were counted over no image")
    largest = math.log(frequencies.num_images)
    known = {ngram: largest - math.log(count) for ngram, count in frequencies.counts.items()}
    return lambda ngram: known.get(ngram, largest)


def _cider_d(
    caption: _Caption, references: Sequence[_Caption], weight: Callable[[tuple[str, ...]], float]
) -> float:
    total = 0.0
    closeness = [_closeness(caption, reference) for reference in references]
    for n, ngrams in enumerate(caption.ngrams):
        vector = {ngram: count * weight(ngram) for ngram, count in ngrams.items()}
        norm = math.hypot(*vector.values())
        for reference, close in zip(references, closeness, strict=True):
            other = {ngram: count * weight(ngram) for ngram, count in reference.ngrams[n].items()}
            product = norm * math.hypot(*other.values())
            if product:
                common = vector.keys() & other.keys()
                overlap = math.fsum(min(vector[x], other[x]) * other[x] for x in common)
                total += overlap / product * close
    return 10 * total / MAX_N / len(references)


def _closeness(caption: _Caption, reference: _Caption) -> float:
    bigrams = max(0, len(caption.words) - 1) - max(0, len(reference.words) - 1)
    return math.exp(-(bigrams**2) / (2 * _LENGTH_VARIANCE))
