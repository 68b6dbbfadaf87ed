"""Which trainings the comparison of readings of clips needs, and its table."""

import json

import pytest

from twelve_in_one import configs
from twelve_in_one.checkpoints import state
from twelve_in_one.config import check
from twelve_in_one.experiments import __main__ as command
from twelve_in_one.experiments import video
from twelve_in_one.experiments.runner import Runner
from twelve_in_one.training.finish import RESULTS


@pytest.fixture
def base():
    return configs.get("mammut_video:debug")


def test_trainings_and_table(base, tmp_path):
    found = {}

    def trainer(config, folder):
        check.check(config)
        folder.mkdir(parents=True)
        state.write_config(folder, config)
        name = folder.parent.name
        found[name, config.seed] = config
        score = {"video-full": 0.6, "video-no-tubes": 0.4}.get(name, 0.5) + 0.01 * config.seed
        entry = {"title": "T", "metric": "m", "updates": 1, "chance": None, "words": 0.2}
        results = {"tasks": {task: entry | {"score": score} for task in config.tasks}}
        (folder / RESULTS).write_text(json.dumps(results | {"parameters": 100}))
        return results | {"parameters": 100}

    models = command.chosen_models(video, ["no-tubes", "single-frame", "no-gate", "no-fixed"])
    assert models == video.MODELS
    runner = Runner(tmp_path, trainer, video.count(base, [0, 1], models))
    outcomes = video.run(runner, base, [0, 1], models)
    assert len(found) == video.count(base, [0, 1], models) == 10
    clips = {name: config.model.encoder.clip for (name, seed), config in found.items() if seed}
    assert clips["video-full"] == base.model.encoder.clip
    assert clips["video-no-tubes"].tubes == () and clips["video-no-tubes"].frames == 8
    assert clips["video-single-frame"].frames == 0
    assert not clips["video-no-gate"].gate and not clips["video-no-fixed"].fixed
    table = video.report(outcomes)
    assert "frames alone − the config" in table and "**-20.0" in table.replace("−20", "-20")
    assert "| MSVD-QA | 45.8 | 45.5 | 45.1 | 42.6 |" in table


def test_configs_that_have_nothing_to_take_away(base):
    base.model.encoder.clip.tubes = ()
    with pytest.raises(ValueError, match="takes tubes, gate and fixed embedding away"):
        video.count(base, [0], ("full",))
    with pytest.raises(ValueError, match="video needs a config of mammut, this is of lit_decoder"):
        video.count(configs.get("lit_decoder:debug"), [0], ("full",))
