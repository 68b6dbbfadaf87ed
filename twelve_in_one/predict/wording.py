"""Results in words, for a terminal or below a picture."""

from collections.abc import Iterator

import numpy as np

from twelve_in_one.predict.results import (
    Answer,
    Attention,
    Grounding,
    Pointing,
    Ranking,
    Result,
    Retrieval,
    Things,
    Verdict,
)


def describe(result: Result) -> str:
    """The prediction in one line."""
    if isinstance(result, Answer):
        return f"{result.answer} ({result.probability:.2f})"
    if isinstance(result, Ranking):
        best = int(result.order[0])
        return f"image {best + 1} of {len(result.images)}: {result.images[best].name}"
    if isinstance(result, Retrieval):
        return f"{result.found[0][0]} ({result.found[0][1]:.2f})"
    if isinstance(result, Grounding | Pointing):
        corners = f"[{_corners(result.box, ', ')}]{_whole(result, result.best)}"
        return f"box {result.best} {corners} ({result.score:.2f})"
    if isinstance(result, Things):
        pairs = zip(result.names, result.scores, strict=True)
        return ", ".join(f"{name} ({score:.2f})" for name, score in pairs) or "nothing"
    if isinstance(result, Verdict):
        return f"{result.label} ({result.probability:.2f})"
    raise ValueError(f"no prediction: {type(result).__name__}")


def lines(result: Result, top: int) -> list[str]:
    """The question, then at most `top` answers, best first."""
    if isinstance(result, Ranking | Retrieval):
        asked = result.text
    else:
        asked = f"{' and '.join(image.name for image in result.images)}: {result.text}"
    found = [f"  {score:8.3f}  {name}" for name, score in _scored(result, top)]
    attended = [line for attention in result.attention for line in _attended(attention, top)]
    return [asked, *found, *attended]


def _scored(result: Result, top: int) -> list[tuple[str, float]]:
    if isinstance(result, Answer):
        return list(result.top[:top])
    if isinstance(result, Retrieval):
        return list(result.found[:top])
    if isinstance(result, Ranking):
        return [(result.images[i].name, result.scores[i]) for i in result.order[:top]]
    if isinstance(result, Grounding | Pointing):
        # NaN sorts last.
        order = np.argsort(-result.scores, kind="stable")[: int(np.isfinite(result.scores).sum())]
        boxes, scores = result.candidates, result.scores
        return [
            (f"box {i}: {_corners(boxes[i])}{_whole(result, i)}", scores[i]) for i in order[:top]
        ]
    if isinstance(result, Things):
        columns = zip(result.names, result.boxes, result.scores, strict=True)
        return [(f"{name}: {_corners(box)}", score) for name, box, score in columns][:top]
    if isinstance(result, Verdict):
        return sorted(result.probabilities.items(), key=lambda item: -item[1])
    raise ValueError(f"no prediction: {type(result).__name__}")


def _whole(result: Result, candidate: int) -> str:
    """Names a candidate that is neither a given nor a detected box."""
    return " (whole image)" if isinstance(result, Grounding) and candidate == 0 else ""


def _attended(attention: Attention, top: int) -> Iterator[str]:
    yield "  regions that the words read most in the last connection layer:"
    weights = attention.region_weights()
    for i in np.argsort(-weights, kind="stable")[:top]:
        whole = "  (whole image)" if i == 0 else ""
        yield f"  {weights[i]:8.3f}  {_corners(attention.boxes[i])}{whole}"


def _corners(box: np.ndarray | tuple[float, ...], separator: str = ",") -> str:
    return separator.join(f"{value:g}" for value in np.round(box, 1))
