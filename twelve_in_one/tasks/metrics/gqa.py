"""GQA accuracy, consistency, validity, plausibility and distribution, as in the GQA script.

Inputs are predicted answers and the official question file; outputs are percentages by question
kind.
Grounding needs attention over the image and is not computed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twelve_in_one.tasks.metrics.vqa import answers_by_id, describe_ids

# Of an official record of a question.
QUESTION_FIELDS = ("answer", "question", "isBalanced", "types", "groups", "semantic", "entailed")
# Program steps that merely read off the answer; a step counts unless its text contains one of them.
_UNCOUNTED_STEPS = ("exist", "query: name", "choose name")
# Properties that two things may share; the script uses no choices file for such questions.
_COMMON = ("color", "material", "shape")


def num_words(question: Mapping[str, Any]) -> int:
    """Length of a question record's text in blank-separated words."""
    return len(question["question"].split())


def num_steps(question: Mapping[str, Any]) -> int:
    """Number of reasoning steps in a question record's program.

    Operations whose "operation: argument" text contains "exist", "query: name" or "choose name"
    do not count (GQA evaluation script).
    """
    texts = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    return sum(not any(part in text for part in _UNCOUNTED_STEPS) for text in texts)


def distribution(groups: Sequence[str], answers: Sequence[str], predicted: Sequence[str]) -> float:
    """Chi-square distance between the true and predicted answers of question groups.

    Within a group the sum covers only the true answers, so a prediction that is never right there
    costs nothing beyond the answers it displaces. Groups are weighted by their size.

    Args:
      groups: [Q], the global group of every question.
      answers: [Q], the true answers.
      predicted: [Q], the predicted answers.

    Returns:
      The weighted mean of the groups' chi-square, divided by 100; 0 if there is no question.
    """
    if not groups:
        return 0.0
    true_counts = Counter(zip(groups, answers, strict=True))
    predicted_counts = Counter(zip(groups, predicted, strict=True))
    sizes = Counter(groups)
    weighted = sum(
        sizes[pair[0]] * (predicted_counts[pair] - count) ** 2 / count
        for pair, count in true_counts.items()
    )
    return weighted / len(groups) / 100


def evaluate(
    predictions: Iterable[Mapping[str, Any]],
    questions: Mapping[str, Mapping[str, Any]],
    entailed: str = "present",
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """Evaluates a set of answers like the GQA evaluation script.

    Answers are compared exactly: neither case nor blanks are forgiven. Questions that are not
    balanced count nowhere except as entailed questions of balanced ones. Of the structural types
    only "query" is open; all others are binary.

    Args:
      predictions: records {"questionId", "prediction"}, as sent to the test server, for at least
        every balanced question.
      questions: the official file, {question id: record}.
      entailed: treatment in consistency of entailed questions without ground truth or
        prediction: "present" leaves them out (unavoidable with the balanced file alone),
        "all" raises (the script fails there).
      choices: the official choices file, {question id: {"valid": answers, "plausible": answers}},
        of at least every balanced question; None leaves out the figures that need it.

    Returns:
      Figures in percent, 0 where nothing was counted:
        "accuracy", "binary", "open".
        "consistency": over correctly answered questions that entail others, the mean share of
          correct answers among those others.
        "validity", "plausibility": share of answers that are possible for their question, and
          likely for their image's kind; None without `choices`.
        "distribution": see `distribution`; not a percentage, lower is better.
        "per_structural_type", "per_semantic_type", "per_steps", "per_length": {kind: (percent,
          number of questions)}; kinds of the last two are integers, and length is in words.
        "counts": {"questions", "binary", "open", "consistency", "entailed_absent"}: numbers of
          questions behind the figures, and of entailed questions left out.

    Raises:
      ValueError: question ids are missing, unknown or duplicate, a record is malformed, no
        question is balanced, `entailed` is neither word, or `choices` lack a balanced question.
    """
    if entailed not in ("present", "all"):
        raise ValueError(f"entailed must be 'present' or 'all', got {entailed!r}")
    predicted = answers_by_id(predictions, "questionId", "prediction")
    balanced = _balanced(questions, predicted)
    correct = {
        question_id: prediction == questions[question_id]["answer"]
        for question_id, prediction in predicted.items()
    }

    names = ("structural", "semantic", "steps", "length", "open")
    hits: dict[str, dict[Any, list[bool]]] = {name: {} for name in names}
    grouped: list[tuple[str, str, str]] = []
    for question_id, question in balanced.items():
        kinds = {
            "structural": question["types"]["structural"],
            "semantic": question["types"]["semantic"],
            "steps": num_steps(question),
            "length": num_words(question),
            "open": question["types"]["structural"] == "query",
        }
        for name, kind in kinds.items():
            hits[name].setdefault(kind, []).append(correct[question_id])
        group = question["groups"]["global"]
        if group is not None:
            grouped.append((group, question["answer"], predicted[question_id]))

    consistency, num_absent = _consistency(balanced, correct, require_all=entailed == "all")
    binary_hits, open_hits = hits["open"].get(False, []), hits["open"].get(True, [])
    return {
        "accuracy": _percent([correct[question_id] for question_id in balanced]),
        "binary": _percent(binary_hits),
        "open": _percent(open_hits),
        "consistency": _percent(consistency),
        "validity": _among_choices(balanced, predicted, choices, "valid"),
        "plausibility": _among_choices(balanced, predicted, choices, "plausible"),
        "distribution": distribution(*(zip(*grouped, strict=True) if grouped else ((), (), ()))),
        "per_structural_type": _percent_and_count(hits["structural"]),
        "per_semantic_type": _percent_and_count(hits["semantic"]),
        "per_steps": _percent_and_count(hits["steps"]),
        "per_length": _percent_and_count(hits["length"]),
        "counts": {
            "questions": len(balanced),
            "binary": len(binary_hits),
            "open": len(open_hits),
            "consistency": len(consistency),
            "entailed_absent": num_absent,
        },
    }


def _balanced(
    questions: Mapping[str, Mapping[str, Any]], predicted: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    """The balanced questions, after a check that every id and field exists."""
    for question_id, question in questions.items():
        lacking = [field for field in QUESTION_FIELDS if field not in question]
        if lacking:
            raise ValueError(f"question {question_id!r} lacks {lacking}; it has {sorted(question)}")
    balanced = {key: question for key, question in questions.items() if question["isBalanced"]}
    if not balanced:
        raise ValueError(f"none of the {len(questions)} questions is balanced: nothing to evaluate")
    missing = [question_id for question_id in balanced if question_id not in predicted]
    if missing:
        raise ValueError(f"balanced questions without a prediction: {describe_ids(missing)}")
    unknown = [question_id for question_id in predicted if question_id not in questions]
    if unknown:
        raise ValueError(
            f"predictions for ids that are not in the question file: {describe_ids(unknown)}"
        )
    return balanced


def _consistency(
    balanced: Mapping[str, Mapping[str, Any]], correct: Mapping[str, bool], require_all: bool
) -> tuple[list[float], int]:
    """Shares of correct entailed questions, and the number of absent entailed questions."""
    shares = []
    absent = []
    for question_id, question in balanced.items():
        others = [other for other in question["entailed"] if other != question_id]
        if correct[question_id] and others:
            present = [correct[other] for other in others if other in correct]
            absent.extend(other for other in others if other not in correct)
            if present:
                shares.append(sum(present) / len(present))
    if absent and require_all:
        raise ValueError(
            f"entailed questions without ground truth or prediction: {describe_ids(absent)}; "
            "evaluate the full question file, or pass entailed='present' to leave them out"
        )
    return shares, len(absent)


def _among_choices(
    balanced: Mapping[str, Mapping[str, Any]],
    predicted: Mapping[str, str],
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None,
    kind: str,
) -> float | None:
    """Share of predictions among the choices of their question; None if there are no choices."""
    if choices is None:
        return None
    missing = [key for key in balanced if kind not in choices.get(key, ())]
    if missing:
        raise ValueError(f"questions without {kind!r} choices: {describe_ids(missing)}")
    hits = []
    for question_id, question in balanced.items():
        is_common = "Common" in question["types"].get("detailed", "")
        allowed = _COMMON if is_common else choices[question_id][kind]
        hits.append(predicted[question_id] in allowed)
    return _percent(hits)


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0


def _percent_and_count(hits: Mapping[Any, Sequence[bool]]) -> dict[Any, tuple[float, int]]:
    return {kind: (_percent(values), len(values)) for kind, values in sorted(hits.items())}
