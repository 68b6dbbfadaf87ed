"""Fields of a user's own records: each is checked, and an error says how to mend it."""

import collections
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError, shorten
from twelve_in_one.tasks.metrics.vqa import soft_score

_BOX_SLACK = 1.0  # pixels, as `regions.checks` allows


def box(
    record: Mapping[str, Any], key: str, box_format: str, size: tuple[int, int] | None
) -> tuple[float, float, float, float]:
    """Corners x1, y1, x2, y2 of a picture's box, in pixels.

    Args:
      record: that has the box.
      key: of the box.
      box_format: "xyxy" or "xywh".
      size: width and height of the picture; None if unknown.

    Raises:
      RecordError: not a box of this picture; says how to mend it.
    """
    value = files.field(record, key, list)
    if len(value) != 4 or not all(_is_number(v) for v in value):
        raise RecordError(f"{key!r} must be four numbers in pixels, is {shorten(value)}")
    a, b, c, d = map(float, value)
    corners = (a, b, c, d) if box_format == "xyxy" else (a, b, a + c, b + d)
    if max(map(abs, value)) <= 1:
        by = f"{size[0]} and {size[1]}, the picture's" if size else "the picture's"
        raise RecordError(
            f"{key!r} {value} is a share of the picture: multiply it by {by} width and height"
        )
    if _fits(corners, size):
        return corners
    what = (
        "empty"
        if corners[0] >= corners[2] or corners[1] >= corners[3]
        else (f"outside the picture of {size[0]} x {size[1]} pixels" if size else "no box")
    )
    other = "xywh" if box_format == "xyxy" else "xyxy"
    turned = (a, b, a + c, b + d) if other == "xywh" else (a, b, c, d)
    hint = f"; it would fit as {other}: set box_format" if _fits(turned, size) else ""
    raise RecordError(f"{key!r} {value}, read as {box_format}, is {what}{hint}")


def _fits(corners: tuple[float, ...], size: tuple[int, int] | None) -> bool:
    x1, y1, x2, y2 = corners
    if not (x1 < x2 and y1 < y2 and min(x1, y1) >= -_BOX_SLACK):
        return False
    return size is None or (x2 <= size[0] + _BOX_SLACK and y2 <= size[1] + _BOX_SLACK)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def required(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns the record if it has the key.

    Raises:
      RecordError: it does not; names a key with similar spelling.
    """
    if record.get(key) is None:
        alike = difflib.get_close_matches(key, map(str, record), n=1)
        hint = f"; is {alike[0]!r} meant to be it?" if alike and alike[0] != key else ""
        raise RecordError(f"no {key!r}; keys: {', '.join(map(str, list(record)[:12]))}{hint}")
    return record


def _only_one(record: Mapping[str, Any], key: str, other: str) -> None:
    if record.get(key) is not None and record.get(other) is not None:
        raise RecordError(f"has both {key!r} and {other!r}: keep one of them")


def text(record: Mapping[str, Any], key: str) -> str:
    """A text without spaces around it.

    Raises:
      RecordError: missing, not a text, or empty.
    """
    found = files.field(required(record, key), key, str).strip()
    if not found:
        raise RecordError(f"{key!r} is empty")
    return found


def captions(record: Mapping[str, Any]) -> list[str]:
    """Texts of "captions", or the one text of "caption".

    Raises:
      RecordError: neither or both are there, or one is not a text or is empty.
    """
    _only_one(record, "caption", "captions")
    if record.get("captions") is None:
        return [text(record, "caption")]
    several = files.field(record, "captions", list)
    if not several:
        raise RecordError("'captions' is empty")
    return [text({"captions": caption}, "captions") for caption in several]


def answers(
    record: Mapping[str, Any], *, needed: bool
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Distinct answers and the score of each.

    Args:
      record: that has "answer" or "answers".
      needed: whether there must be one.

    Raises:
      RecordError: none although needed, both, or an invalid answer or score.
    """
    _only_one(record, "answer", "answers")
    several = record.get("answers")
    if several is None:
        if record.get("answer") is None and not needed:
            return (), ()
        return (_answer(required(record, "answer")["answer"], "answer"),), (1.0,)
    if isinstance(several, Mapping):
        for answer, score in several.items():
            if not _is_number(score) or not 0 <= score <= 1:
                raise RecordError(
                    f"'answers': score {shorten(score)} of {answer!r} is not in [0, 1]"
                )
        scores = {_answer(answer, "answers"): float(score) for answer, score in several.items()}
    else:
        given = [_answer(a, "answers") for a in files.field(record, "answers", list)]
        counts = collections.Counter(given)
        scores = {answer: float(soft_score(n, len(given))) for answer, n in counts.items()}
    if not scores and needed:
        raise RecordError("'answers' is empty")
    return tuple(scores), tuple(scores.values())


def _answer(value: Any, key: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    answer = files.field({key: value}, key, str).strip()
    if not answer:
        raise RecordError(f"{key!r} is empty")
    return answer


def label(record: Mapping[str, Any], labels: Sequence[str], *, needed: bool) -> int:
    """Index of "label" in `labels`, ignoring case; -1 if it is missing and may be.

    Raises:
      RecordError: it is missing, or not one of them.
    """
    if record.get("label") is None and not needed:
        return -1
    value = required(record, "label")["label"]
    # JSON's true means the label "True".
    name = str(value) if isinstance(value, bool | int) else files.field(record, "label", str)
    by_name = {known.casefold(): i for i, known in enumerate(labels)}
    if name.strip().casefold() not in by_name:
        raise RecordError(
            f"'label' must be one of {', '.join(labels)}, is {shorten(value)}; others are "
            "named with labels=(...)"
        )
    return by_name[name.strip().casefold()]
