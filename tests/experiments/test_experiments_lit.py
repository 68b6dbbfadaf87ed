"""Which trainings LiT-decoder's comparisons need, what they differ in, and their tables."""

import json

import pytest

from twelve_in_one import configs
from twelve_in_one.checkpoints import state
from twelve_in_one.config import check
from twelve_in_one.config.diff import differences
from twelve_in_one.experiments import __main__ as command
from twelve_in_one.experiments import lit, pictures
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.logs import metrics_writer
from twelve_in_one.training.finish import RESULTS

ROWS = {"things": 640, "gqa": 320}


@pytest.fixture
def base():
    """A config of two tasks."""
    config = configs.get("lit_decoder:debug")
    config.tasks = tuple(ROWS)
    return config


class Pretended:
    """A trainer that writes what a training leaves; its single-task models like rate 2 and 3 x."""

    def __init__(self, workdir):
        self.workdir, self.configs = workdir, {}

    def __call__(self, config, folder):
        folder.mkdir(parents=True)
        state.write_config(folder, config)
        name = folder.parent.name
        self.configs[name, config.seed] = config
        gain = {"lit-finetuned": 0.1, "lit-transfer-gqa-rate-0.5": 0.3}.get(name, 0.0)
        good = 1.0 if "rate-2" in name and "rows-3" in name else 0.2
        good = 0.9 if name.endswith("gqa-rate-0.5") else good
        rows = {task: ROWS.get(task, 1) // 2 for task in config.tasks}
        lines = [json.dumps({"event": "train", "rows": rows})] * 2
        (folder / metrics_writer.FILE).write_text("\n".join(lines) + "\n")
        entry = {"title": "T", "metric": "m", "updates": 1, "validation": good}
        scores = {"score": 0.5 + gain + 0.01 * config.seed, "chance": 0.1, "words": None}
        results = {"tasks": {task: entry | scores for task in config.tasks}}
        results |= {"parameters": 100, "updates": config.schedule.num_rounds}
        (folder / RESULTS).write_text(json.dumps(results))
        return results


def test_trainings_and_tables(base, tmp_path):
    trainer = Pretended(tmp_path)
    models = ("frozen", "single", "finetuned", "scratch", "depth-4", "transfer")
    runner = Runner(tmp_path, trainer, 0)
    outcomes = lit.run(runner, base, [0, 2], models)
    assert len(trainer.configs) == lit.count(base, [0, 2], models) == 2 * 5 + 2 * 7 + 2 + 2 * 4
    first = trainer.configs["lit-frozen", 2]
    assert first.init_from.path == str(tmp_path / "lit-encoder" / "seed-2")
    assert first.model.to_dict() == base.model.to_dict() and first.model.freeze_encoder
    assert not trainer.configs["lit-scratch", 2].init_from.path
    assert trainer.configs["lit-depth-4", 0].model.decoder.num_layers == 4
    # Tuned with the first seed: the best choice is the only one of the second.
    singles = [name for name, seed in trainer.configs if "single-things" in name and seed == 2]
    assert singles == ["lit-single-things-rate-2-rows-3"]
    single = trainer.configs[singles[0], 2]
    assert single.tasks == ("things",) and single.schedule.num_rounds == 640 * 3 // 16
    assert single.optimizer.learning_rate == 2 * base.optimizer.learning_rate
    learnt = trainer.configs["lit-transfer-gqa-rate-0.5", 2]
    source = tmp_path / "lit-without-gqa" / "seed-2"
    assert learnt.tasks == ("gqa",) and learnt.init_from.path == str(source)
    assert learnt.text.tokenizer == str(source / "model")
    assert learnt.schedule.num_rounds == 320 // 4 // 16
    new = trainer.configs["lit-transfer-new-gqa-rate-0.5", 2]
    assert new.init_from.path == first.init_from.path
    assert new.text.tokenizer == learnt.text.tokenizer
    assert not [name for name in trainer.configs if "embedding" in name[0]]
    text = lit.report(outcomes)
    assert "### The price of multi-tasking" in text and "### Depth" in text
    assert "Mixture" not in text
    assert "**+10.0 ± 0.0**" in text.partition("### Encoder")[2].partition("###")[0]
    assert "**+30.0 ± 0.0**" in text.partition("### Transfer")[2]
    lit.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    count = len(trainer.configs)
    assert lit.run(runner, base, [0, 2], models) == outcomes and len(trainer.configs) == count
    assert "frozen encoder, one decoder" in lit.report(pictures.part_of(outcomes, ["frozen"]))


def test_every_change_is_a_valid_config(base, tmp_path):
    plain = check.check(lit.with_change(base, "frozen", 0, tmp_path).config)
    changed = {}
    for name in set(lit.MODELS) - {"frozen", "single", "transfer"}:
        run = check.check(lit.with_change(base, name, 0, tmp_path).config)
        changed[name] = [line.split(" ")[0] for line in differences(plain, run)]
    assert all(changed.values()) and len(changed) == 13
    assert len(changed["depth-1"]) == len(changed["random"]) == len(changed["pairs"]) == 1
    encoder = check.check(pictures.encoder(base, 3).config)
    assert encoder.data == plain.data and encoder.model["encoder"] == plain.model["encoder"]


def test_configs_that_do_not_fit(base):
    base.schedule.kind = "stop_and_go"
    with pytest.raises(ValueError, match="schedule.kind=round_robin, which is stop_and_go"):
        lit.count(base, [0], lit.MODELS)
    with pytest.raises(ValueError, match="a config of lit_decoder, this is of vilbert"):
        lit.count(configs.get("world"), [0], lit.MODELS)
    assert command.chosen_models(lit, ["depth-4"]) == ("frozen", "depth-4")
