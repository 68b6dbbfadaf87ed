"""Many predictions from a file: one request per line in, one result per line out, in order.

Requests of the same kind go through the model together, which is many times faster than one by
one.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.data.formats.files import read_text
from twelve_in_one.predict.predictor import Predictor
from twelve_in_one.predict.results import Result, to_json
from twelve_in_one.predict.writer import Writer

# Keys of a request for each command; those with True are required.
_COMMON = {"id": False, "task": False}
KEYS = {
    "answer": {"image": True, "text": True, "top": False, "answers": False},
    "rank": {"images": True, "text": True},
    "ground": {"image": True, "text": True, "boxes": False},
    "point": {"image": True, "text": True, "boxes": True, "choices": False},
    "entails": {"image": True, "text": True},
    "compare": {"left": True, "right": True, "text": True},
    "caption": {"image": True},
    "classify": {"image": True, "labels": False, "top": False},
    "read": {"image": True, "text": True},
    "answer_video": {"video": True, "text": True, "answers": False},
    "caption_video": {"video": True},
    "retrieve": {"text": True, "top": False},
    "detect": {"image": True, "names": False, "top": False, "least": False},
}
TEXT_ARGUMENT = {
    "answer": "question",
    "rank": "caption",
    "ground": "phrase",
    "point": "question",
    "entails": "hypothesis",
    "compare": "sentence",
    "read": "question",
    "answer_video": "question",
    "retrieve": "text",
}
_OWN = ("image", "video", "left", "right", "boxes", "choices")
_MAX_SHOWN = 20  # wrong lines


@dataclasses.dataclass(frozen=True)
class Request:
    """A line of a file.

    Attributes:
      line: its number, from 1.
      values: its arguments, by key.
    """

    line: int
    values: dict[str, Any]


def read_requests(path: Path, command: str, elsewhere: Sequence[str] = ()) -> list[Request]:
    """Reads and checks all requests before any work is done.

    Args:
      path: one JSON object per line; blank lines are skipped.
      command: which of the predictions, a key of `KEYS`.
      elsewhere: keys that may be missing, since their values come from elsewhere.

    Raises:
      ValueError: the file cannot be read or holds none; lines are not objects, or lack a key or
        have an unknown one. Names each.
    """
    keys = KEYS[command] | _COMMON
    requests, wrong = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            wrong.append(f"line {number} is not JSON: {error}")
            continue
        if not isinstance(values, dict):
            wrong.append(f"line {number} should be an object, is {line[:80]}")
            continue
        unknown = sorted(set(values) - set(keys))
        needed = [key for key in keys if keys[key] and key not in elsewhere]
        missing = [key for key in needed if key not in values]
        if unknown or missing:
            wrong.append(
                f"line {number}: unknown keys {unknown}, missing keys {missing}; "
                f"{command} takes {', '.join(keys)}"
            )
        requests.append(Request(number, values))
    if wrong:
        more = f"\n  and {len(wrong) - _MAX_SHOWN} more" if len(wrong) > _MAX_SHOWN else ""
        raise ValueError(f"{path}: " + "\n  ".join(wrong[:_MAX_SHOWN]) + more)
    if not requests:
        raise ValueError(f"{path}: holds no request")
    return requests


def answer_requests(
    predictor: Predictor | Writer,
    command: str,
    requests: Sequence[Request],
    options: dict[str, Any],
    resolve: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    chunk: int = 256,
) -> Iterator[tuple[Request, Result | None, dict[str, Any]]]:
    """Runs requests; one that cannot be answered does not stop the others.

    Args:
      predictor: the model.
      command: which of the predictions.
      requests: from `read_requests`.
      options: default arguments of requests.
      resolve: turns the values of a request into arguments, e.g. ids into regions.
      chunk: requests to keep in memory at a time.

    Yields:
      Each request with its result, None if it failed, and the output: the result as JSON, with its
      "id", or "line" if it has none; for a failed one its "error".
    """
    for start in range(0, len(requests), chunk):
        part = requests[start : start + chunk]
        found: dict[int, Result | ValueError] = {}
        for group in _groups(command, part):
            found |= _run(predictor, command, group, options, resolve)
        for request in part:
            result = found[request.line]
            key = "id" if "id" in request.values else "line"
            name = {key: request.values.get("id", request.line)}
            if isinstance(result, ValueError):
                yield request, None, name | {"error": str(result)}
            else:
                yield request, result, name | to_json(result)


def _groups(command: str, requests: Sequence[Request]) -> list[list[Request]]:
    """Requests that one call can answer together."""
    if command == "rank":
        return [[request] for request in requests]
    groups: dict[str, list[Request]] = {}
    for request in requests:
        own, shared = _parts(request.values)
        groups.setdefault(json.dumps([sorted(own), shared], sort_keys=True), []).append(request)
    return list(groups.values())


def _parts(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of each single result, and those shared by all results of one call."""
    own = {key: values[key] for key in _OWN if key in values}
    return own, {k: v for k, v in values.items() if k not in own and k not in ("id", "text")}


def _run(
    predictor: Predictor | Writer,
    command: str,
    group: Sequence[Request],
    options: dict[str, Any],
    resolve: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[int, Result | ValueError]:
    try:
        results = _call(predictor, command, [resolve(r.values) for r in group], options)
    except ValueError as error:
        if len(group) == 1:
            return {group[0].line: error}
        alone: dict[int, Result | ValueError] = {}
        for request in group:  # finds the one that failed
            alone |= _run(predictor, command, [request], options, resolve)
        return alone
    return {request.line: result for request, result in zip(group, results, strict=True)}


def _call(
    predictor: Predictor | Writer,
    command: str,
    values: Sequence[dict[str, Any]],
    options: dict[str, Any],
) -> list[Result]:
    columns, shared = _parts(values[0])
    for key in columns:
        columns[key] = [request[key] for request in values]
    texts = {}
    if command in TEXT_ARGUMENT:
        texts = {TEXT_ARGUMENT[command]: [request["text"] for request in values]}
    method = getattr(predictor, command)
    unknown = sorted(shared.keys() - inspect.signature(method).parameters.keys())
    if unknown:
        raise ValueError(f"this model's {command} does not take {', '.join(unknown)}")
    return method(**options | shared | columns | texts)
