"""The paper's tables agree with their own averages, which was all that could be checked."""

import re

import pytest

from twelve_in_one.experiments import ablations, main, paper


def numbers(table):
    """Rows of the Markdown table in a text: title -> numbers, None where a cell is empty."""
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: [float(x) if x else None for x in row[1:]] for row in cells}


def test_rows_of_table_2_have_their_averages():
    rows = numbers(paper.table_2(main.TITLES, main.MODELS))
    assert list(rows) == list(main.TITLES.values())
    for *scores, average in rows.values():
        assert len(scores) == 12
        assert -1e-9 < sum(scores) / 12 - average < 0.01  # cut off, not rounded
    gain = rows["all tasks"][-1] - rows["single-task"][-1]
    assert gain == pytest.approx(2.05)  # the abstract says 2.05 points


def test_table_3_has_its_averages():
    rows = numbers(paper.table_3())
    *tasks, below = rows.values()
    for *changes, average in tasks:
        assert average == pytest.approx(sum(filter(None, changes)) / 3, abs=0.01)
    for column, average in enumerate(below[:4]):
        found = [row[column] for row in tasks if row[column] is not None]
        assert average == pytest.approx(sum(found) / 3, abs=0.01)


def test_table_6_has_its_averages_but_where_it_says_so():
    text = paper.table_6(ablations.TITLES, ablations.MODELS)
    assert "one number of round robin is wrong" in text
    for title, (g1, g2, g3, g4, average) in numbers(text).items():
        found = (3 * g1 + 2 * g2 + 5 * g3 + 2 * g4) / 12
        assert (abs(found - average) < 0.015) == ("round robin" not in title or "neither" in title)


def test_every_table_says_whose_numbers_they_are():
    for text in (
        paper.table_2(main.TITLES, ["all"]),
        paper.table_3(),
        paper.table_6(ablations.TITLES, ["full"]),
    ):
        assert re.search(r"the paper's numbers, on the real data \(unverified\)", text)
