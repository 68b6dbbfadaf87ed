"""Which trainings the comparisons of MaMMUT need, what they differ in, and their tables."""

import copy

import pytest

from twelve_in_one import configs
from twelve_in_one.config import check
from twelve_in_one.config.diff import differences
from twelve_in_one.experiments import __main__ as command
from twelve_in_one.experiments import mammut, paper


@pytest.fixture
def base():
    """A config that begins with an encoder."""
    config = configs.get("mammut:debug")
    config.init_from.path = "workdir/world_encoder"
    return config


def test_trainings_and_tables(base, pretend_pictures, tmp_path):
    gains = {"mammut-contrastive": -0.1, "mammut-weights-0.5-2": 0.2}
    runner, trainer = pretend_pictures(
        lambda name, task, seed: 0.5 + gains.get(name, 0.0) + 0.01 * seed
    )
    models = ("both", "contrastive", "generative", "cross-1", "cross-2", "weights-0.5-2", "softmax")
    outcomes = mammut.run(runner, base, [0, 2], models)
    kept = ("both", "contrastive", "generative", "cross-1", "weights-0.5-2")
    assert tuple(outcomes[0].results) == kept, "the others are the config itself"
    assert len(trainer.configs) == mammut.count(base, [0, 2], models) == 2 * (1 + len(kept))
    encoder = trainer.configs["mammut-encoder/seed-2"]
    assert encoder.tasks == ("things", "grounds", "genres") and encoder.seed == 2
    assert check.check(encoder).schedule.num_rounds == base.schedule.num_rounds
    first = trainer.configs["mammut-both/seed-2"]
    assert first.init_from.path == str(tmp_path / "mammut-encoder" / "seed-2")
    assert trainer.configs["mammut-cross-1/seed-0"].model.decoder.cross_every == 2
    for name, count in {"contrastive": 1, "generative": 1, "weights-0.5-2": 2}.items():
        other = trainer.configs[f"mammut-{name}/seed-2"]
        assert len(differences(check.check(first), check.check(other))) == count
    # Of every task with pairs two scores; what a model has not learnt is missing.
    both, generative, contrastive = (
        outcomes[1].results[name] for name in ("both", "generative", "contrastive")
    )
    assert both["coco"]["score"] == 0.52 and both["coco-texts"]["score"] == 0.25
    assert both["coco-texts"]["chance"] is None
    assert list(generative) == ["captions", "vqa"]
    assert both.keys() - contrastive.keys() == {"captions"}
    text = mammut.report(outcomes)
    objectives = text.partition("### Objectives")[2].partition("###")[0]
    assert "| both | 54.3 | 38.7 | 80.6 | 67.5 | 71.7 |" in objectives.replace("both |  |", "")
    assert "| generative only |  |  |  |  | 69.9 |" in objectives
    assert "| VQA | m | 10.0 | – | 51.0 ± 12.7 |" in objectives
    assert "**-10.0 ± 0.0**" in objectives
    assert "**+20.0 ± 0.0**" in text.partition("### Loss weights")[2].partition("###")[0]
    assert "### Contrastive loss" not in text
    assert f"| updates |  |  |  | {base.schedule.num_rounds} |" in text
    mammut.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_random_weights_need_no_encoder(base, pretend_pictures):
    base.init_from.path = ""
    runner, trainer = pretend_pictures()
    (outcome,) = mammut.run(runner, base, [0], ("both",))
    assert list(trainer.configs) == ["mammut-both/seed-0"]
    assert "### The config: both losses" in mammut.report([outcome])


def test_layers_with_cross_attention(base):
    crossed = {}
    for layers in (2, 6, 8):
        base.model.decoder.num_layers = layers
        base.model.decoder.cross_every = layers
        crossed[layers] = mammut._different(base, ("both", "cross-1", "cross-2", "cross-4"))
    assert crossed[2] == ["both", "cross-2"]
    assert crossed[6] == ["both", "cross-2"], "four of six cannot be spread evenly"
    assert crossed[8] == ["both", "cross-2", "cross-4"]


def test_all_models_have_configs_and_settings_that_do_not_fit_are_named(base, tmp_path):
    for name in mammut.MODELS:
        check.check(mammut.training(base, name, 1, tmp_path).config)
    assert mammut._CHANGES.keys() >= paper._MAMMUT.keys()
    for name, change, match in (
        ("schedule.kind", "stop_and_go", "weights stay"),
        ("task.alt_text.train", False, "of group pairs"),
        ("model.caption_weight", 0.0, "both losses"),
    ):
        config = copy.deepcopy(base)
        config.update_from_flattened_dict({name: change, "task.coco.train": False})
        with pytest.raises(ValueError, match=match):
            mammut.count(config, [0], mammut.MODELS)
    with pytest.raises(ValueError, match="of mammut, this is of lit_decoder"):
        mammut.count(configs.get("lit_decoder:debug"), [0], mammut.MODELS)
    assert command.chosen_models(mammut, ["focal"]) == ("both", "focal")
