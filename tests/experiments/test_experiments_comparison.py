"""Scores over seeds, averages, paired differences, and the tables and plots of them."""

import math

import numpy as np
import pytest
from scipy import stats

from twelve_in_one.experiments import comparison, statistics, summary
from twelve_in_one.experiments.comparison import AVERAGE, Outcome

TITLES = {"single": "single-task", "all": "all tasks"}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_interval_is_students(count):
    values = np.random.default_rng(count).normal(0.3, 0.1, count).tolist()
    found = statistics.estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.mean - found.half_width, found.mean + found.half_width], [low, high], rtol=1e-12
    )
    assert found.excludes_zero == (stats.ttest_1samp(values, 0).pvalue < 0.05)


def test_one_seed_has_no_interval():
    assert statistics.estimate([0.25]) == statistics.Estimate(0.25, None, 1)
    assert not statistics.estimate([0.25]).excludes_zero
    assert statistics.show(statistics.estimate([0.25]), signed=True) == "+25.0"
    with pytest.raises(ValueError, match="no values"):
        statistics.estimate([])


def outcome(single, whole, updates=None):
    def entries(scores):
        known = {} if updates is None else {"updates": updates}
        return {
            name: {"score": score, "title": name.upper(), "metric": "accuracy", "chance": 0.1}
            | known
            for name, score in scores.items()
        }

    return Outcome({"single": entries(single), "all": entries(whole)}, {"single": 24, "all": 12})


@pytest.fixture
def outcomes():
    return [
        outcome({"vqa": 0.2, "gqa": 0.5}, {"vqa": 0.3, "gqa": 0.4}),
        outcome({"vqa": 0.6, "gqa": 0.7}, {"vqa": 0.72, "gqa": 0.6}),
    ]


def test_gains_are_paired_by_seed(outcomes, tmp_path):
    averages = comparison.all_together(outcomes)
    assert averages == {AVERAGE: ["vqa", "gqa"]}
    gains = comparison.differences(outcomes, "all", "single", averages)
    np.testing.assert_allclose(gains["vqa"].mean, 0.11)
    # Student's t of one degree of freedom; deviation of (0.10, 0.12) over the root of two.
    half = math.tan(math.pi * 0.475) * 0.01
    np.testing.assert_allclose(gains["vqa"].half_width, half, rtol=1e-9)
    np.testing.assert_allclose(gains[AVERAGE].mean, 0.005)
    facts = summary.about_tasks(outcomes[0].results["all"])
    lines = summary.by_task(outcomes, TITLES, averages, facts).splitlines()
    assert lines[0].startswith("| task | metric | chance | words | single-task | all tasks |")
    assert lines[2].startswith("| VQA | accuracy | 10.0 | – | 40.0")
    assert "| +11.0 ± 12.7 |" in lines[2]
    assert "**-10.0 ± 0.0**" in lines[3]  # the interval does not hold 0
    assert lines[4].startswith("| **average** |")
    assert "| 24 | 12 |" in lines[5]
    assert len({line.count("|") for line in lines}) == 1
    summary.plot(outcomes, TITLES, averages, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    alone = [Outcome({"all": outcomes[0].results["all"]}, {"all": 12})]
    summary.plot(alone, TITLES, averages, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert summary.by_task(alone, TITLES, averages).splitlines()[0] == "| task | all tasks |"


def test_fine_tuned_models_are_also_compared_with_what_they_began_with(outcomes):
    def tuned(one):
        better = {name: e | {"score": e["score"] + 0.05} for name, e in one.results["all"].items()}
        return Outcome(one.results | {"tuned": better}, one.parameters | {"tuned": 24})

    more, titles = [tuned(one) for one in outcomes], TITLES | {"tuned": "tuned"}
    averages = comparison.all_together(more)
    lines = summary.by_task(more, titles, averages, begun_with={"tuned": "all"}).splitlines()
    assert lines[0].endswith("| tuned − all tasks |")
    assert all(line.endswith("| **+5.0 ± 0.0** |") for line in lines[2:5])
    assert len({line.count("|") for line in lines}) == 1
    # Not where it is the first variant, which all are compared with anyway, or left out.
    for without in ({"tuned": "single"}, {"tuned": "group"}, {"group-tuned": "all"}):
        plain = summary.by_task(more, titles, averages, begun_with=without)
        assert plain == summary.by_task(more, titles, averages)


def test_groups_are_averaged_by_their_tasks():
    scores = {"vqa": 0.1, "coco": 0.5, "gqa": 0.4, "flickr30k": 0.7, "vgqa": 0.7}
    outcomes = [outcome(scores, {name: 2 * score for name, score in scores.items()}, updates=3)]
    averages = comparison.group_averages(outcomes)
    assert list(averages) == ["G1", "G2", AVERAGE]
    found = comparison.scores(outcomes, "single", averages)
    np.testing.assert_allclose([found[x] for x in averages], [[0.4], [0.6], [0.48]])
    lines = summary.by_variant(outcomes, TITLES, averages).splitlines()
    assert lines[0] == "| variant | G1 | G2 | average | Δ G1 | Δ G2 | Δ average | updates |"
    assert lines[2] == "| single-task | 40.0 | 60.0 | 48.0 |  |  |  | 15 |"
    assert lines[3] == "| all tasks | 80.0 | 120.0 | 96.0 | +40.0 | +60.0 | +48.0 | 15 |"


def test_updates_are_summed_over_tasks_and_averaged_over_seeds():
    found = [outcome({"vqa": 0.1, "gqa": 0.2}, {"vqa": 0.1}, updates=n) for n in (10, 13)]
    assert comparison.updates(found, "single") == 23
    assert comparison.updates(found, "all") == 11.5
    assert comparison.updates([outcome({"vqa": 0.1}, {"vqa": 0.1})], "all") is None
