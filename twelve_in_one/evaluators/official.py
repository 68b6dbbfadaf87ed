"""Scores by each benchmark's own evaluation program, in addition to the training measures.

| task | program | figures |
|---|---|---|
| kind "answer" with people's answers | VQA v2 evaluation | accuracy; of yes/no, number, other |
| kind "answer" with GQA's questions | GQA evaluation | accuracy, binary, open, distribution, consistency, validity, plausibility |
| NLVR2 | NLVR2 evaluation | accuracy, consistency |
| head "three_way" | SNLI-VE | accuracy |
| kind "region" | REFER, IoU > 0.5 | accuracy, oracle (of the candidates) |
| kind "choice" | multiple choice | accuracy |
| kinds "match" and "pairs" | retrieval | R@1, R@5, R@10, median and mean rank; text_...: captions of an image |

Figures are in percent, except ranks and GQA's distribution. Figures that cannot be computed are
named, with the missing file.
"""  # noqa: E501

from collections.abc import Callable, Mapping
from typing import Any

from twelve_in_one.data.official import OfficialRecords
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import Outcome
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.metrics import gqa, vqa
from twelve_in_one.tasks.task import Task

# Fewer people than this never agree enough: one is left out, and three agreeing score 1.
_FEWEST_ANSWERS = 4
_RANKS = ("median_rank", "mean_rank")


def figures(
    task: Task,
    predictions: Outcome | Ranking,
    summary: Mapping[str, Any],
    *,
    words: Mapping[int, str] | None = None,
    records: OfficialRecords | None = None,
    expected: bool = False,
) -> dict[str, Any] | None:
    """The official figures of one split.

    Args:
      task: the evaluated task.
      predictions: for the task.
      summary: from `rows.summarise` or `retrieval.summarise`.
      words: label -> answer, of kind "answer".
      records: the program's annotations of the examples, of kind "answer".
      expected: whether the dataset has such a program, so that missing records should be
        reported.

    Returns:
      {"program", "metric", "score", "figures", "examples", "not_computed", "by"}: the quoted
      figure and its value, all figures by name, their number of examples, figure -> why it is
      missing, and tables by kind of question, {name: {kind: value}}. None if there are no
      answers, or no official program is known.

    Raises:
      ValueError: the records do not belong to the examples.
    """
    if summary["score"] is None or task.kind not in _FIGURES:
        return None
    if KINDS[task.kind].noun == "answer" and records is None:
        return _without_records() if expected else None
    return _FIGURES[task.kind](task, predictions, summary, words or {}, records)


def _ranked(
    task: Task, predictions: Ranking, summary: Mapping[str, Any], *_: Any
) -> dict[str, Any]:
    return _result("retrieval", "R@1", _ranks(summary["metrics"]), summary["examples"])


def _answered(
    task: Task,
    predictions: Outcome,
    summary: Mapping[str, Any],
    words: Mapping[int, str],
    records: OfficialRecords,
) -> dict[str, Any]:
    pairs = zip(predictions.example_ids, predictions.prediction, strict=True)
    answers = {example_id: words.get(int(label), "") for example_id, label in pairs}
    unknown = answers.keys() - records.records.keys()
    if unknown:
        raise ValueError(
            f"{task.name}: the official records lack {len(unknown)} of {len(answers)} "
            f"examples, the first {min(unknown)}: run the build again with --overwrite"
        )
    known = {example_id: records.records[example_id] for example_id in answers}
    return (_vqa if records.program == "vqa" else _gqa)(answers, known)


def _located(
    task: Task, predictions: Outcome, summary: Mapping[str, Any], *_: Any
) -> dict[str, Any]:
    program = f"REFER, IoU > 0.5, {summary['protocol']} boxes"
    return _shares(program, summary, accuracy="accuracy", oracle="oracle_recall")


def _chosen(
    task: Task, predictions: Outcome, summary: Mapping[str, Any], *_: Any
) -> dict[str, Any]:
    return _shares("multiple choice", summary, accuracy="accuracy")


def _judged(
    task: Task, predictions: Outcome, summary: Mapping[str, Any], *_: Any
) -> dict[str, Any]:
    if "consistency" in summary["metrics"]:
        names = {"accuracy": "accuracy", "consistency": "consistency"}
        return _shares("NLVR2 evaluation", summary, **names)
    return _shares(task.title, summary, accuracy="accuracy")


def _shares(program: str, summary: Mapping[str, Any], **figures: str) -> dict[str, Any]:
    """Figures in percent: name -> its measure."""
    found = {name: 100 * summary["metrics"][measure] for name, measure in figures.items()}
    return _result(program, "accuracy", found, summary["examples"])


_FIGURES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "answer": _answered,
    "verdict": _judged,
    "match": _ranked,
    "pairs": _ranked,
    "region": _located,
    "choice": _chosen,
}


def _result(
    program: str,
    metric: str,
    found: Mapping[str, float],
    examples: int,
    not_computed: Mapping[str, str] | None = None,
    by: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    return {
        "program": program,
        "metric": metric,
        "score": found.get(metric),
        "figures": dict(found),
        "examples": examples,
        "not_computed": dict(not_computed or {}),
        "by": {name: dict(table) for name, table in (by or {}).items()},
    }


def _ranks(metrics: Mapping[str, float]) -> dict[str, float]:
    """Recalls in percent, ranks as they are."""
    return {
        name: value if name.endswith(_RANKS) else 100 * value
        for name, value in metrics.items()
        if name != "images"
    }


def _without_records() -> dict[str, Any]:
    reason = (
        "the data were built without the official records of this split; run the same build "
        "command again, which adds them where the official files have answers"
    )
    return _result("", "accuracy", {}, 0, {"accuracy": reason})


def _vqa(answers: Mapping[str, str], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    program, people = "VQA v2 evaluation", [len(record["answers"]) for record in records.values()]
    few = sum(count < _FEWEST_ANSWERS for count in people)
    if few:
        reason = (
            f"{few:,} of {len(people):,} questions have fewer than {_FEWEST_ANSWERS} people's "
            "answers; the rule, made for ten, leaves one out and asks for three that agree"
        )
        return _result(program, "accuracy", {}, len(people), {"accuracy": reason})
    found = vqa.evaluate(
        ({"question_id": key, "answer": answer} for key, answer in answers.items()),
        (
            {
                "question_id": key,
                "question_type": record.get("question_type", ""),
                "answer_type": record.get("answer_type", ""),
                "answers": [{"answer": answer} for answer in record["answers"]],
            }
            for key, record in records.items()
        ),
    )
    types = {kind: value for kind, value in found["per_answer_type"].items() if kind}
    by = {"question_type": found["per_question_type"]} if types else {}
    return _result(program, "accuracy", {"accuracy": found["overall"]} | types, len(people), by=by)


def _gqa(answers: Mapping[str, str], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    program = "GQA evaluation"
    lacking = [key for key in gqa.QUESTION_FIELDS if any(key not in r for r in records.values())]
    if lacking or not any(record["isBalanced"] for record in records.values()):
        reason = (
            f"the question file has no {', '.join(lacking)}"
            if lacking
            else "no question is balanced"
        )
        return _result(program, "accuracy", {}, len(records), {"accuracy": reason})
    with_choices = all("choices" in r for r in records.values() if r["isBalanced"])
    found = gqa.evaluate(
        ({"questionId": key, "prediction": answer} for key, answer in answers.items()),
        records,
        choices={key: record["choices"] for key, record in records.items()}
        if with_choices
        else None,
    )
    counts = found["counts"]
    names = ("accuracy", "binary", "open", "distribution")
    numbers = {key: found[key] for key in names}
    missing = {}
    for name in ("binary", "open"):
        if not counts[name]:
            missing[name] = "there is no such question"
            del numbers[name]
    if all(record["groups"]["global"] is None for record in records.values()):
        missing["distribution"] = "no question belongs to a global group"
        del numbers["distribution"]
    if counts["consistency"]:
        numbers["consistency"] = found["consistency"]
    if counts["entailed_absent"]:
        which = "consistency of all" if counts["consistency"] else "consistency"
        missing[which] = (
            f"{counts['entailed_absent']:,} entailed questions are not in the split, which has the "
            "balanced ones alone; they are in {train,val,testdev}_all_questions.json"
        )
    elif not counts["consistency"]:
        missing["consistency"] = "no question that was answered rightly entails another"
    if with_choices:
        numbers |= {key: found[key] for key in ("validity", "plausibility")}
    else:
        missing["validity, plausibility"] = (
            "the build found no {val,testdev}_choices.json beside the questions"
        )
    missing["grounding"] = "needs attention over the image's parts, which no answer has"
    by = {
        name: {str(kind): value for kind, (value, _) in found[f"per_{name}"].items()}
        for name in ("structural_type", "semantic_type", "steps", "length")
    }
    return _result(program, "accuracy", numbers, counts["questions"], missing, by)
