"""Result files of the test servers for COCO captions and VQA, as lists to be written as JSON."""

from collections.abc import Collection, Iterable
from typing import Any

from twelve_in_one.tasks.metrics.vqa import describe_ids


def caption_results(
    captions: Iterable[tuple[Any, str]], images: Collection[Any] | None = None
) -> list[dict[str, Any]]:
    """[{"image_id": int, "caption": str}], one per image, for the COCO caption server.

    Args:
      captions: (image id, caption), ids as numbers or their decimal digits ("000000000139").
      images: ids of all images of the split; None does not ask for them.

    Returns:
      The records in the order of `captions`.

    Raises:
      ValueError: an id is no number or occurs twice, images lack a caption or are unknown, or a
        caption is no text. Names the ids.
    """
    return _results(captions, images, "image_id", "caption")


def answer_results(
    answers: Iterable[tuple[Any, str]], questions: Collection[Any] | None = None
) -> list[dict[str, Any]]:
    """[{"question_id": int, "answer": str}], one per question, for the VQA server.

    Arguments and errors are those of `caption_results`.
    """
    return _results(answers, questions, "question_id", "answer")


def caption_file_name(split: str, name: str) -> str:
    """Name that the caption server asks for: `captions_val2014_NAME_results.json` and so on.

    Raises:
      ValueError: `name` has an underscore, a blank or a slash: the server splits there.
    """
    if not name or set(name) & set("_/\\ "):
        raise ValueError(f"the name of a result file must not have '_', ' ' or '/', got {name!r}")
    return f"captions_{split}_{name}_results.json"


def _results(
    texts: Iterable[tuple[Any, str]], expected: Collection[Any] | None, id_key: str, text_key: str
) -> list[dict[str, Any]]:
    what = id_key.removesuffix("_id")
    records: dict[int, str] = {}
    twice = []
    for given, text in texts:
        number = _number(what, given)
        if not isinstance(text, str):
            raise ValueError(f"the {text_key} of {what} {given!r} must be a text, got {text!r}")
        if number in records:
            twice.append(number)
        records[number] = text
    wanted = (
        records.keys() if expected is None else {_number(what, x): None for x in expected}.keys()
    )
    for ids, fault in (
        (twice, f"have several {text_key}s"),
        ([x for x in wanted if x not in records], f"have no {text_key}; the server wants all"),
        ([x for x in records if x not in wanted], "are not of this split"),
    ):
        if ids:
            raise ValueError(f"{what} ids {describe_ids(ids)} {fault}")
    return [{id_key: number, text_key: text} for number, text in records.items()]


def _number(what: str, given: Any) -> int:
    text = str(given)
    if isinstance(given, bool) or not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{what} id {given!r} is no number, as official ids are")
    return int(text)
