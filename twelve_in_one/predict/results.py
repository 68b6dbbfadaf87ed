"""Results of predictions: plain data, with their images for drawing.

Scores are probabilities if the task was trained with a sigmoid: for an answer or box, the agreement
that the model expects (a soft score, an IoU). Boxes are x1, y1, x2, y2 in pixels.
Letters: S text positions, R regions, N candidates or images.
"""

import dataclasses
from typing import Any

import numpy as np

from twelve_in_one.predict.inputs import SeenImage


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention between the tokens of one text and the regions of one image, without padding.

    Attributes:
      tokens: S word pieces, "[CLS]" first, then "[TASK]" if the model has task tokens.
      boxes: float32[R, 4], of the regions; row 0 is the whole image.
      maps: {layer: float32[heads, queries, keys]}, each query's weights over the keys sum to 1:
        "text_layer_i" [heads, S, S], "visual_layer_i" [heads, R, R],
        "connection_i_text_reads_visual" [heads, S, R],
        "connection_i_visual_reads_text" [heads, R, S].
    """

    tokens: tuple[str, ...]
    boxes: np.ndarray = dataclasses.field(repr=False)
    maps: dict[str, np.ndarray] = dataclasses.field(repr=False)

    def text_to_regions(self, connection: int = -1) -> np.ndarray:
        """float32[S, R], how much each token reads each region in a connection layer; heads' mean.

        Raises:
          ValueError: the model has no such connection layer.
        """
        names = [name for name in self.maps if name.endswith("_text_reads_visual")]
        names.sort(key=lambda name: int(name.split("_")[1]))
        if not -len(names) <= connection < len(names):
            raise ValueError(f"connection {connection}: the model runs {len(names)} of them")
        return self.maps[names[connection]].mean(axis=0)

    def region_weights(self, connection: int = -1) -> np.ndarray:
        """float32[R], mean of `text_to_regions` over the words of the text; sums to 1."""
        weights = self.text_to_regions(connection)
        words = [token not in ("[CLS]", "[TASK]", "[SEP]") for token in self.tokens]
        return weights[words if any(words) else slice(None)].mean(axis=0)


@dataclasses.dataclass(frozen=True)
class Result:
    """The common part of all predictions.

    Attributes:
      text: question, caption, phrase, hypothesis or sentence.
      images: of the request: one, two for a comparison, all for a ranking.
      attention: one per row that the model saw: left and right for a comparison, the best image for
        a ranking; empty unless requested.
    """

    text: str
    images: tuple[SeenImage, ...] = dataclasses.field(repr=False)
    attention: tuple[Attention, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Answer(Result):
    """The answer to a question about an image.

    Attributes:
      answer: the best one.
      probability: of this answer, a sigmoid: probabilities of different answers do not sum to 1.
      top: the best answers with their probabilities, best first.
    """

    answer: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Text(Answer):
    """A text that a decoder wrote: a caption, an answer, a class.

    `probability` is that of the whole text, the product of its tokens'. `top` holds the text alone,
    or the best texts of a list.

    Attributes:
      tokens: the text's pieces, its end included, with the log-probability of each given all
        before it; empty for a text that was chosen from a list by its probability.
      finished: whether it ended before there was no more room.
    """

    tokens: tuple[tuple[str, float], ...] = ()
    finished: bool = True


@dataclasses.dataclass(frozen=True)
class Ranking(Result):
    """Images ranked by how well they fit a caption.

    Attributes:
      order: int64[N], positions in `images`, best first; images of equal score keep their order.
      scores: float32[N] of `images`; only differences are meaningful.
    """

    order: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Retrieval(Result):
    """The images of an index that fit a text best.

    Attributes:
      found: names and cosines of the best, best first; images of equal cosine keep their order.
    """

    found: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Grounding(Result):
    """The region that a phrase means.

    Attributes:
      box: the best candidate.
      score: of this box.
      best: position of this box among the candidates.
      candidates: float32[N, 4]; candidate 0 is the whole image, given boxes count from 1.
      scores: float32[N], the IoU with the right box that the model expects.
    """

    box: tuple[float, float, float, float]
    score: float
    best: int
    candidates: np.ndarray = dataclasses.field(repr=False)
    scores: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Pointing(Result):
    """The given box that answers a question.

    Attributes:
      box: the chosen one.
      score: of this box.
      best: position of this box among the given boxes.
      candidates: float32[N, 4], the given boxes.
      scores: float32[N]; NaN for boxes that were not choices.
    """

    box: tuple[float, float, float, float]
    score: float
    best: int
    candidates: np.ndarray = dataclasses.field(repr=False)
    scores: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Things(Result):
    """What was found in an image by its names, best first.

    Attributes:
      names: of K boxes.
      scores: float32[K], 0 to 1.
      boxes: float32[K, 4].
    """

    names: tuple[str, ...]
    scores: np.ndarray
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Verdict(Result):
    """Whether a sentence holds.

    Attributes:
      label: "contradiction", "neutral" or "entailment"; True or False for a comparison; for a task
        on the user's own dataset, one of its labels.
      probability: of the label.
      probabilities: of each label ("True" and "False" for a comparison): the classes' sigmoids,
        divided by their sum.
    """

    label: str | bool
    probability: float
    probabilities: dict[str, float]


def to_json(result: Result) -> dict[str, Any]:
    """A result as JSON values; from the attention, only what the text read in the last
    connection layer.
    """
    values: dict[str, Any] = {"text": result.text, "images": [i.name for i in result.images]}
    for field in dataclasses.fields(result):
        if field.name not in ("text", "images", "attention"):
            values[field.name] = _plain(getattr(result, field.name))
    if result.attention:
        values["attention"] = [
            {
                "tokens": list(attention.tokens),
                "boxes": _plain(attention.boxes),
                "text_to_regions": _plain(attention.text_to_regions()),
            }
            for attention in result.attention
        ]
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if np.isnan(value) else value
    return value
