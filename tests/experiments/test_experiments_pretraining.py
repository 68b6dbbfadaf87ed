"""What begins with which pretraining, on which data."""

import pytest

from twelve_in_one.config import check
from twelve_in_one.experiments import pretraining
from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS


def test_models_begin_with_their_pretraining(base, pretend, tmp_path):
    gain = {"none": 0.0, "original": 0.1, "overlap": 0.2, "negatives": 0.15}
    runner, trainer = pretend(lambda name, task, seed: 0.3 + gain[name.split("-")[1]])
    outcomes = pretraining.run(runner, base, [0, 3], pretraining.MODELS)
    assert len(trainer.configs) == pretraining.count(base, [0, 3], pretraining.MODELS) == 14
    for seed in (0, 3):
        for variant in pretraining.MODELS:
            config = trainer.configs[f"pretrained-{variant}/seed-{seed}"]
            assert config.tasks == base.tasks and config.seed == seed
            source = tmp_path / f"pretraining-{variant}" / f"seed-{seed}"
            assert config.init_from.path == ("" if variant == "none" else str(source))
            assert config.schedule.to_dict() == base.schedule.to_dict()
    for number, variant in enumerate(pretraining.MODELS):
        found = outcomes[1].results[variant]
        assert {entry["score"] for entry in found.values()} == {0.3 + gain[variant]}, number
    text = pretraining.report(outcomes)
    assert "| overlap masking, no masked loss on negatives (12-in-1) | 50.0 ± 0.0 |" in text
    assert "**+20.0 ± 0.0**" in text
    pretraining.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_pretrainings_differ_in_what_they_are_called_after(base):
    wanted = {"original": (1.0, 0), "overlap": (0.4, 1), "negatives": (0.4, 0)}
    plain = []
    for variant, options in wanted.items():
        config = pretraining.pretraining(base, variant, 5).config
        chosen = config.pretraining
        assert (chosen.overlap_iou, chosen.objective) == options
        assert not config.system.official.overlap
        chosen.overlap_iou = chosen.objective = 0
        plain.append(config.to_dict())
        run = check.check(config)
        assert run.tasks == ("conceptual_captions",) and run.seed == 5
        assert run.model["heads"] == PRETRAINING_HEADS and run.model["num_tasks"] == 0
        for size in ("text", "visual", "coattention_dim", "max_positions"):
            assert run.model[size] == check.check(base).model[size]
    assert plain[0] == plain[1] == plain[2]


def test_all_variants_have_the_data_of_their_own_world(base, pretend):
    runner, trainer = pretend()
    pretraining.run(runner, base, [0], ("none", "overlap"))
    assert set(trainer.configs) == {
        f"{name}/seed-0"
        for name in ("pretrained-none", "pretraining-overlap", "pretrained-overlap")
    }
    folders = {config.data.dir for config in trainer.configs.values()}
    assert folders == {"workdir/worlds/150-0-16000/data"} != {base.data.dir}
    assert {config.data.world_more_captions for config in trainer.configs.values()} == {16_000}
    assert base.data.world_more_captions == 0, "the base is left alone"


def test_what_cannot_be_pretrained_on(base, tmp_path):
    base.data.world_images, base.data.dir = 0, str(tmp_path)
    with pytest.raises(ValueError, match=r"no conceptual_captions .* `python -m twelve_in_one"):
        pretraining.count(base, [0], pretraining.MODELS)
    base.data.world_images, base.init_from.path = 150, "elsewhere"
    with pytest.raises(ValueError, match="begins with random weights, not elsewhere"):
        pretraining.count(base, [0], pretraining.MODELS)
