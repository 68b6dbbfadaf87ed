"""Stop-and-go over a mixture against fixed weights: settings, rows, stops and tables."""

import pytest

from twelve_in_one import configs
from twelve_in_one.experiments import stopping


@pytest.mark.parametrize("name", ["lit_decoder", "mammut"])
def test_trainings_and_tables(name, pretend_pictures, tmp_path):
    base = configs.get(f"{name}:debug")
    base.schedule.num_rounds = 80
    runner, trainer = pretend_pictures(
        lambda folder, task, seed: 0.6 if folder.endswith("stop-and-go") else 0.5
    )
    outcomes = stopping.run(runner, base, [0, 1], stopping.MODELS)
    assert len(trainer.configs) == stopping.count(base, [0, 1], stopping.MODELS) == 6
    system = name.partition("_")[0]
    fixed, going, stopped = (
        trainer.configs[f"stopping-{system}-{model}/seed-1"] for model in stopping.MODELS
    )
    assert [one.schedule.kind for one in (fixed, going, stopped)] == [
        "round_robin",
        "stop_and_go",
        "stop_and_go",
    ]
    assert (going.schedule.gap, stopped.schedule.gap) == (4, 0)
    assert fixed.schedule.max_validation_rounds == going.schedule.min_validation_rounds == 5
    learnt = stopping.learnt_tasks(base)
    results = outcomes[0].results
    # Its controller says so in the run with fixed weights too, where nothing follows it.
    assert [results[model][learnt[0]]["stopped"] for model in stopping.MODELS] == [0.0, 0.5, 0.5]
    count = len(learnt)
    assert results["fixed"][learnt[0]]["share"] == pytest.approx(1 / count)
    assert results["stop-and-go"][learnt[0]]["share"] == pytest.approx(1 / (2 * count - 1))
    text = stopping.report(outcomes)
    line = f"| {learnt[0].upper()} | {100 / count:.1f} ± 0.0 | {100 / (2 * count - 1):.1f} ± 0.0 |"
    assert line in text and "| 50.0 ± 0.0 | 50.0 ± 0.0 |" in text
    assert "**+10.0 ± 0.0**" in text and stopping._NEVER not in text
    for outcome in outcomes:
        for entries in outcome.results.values():
            for entry in entries.values():
                entry["stopped"] = 0.0
    assert stopping._NEVER in stopping.report(outcomes)


def test_a_mixture_of_one_task_is_refused():
    base = configs.get("mammut:debug")
    base.tasks = ("coco", "things")
    with pytest.raises(ValueError, match="this mixture has only coco"):
        stopping.count(base, [0], stopping.MODELS)
    with pytest.raises(ValueError, match="weights stay"):
        stopping.count(configs.get("world:debug"), [0], stopping.MODELS)
