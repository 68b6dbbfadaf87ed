"""Three systems on the same examples: configs, table, and the cost of an example."""

import pytest

from twelve_in_one import configs
from twelve_in_one.config import check
from twelve_in_one.experiments import systems
from twelve_in_one.experiments.systems import Cost


@pytest.fixture
def base():
    """A short run of MaMMUT."""
    config = configs.get("mammut:debug")
    config.schedule.num_rounds, config.mixture.batch_size = 120, 16
    config.init_from.path = "workdir/world_encoder"
    return config


def test_all_see_as_many_rows_of_each_task(base, tmp_path):
    made = {name: systems.training(base, name, 3, tmp_path).config for name in systems.MODELS}
    runs = {name: check.check(config) for name, config in made.items()}
    assert systems.rows_of_task(base) == 640
    for name in ("twelve", "twelve-refcoco"):
        run = runs[name]
        assert {run.schedule.num_rounds * task.batch_size for task in run.task.values()} == {640}
        assert not run.data.clean and run.data.raw_dir == base.data.raw_dir
        assert run.data.dir != base.data.dir
    assert runs["twelve-refcoco"].tasks == (*runs["twelve"].tasks, "refcoco")
    for name in ("lit", "mammut"):
        run = runs[name]
        learnt = {task for task in run.tasks if run.task[task].learns}
        assert learnt == set(runs["twelve"].tasks)
        assert run.mixture.weighting == "equal"
        assert run.schedule.num_rounds * run.mixture.batch_size == 3 * 640
        assert run.init_from.path == str(tmp_path / "mammut-encoder" / "seed-3")
        assert run.model["encoder"] == runs["mammut"].model["encoder"]
    assert runs["lit"].optimizer == check.check(configs.get("lit_decoder")).optimizer
    for run in runs.values():
        # World and splits are one; whole splits are scored.
        assert run.data.world_images == base.data.world_images
        assert run.data.world_covers == base.data.world_covers
        assert run.evaluation.max_test_examples == 0 and run.evaluation.keep_trained_on
        assert run.schedule.kind == "round_robin" and run.seed == 3
    for task in ("vqa", "gqa", "coco"):
        splits = {
            (run.task[task].train_split, run.task[task].val_split, run.task[task].test_splits)
            for run in runs.values()
        }
        assert len(splits) == 1, task


def test_table_leaves_blank_what_a_system_has_no_form_for(
    base, pretend_pictures, monkeypatch, tmp_path
):
    flops = {"twelve": 1e8, "twelve-refcoco": 1e8, "lit": 2e9, "mammut": 4e9}
    monkeypatch.setattr(
        systems, "cost_of", lambda one, _: Cost(flops[one.name.removeprefix("systems-")], 1234.0)
    )
    runner, trainer = pretend_pictures(lambda name, task, seed: 0.5 + 0.1 * seed)
    outcomes = systems.run(runner, base, [0, 1], systems.MODELS)
    assert len(trainer.configs) == systems.count(base, [0, 1], systems.MODELS) == 2 * 5
    lines = {line.split(" | ")[0]: line for line in systems.report(outcomes).splitlines()}
    score = "55.0 ± 63.5"
    assert lines["| 12-in-1"] == (
        f"| 12-in-1 | {score} | {score} | {score} |  |  | 100 | 0.100 G | 1,234 |"
    )
    assert lines["| 12-in-1, also RefCOCO"].count(score) == 4
    assert lines["| LiT-decoder"] == (
        f"| LiT-decoder | {score} | {score} |  | {score} |  | 100 | 2.000 G | 1,234 |"
    )
    assert f"| {score} | {score} |  | 100 | 4.000 G |" in lines["| MaMMUT"]
    systems.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    outcomes[0].results["lit"]["vqa"]["examples"] = 99
    with pytest.raises(ValueError, match="of vqa .12-in-1 100, .*LiT-decoder 99"):
        systems._check_same_tests(outcomes[0])
    with pytest.raises(ValueError, match="of mammut, not of lit_decoder"):
        systems.count(configs.get("lit_decoder:debug"), [0], systems.MODELS)
    base.data.world_images = 0
    with pytest.raises(ValueError, match="world_images is 0"):
        systems.count(base, [0], systems.MODELS)
