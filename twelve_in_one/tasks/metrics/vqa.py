"""VQA v2 accuracy, equal to the official VQA evaluation down to its oddities.

Inputs are predicted answers and official annotation records; outputs are accuracies overall, by
answer type, by question type and by question. Inputs are never changed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

# The marks the official evaluation removes. Colon, apostrophe, &, %, $, # and * are not among them.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# re.UNICODE (32) was passed where the number of substitutions belongs, so later periods stay.
_MAX_PERIODS = 32

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}

# Each word is recognised with exactly one of its apostrophes left out ("y'alld've", "yall'd've").
# Official entries in capitals ("Im") are absent: they are looked up after lower-casing.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # This one official entry drops its apostrophe.
    for word in _CONTRACTED.split():
        for position, letter in enumerate(word):
            if letter == "'":
                table[word[:position] + word[position + 1 :]] = word
    return table


_CONTRACTIONS = _contractions()
NUM_PEOPLE = 10  # who answered each question of VQA
_SOFT_SCORES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])


def strip_whitespace(text: str) -> str:
    """Turns line feeds and tabs into blanks and strips both ends; applied to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str) -> str:
    """Removes punctuation marks and periods (first step of the official normalisation).

    All occurrences of a mark vanish if the text has that mark beside a blank, or has a
    digit-comma-digit anywhere; otherwise each becomes a blank. Then periods vanish unless a digit
    follows, but only the first 32 of them.
    """
    has_digit_comma = _DIGIT_COMMA_DIGIT.search(text) is not None
    processed = text
    for mark in _MARKS:
        if mark in text:
            # Decided on the given text, regardless of changes for the marks before this one.
            vanishes = has_digit_comma or f"{mark} " in text or f" {mark}" in text
            processed = processed.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", processed, count=_MAX_PERIODS)


def process_digit_article(text: str) -> str:
    """Lower-cases, maps number words, drops articles, restores apostrophes (second step)."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


# Validation sets repeat a few thousand answers millions of times.
@lru_cache(maxsize=1 << 16)
def normalise_answer(text: str) -> str:
    """Normalises an answer like the official VQA evaluation.

    Args:
      text: an answer as typed by a person or produced by a model.

    Returns:
      The text after `strip_whitespace`, `process_punctuation` and `process_digit_article`.
    """
    return process_digit_article(process_punctuation(strip_whitespace(text)))


def as_compared(prediction: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """Brings a prediction and the human answers into a form for comparison.

    When all ten human answers agree after stripping, nothing else is normalised on either side, so
    "Yes" does not match ten times "yes" (official VQA evaluation). Fewer than ten answers, which
    often agree because they are few, are all normalised.

    Args:
      prediction: the predicted answer.
      answers: the human answers, usually ten.

    Returns:
      The prediction and the human answers, ready for comparison.

    Raises:
      ValueError: there is no human answer.
    """
    if not answers:
        raise ValueError("answers is empty: accuracy needs the human answers, usually ten")
    stripped = [strip_whitespace(answer) for answer in answers]
    if len(stripped) >= NUM_PEOPLE and len(set(stripped)) == 1:
        return strip_whitespace(prediction), stripped
    return normalise_answer(prediction), [normalise_answer(answer) for answer in stripped]


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Scores one predicted answer against the human answers.

    Each person is left out in turn; n matches among the others give min(1, n / 3); the mean over
    people counts. With ten answers this is 0, 0.3, 0.6, 0.9 or 1. Fewer than ten answers, which do
    not occur in VQA and do not suit the official formula (a single one would always score 0),
    give the share of people who gave the predicted one.

    Args:
      prediction: the predicted answer, not normalised.
      answers: the human answers, not normalised, one per person (equal answers count separately).

    Returns:
      The accuracy as a fraction in [0, 1].

    Raises:
      ValueError: there is no human answer.
    """
    return _match_accuracy(*as_compared(prediction, answers))


def _match_accuracy(prediction: str, answers: Sequence[str]) -> float:
    agrees = [answer == prediction for answer in answers]
    if len(agrees) < NUM_PEOPLE:
        return sum(agrees) / len(agrees)
    return sum(min(1.0, (sum(agrees) - own) / 3) for own in agrees) / len(agrees)


def soft_score(count: Any, num_people: int = NUM_PEOPLE) -> np.ndarray:
    """Training score of an answer that `count` of ten people gave: 0.3, 0.6, 0.9, then 1.

    With fewer than ten people it is their share, as in `accuracy`.

    For the strings it counts this equals `accuracy` with ten people. The two still differ on a data
    set: training and the held-out "minval" score (target[argmax of logits]) count raw answers that
    are in the answer list, whereas the official accuracy compares normalised text, and only where
    people disagree, so minval figures are close to official ones, but not equal.

    Args:
      count: int[...], how many people gave the answer.
      num_people: how many were asked.

    Returns:
      float64[...], the score in [0, 1].

    Raises:
      ValueError: a count is negative, not an integer, or above the number of people asked, if that
        is below ten.
    """
    count = np.asarray(count)
    if not np.issubdtype(count.dtype, np.integer):
        raise ValueError(f"count must hold integers, got dtype {count.dtype}")
    if (count < 0).any():
        raise ValueError(f"count must not be negative, got {count.min()}")
    if num_people < NUM_PEOPLE:
        if (count > num_people).any():
            raise ValueError(f"count must be at most num_people {num_people}, got {count.max()}")
        return count / num_people
    return _SOFT_SCORES[np.minimum(count, len(_SOFT_SCORES) - 1)]


def describe_ids(ids: Iterable[Any], limit: int = 5) -> str:
    """Writes ids for an error message: how many there are and the first `limit` of them."""
    ids = list(ids)
    listed = ", ".join(repr(value) for value in ids[:limit])
    return f"{len(ids)} ({listed}{', ...' if len(ids) > limit else ''})"


def answers_by_id(
    predictions: Iterable[Mapping[str, Any]], id_key: str, answer_key: str
) -> dict[Any, str]:
    """Indexes prediction records as written for a test server by the id of question or image.

    Args:
      predictions: records that hold `id_key` and `answer_key`.
      id_key: "question_id" for VQA, "questionId" for GQA, "image_id" for captions.
      answer_key: "answer" for VQA, "prediction" for GQA, "caption" for captions.

    Returns:
      {id: prediction} in the order of the records.

    Raises:
      ValueError: there is no record, a record lacks a key, an answer is not a string, or an id
        occurs twice.
    """
    answers: dict[Any, str] = {}
    duplicates = []
    what = id_key.lower().removesuffix("id").removesuffix("_")  # "question" or "image"
    for position, record in enumerate(predictions):
        if id_key not in record or answer_key not in record:
            raise ValueError(
                f"prediction {position} needs {id_key!r} and {answer_key!r}, has {sorted(record)}"
            )
        number, answer = record[id_key], record[answer_key]
        if not isinstance(answer, str):
            raise ValueError(
                f"{answer_key!r} of {what} {number!r} must be a string, got {answer!r}"
            )
        if number in answers:
            duplicates.append(number)
        answers[number] = answer
    if duplicates:
        raise ValueError(f"{what} ids predicted more than once: {describe_ids(duplicates)}")
    if not answers:
        raise ValueError("there are no predictions to evaluate")
    return answers


def _annotations_by_id(annotations: Iterable[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    needed = ("question_id", "question_type", "answer_type", "answers")
    by_id: dict[Any, Mapping[str, Any]] = {}
    duplicates = []
    for position, record in enumerate(annotations):
        missing = [key for key in needed if key not in record]
        if missing:
            raise ValueError(f"annotation {position} lacks {missing}; it has {sorted(record)}")
        if not record["answers"] or any("answer" not in given for given in record["answers"]):
            raise ValueError(
                f"question {record['question_id']!r} needs a non-empty list 'answers' of records "
                "with an 'answer' each"
            )
        if record["question_id"] in by_id:
            duplicates.append(record["question_id"])
        by_id[record["question_id"]] = record
    if duplicates:
        raise ValueError(f"question ids annotated more than once: {describe_ids(duplicates)}")
    return by_id


def evaluate(
    predictions: Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Evaluates a set of answers like the official VQA evaluation.

    Questions with fewer than ten answers are scored as `accuracy` says, and counted.

    The place in the list tells the answers of different people apart, which equals the
    official comparison of whole records if every record has its own answer_id.

    Args:
      predictions: records {"question_id", "answer"}, as sent to the test server.
      annotations: official records {"question_id", "question_type", "answer_type", "answers":
        [{"answer"}, ...]} of exactly the predicted questions.

    Returns:
      Accuracies in percent, rounded to two decimals as officially reported:
        "overall": of all questions.
        "per_answer_type", "per_question_type": {type: accuracy}.
        "overall_unrounded", "per_answer_type_unrounded", "per_question_type_unrounded": the same
          without rounding.
        "per_question": {question id: {"accuracy", "accuracy_unrounded", "compared_as"}}; the last
          is the prediction in the form used for comparison.
        "with_fewer_answers": number of questions with fewer than ten human answers.

    Raises:
      ValueError: question ids are missing, unknown or duplicate, or a record is malformed.
    """
    predicted = answers_by_id(predictions, "question_id", "answer")
    annotated = _annotations_by_id(annotations)
    missing = [question_id for question_id in annotated if question_id not in predicted]
    if missing:
        raise ValueError(
            f"questions without a prediction: {describe_ids(missing)}; predict them or leave out "
            "their annotations"
        )
    unknown = [question_id for question_id in predicted if question_id not in annotated]
    if unknown:
        raise ValueError(f"predictions without an annotation: {describe_ids(unknown)}")

    everything: list[float] = []
    by_answer_type: dict[str, list[float]] = {}
    by_question_type: dict[str, list[float]] = {}
    per_question = {}
    for question_id, prediction in predicted.items():
        record = annotated[question_id]
        compared = as_compared(prediction, [given["answer"] for given in record["answers"]])
        fraction = _match_accuracy(*compared)
        everything.append(fraction)
        by_answer_type.setdefault(record["answer_type"], []).append(fraction)
        by_question_type.setdefault(record["question_type"], []).append(fraction)
        per_question[question_id] = {
            "accuracy": round(100 * fraction, 2),
            "accuracy_unrounded": 100 * fraction,
            "compared_as": compared[0],
        }

    unrounded = {
        "overall": _percent(everything),
        "per_answer_type": {key: _percent(group) for key, group in by_answer_type.items()},
        "per_question_type": {key: _percent(group) for key, group in by_question_type.items()},
    }
    rounded = {
        "overall": round(unrounded["overall"], 2),
        "per_answer_type": _rounded(unrounded["per_answer_type"]),
        "per_question_type": _rounded(unrounded["per_question_type"]),
    }
    return (
        rounded
        | {f"{key}_unrounded": value for key, value in unrounded.items()}
        | {
            "per_question": per_question,
            "with_fewer_answers": sum(
                len(annotated[question_id]["answers"]) < NUM_PEOPLE for question_id in predicted
            ),
        }
    )


def _percent(fractions: Sequence[float]) -> float:
    return 100 * sum(fractions) / len(fractions)


def _rounded(percents: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 2) for key, value in percents.items()}
