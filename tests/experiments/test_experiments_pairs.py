"""Changes of pairs, by hand, and which trainings they are made of."""

import numpy as np
import pytest

from twelve_in_one.experiments import pairs
from twelve_in_one.experiments.comparison import AVERAGE


def test_single_task_models_see_as_many_batches(base, pretend):
    runner, trainer = pretend()
    (outcome,) = pairs.run(runner, base, [4], ())
    assert len(trainer.configs) <= pairs.count(base, [4], ())
    together = [name for name in trainer.configs if name.startswith("pair-")]
    assert len(together) == 6
    for name in together:
        config = trainer.configs[name]
        assert config.schedule.to_dict() == base.schedule.to_dict() and config.seed == 4
    for a, b in [("vqa", "flickr30k"), ("visual7w", "nlvr2")]:
        for name in (a, b):
            updates = outcome.results[f"{a}+{b}"][name]["updates"]
            assert outcome.results[f"{a}+{b} alone"][name]["updates"] == updates
            alone = trainer.configs[f"single-{name}-updates-{updates}/seed-4"]
            assert alone.schedule.num_rounds == updates
            assert alone.optimizer.learning_rate == base.optimizer.learning_rate
    assert outcome.parameters["vqa+nlvr2"] == outcome.parameters["vqa+nlvr2 alone"] == 200


def test_changes_are_of_the_rows_task(base, pretend, tmp_path):
    scores = {
        "pair-vqa-nlvr2": {"vqa": 0.6, "nlvr2": 0.45},
        "pair-vqa-visual7w": {"vqa": 0.4, "visual7w": 1.0},
    }

    def score(name, task, seed):
        return scores.get(name, {}).get(task, 0.5) * (1 + seed * ("pair" in name))

    runner, _ = pretend(score)
    outcomes = pairs.run(runner, base, [0, 1], ())
    changes = pairs.changes(outcomes)
    np.testing.assert_allclose(changes["vqa", "nlvr2"], [0.1, 0.7])
    np.testing.assert_allclose(changes["nlvr2", "vqa"], [-0.05, 0.4])
    np.testing.assert_allclose(changes["visual7w", "vqa"], [0.5, 1.5])
    np.testing.assert_allclose(changes["flickr30k", "vqa"], [0.0, 0.5], atol=1e-12)
    # vqa with flickr30k, visual7w, nlvr2: 0, -10 and 10 points.
    np.testing.assert_allclose(changes["vqa", AVERAGE][0], 0.0, atol=1e-12)
    # What vqa does to flickr30k, visual7w, nlvr2: 0, 50 and -5 points.
    np.testing.assert_allclose(changes[AVERAGE, "vqa"][0], 0.15)
    assert ("vqa", "vqa") not in changes
    lines = pairs.report(outcomes).splitlines()
    assert lines[0] == "| trained with | vqa | flickr30k | visual7w | nlvr2 | average |"
    assert lines[2].startswith("| vqa |  | +25.0 ± ")
    pairs.plot(outcomes, tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_every_group_needs_its_task(base):
    base.tasks = ("vqa", "nlvr2", "visual7w")
    with pytest.raises(ValueError, match="needs the tasks flickr30k"):
        pairs.count(base, [0], ())
