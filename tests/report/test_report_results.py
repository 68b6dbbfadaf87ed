"""The table of results, and what a damaged results.json is answered with."""

import copy
import math
import re
from pathlib import Path

import pytest

from twelve_in_one.report import page as report_page
from twelve_in_one.report import results as results_module
from twelve_in_one.report import results_table
from twelve_in_one.report.results import FLAG, parse_results
from twelve_in_one.report.workdir import Run


def task(title, group, score, **more):
    return {"title": title, "group": group, "metric": "accuracy", "score": score} | more


RESULTS = {
    "split": "test",
    "round": 50,
    "updates": 600,
    "parameters": 1234,
    "seconds": 9.5,
    "tasks": {
        "nlvr2": task("NLVR2", "G4", 0.75, chance=0.5, words=0.55, majority=0.51, examples=1200),
        "vqa": task("VQAv2", "G1", 0.5, chance=0.25, words=0.5, majority=0.125, examples=99),
        "coco": task(
            "COCO retrieval", "G2", 0.25, chance=0.01, words=None, metrics={"r@1": 0.25, "r@5": 1}
        ),
        "gqa": task("GQA", "G1", 0.5, chance=0.6, words=0.1, loss=1.5),
    },
}


def rows(table):
    """Lines by the title, which is all of the second column."""
    split = [(re.split("  +", f"{line} "), line) for line in table.splitlines()]
    return {cells[1].strip(): line for cells, line in split if len(cells) > 1}


def test_table():
    table = results_table(RESULTS)
    lines = table.splitlines()
    assert " ".join(lines[0].split()) == "group task metric score chance words majority examples"
    assert [line.split()[0] for line in lines[2:6]] == ["G1", "G1", "G2", "G4"]
    found = rows(table)
    assert found["VQAv2"].split()[2:] == [
        "accuracy",
        "0.500",
        FLAG,
        "0.250",
        "0.500",
        "0.125",
        "99",
    ]
    assert found["NLVR2"].split()[2:] == ["accuracy", "0.750", "0.500", "0.550", "0.510", "1,200"]
    assert found["COCO retrieval"].split()[3:] == ["accuracy", "0.250", "0.010", "–", "–", "–"]
    # Means of what all tasks have; (0.25 + 0.01 + 0.5 + 0.6) / 4.
    assert found["average"].split() == ["average", "0.500", "0.340", "–", "–"]


def test_columns_line_up():
    """Texts begin and numbers end where their headings do."""
    lines = results_table(RESULTS).splitlines()
    header, body = lines[0], lines[2:6]
    for name in ("task", "metric"):
        start = header.index(name)
        assert all(line[start - 1] == " " != line[start] for line in body)
    for name in ("score", "chance", "words", "majority"):
        end = header.index(name) + len(name)
        assert all(line[end - 1] in "0123456789–" and line[end] == " " for line in body)
    assert {len(line) for line in body} == {len(header)}


@pytest.mark.parametrize(
    ("score", "chance", "words", "above"),
    [
        (0.5, 0.4, 0.3, True),
        (0.5, 0.4, None, True),
        (0.5, None, None, True),
        (0.5, 0.5, 0.3, False),
        (0.5, 0.4, 0.6, False),
        (0.5, None, 0.5, False),
        (math.nan, 0.1, None, False),
    ],
)
def test_flag_and_footnote(score, chance, words, above):
    table = results_table({"tasks": {"a": task("A", "G1", score, chance=chance, words=words)}})
    assert (f" {FLAG} " in rows(table)["A"]) == (not above)
    assert table.splitlines()[-1].startswith(FLAG) == (not above)


def test_no_tasks():
    assert rows(results_table({"tasks": {}}))["average"].split() == ["average", "–", "–", "–", "–"]


def test_numbers_that_are_not_finite_as_text():
    parsed = parse_results({"tasks": {"a": task("A", "G1", "NaN", loss="Infinity")}})
    assert math.isnan(parsed.tasks[0].score)
    assert parsed.tasks[0].loss == math.inf


SEEN = {"records": 202, "of_records": 1422, "images": 39, "of_images": 40, "left_out": True}
OFFICIAL_GQA = {
    "program": "GQA evaluation",
    "metric": "accuracy",
    "score": 51.234,
    "figures": {"accuracy": 51.234, "binary": 60},
    "examples": 1220,
    "not_computed": {"validity": "no choices.json"},
    "by": {},
}


def test_official_figures_and_what_was_seen():
    results = copy.deepcopy(RESULTS)
    results["tasks"]["gqa"] |= {
        "official": {"test": OFFICIAL_GQA},
        "trained_on": {"test": SEEN | {"unknown": ["the weights of X"]}},
    }
    results["tasks"]["vqa"] |= {
        "official": {"val": OFFICIAL_GQA | {"program": "", "figures": {}}},
        "trained_on": {"val": SEEN | {"records": 0, "left_out": False, "unknown": []}},
    }
    results |= {"unscored": {"vqa": 7}, "trained_on_only": {"gqa/val": 1000}}
    lines = results_table(results).splitlines()
    start = lines.index(results_module.OFFICIAL)
    assert lines[start + 1] == "GQA (test)  GQA evaluation, 1,220  accuracy 51.23  binary 60.00"
    assert lines[start + 2 :] == [
        "not computed: VQAv2 (val): validity: no choices.json",
        "not computed: GQA (test): validity: no choices.json",
        "VQAv2 (val): training saw 39 of 40 images, with none of these records",
        "GQA (test): training saw 39 of 40 images and 202 of 1,422 records, which are left out of "
        "the score",
        "not known: the weights of X",
        "vqa: 7 examples without public answers: not scored",
        "gqa/val: all 1,000 records were trained on: not scored, unless with keep_trained_on",
    ]
    results["tasks"]["gqa"]["trained_on"]["test"]["left_out"] = False
    assert "202 of 1,422 records, which are scored all the same" in results_table(results)
    # The same on the page.
    page = report_page.page(Run(Path("x"), (), {}, (), (), parse_results(results), None), [], [])
    for text in ("GQA evaluation", "51.23", "no choices.json", "202 of 1,422", "all 1,000 records"):
        assert text in page


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "results: must be an object, is a list"),
        (("tasks",), None, "results: 'tasks' must be Mapping, is None"),
        (("tasks", "vqa"), 3, "results: tasks.vqa: must be an object"),
        (("tasks", "vqa", "title"), None, "tasks.vqa: 'title' must be str, is None"),
        (("tasks", "vqa", "score"), "high", "tasks.vqa: 'score' must be float, is 'high'"),
        (("tasks", "vqa", "score"), True, "tasks.vqa: 'score' must be float, is True"),
        (("tasks", "vqa", "chance"), [1], "tasks.vqa: 'chance' must be float"),
        (("tasks", "vqa", "examples"), 1.5, "tasks.vqa: 'examples' must be int"),
        (("tasks", "coco", "metrics"), [], "tasks.coco: 'metrics' must be Mapping"),
        (("tasks", "coco", "metrics", "r@1"), None, "tasks.coco.metrics: 'r@1' must be float"),
        (("tasks", "vqa", "official"), {"val": {"program": 3}}, "official.val: 'figures' must be"),
        (("tasks", "vqa", "trained_on"), {"val": {}}, "trained_on.val: 'records' must be int"),
        (("unscored",), {"vqa": "x"}, "results: unscored: 'vqa' must be int"),
        (("seconds",), "long", "results: 'seconds' must be float"),
    ],
)
def test_damage_is_named(path, value, message):
    damaged = copy.deepcopy(RESULTS)
    if path:
        inner = damaged
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    else:
        damaged = value
    with pytest.raises(ValueError, match=message):
        results_table(damaged)
