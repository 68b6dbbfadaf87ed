"""12-in-1 on pixels: gradients, devices, settings, exported inputs."""

import dataclasses
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from twelve_in_one import configs, systems
from twelve_in_one.checkpoints import trees
from twelve_in_one.config import check
from twelve_in_one.config.settings import ConfigError, OfficialOptions
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.models.two_stream.grid import GridConfig, GridTwoStreamConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.optim import param_groups
from twelve_in_one.parallel import sharding
from twelve_in_one.systems.base import Facts
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.systems.vilbert_grid import GridVilbert
from twelve_in_one.tasks.twelve import CONCEPTUAL_CAPTIONS, TASKS

B, T, R, SIDE = 8, 5, 3, 8
TASK = dataclasses.replace(TASKS["refcoco"], max_tokens=T, max_regions=R, task_id=1)


@pytest.fixture(scope="module")
def system(tiny_config):
    plain = tiny_config(
        text=dict(num_layers=1),
        visual=dict(num_layers=1),
        text_connections=(0,),
        visual_connections=(0,),
        coattention_heads=4,
        heads=("vqa", "region_score"),
        region_feature_dim=0,
    )
    encoder = ViTConfig(16, 1, 2, 16, image_size=(SIDE, SIDE), patch_size=4, stem="convolutions")
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    return GridVilbert(GridTwoStreamConfig(**fields, grid=GridConfig(encoder, rows=2, columns=2)))


def with_grid(system, **changes):
    grid = dataclasses.replace(system.config.grid, **changes)
    return GridVilbert(dataclasses.replace(system.config, grid=grid))


@pytest.fixture(scope="module")
def batch(system, random_batch):
    rng = np.random.default_rng(0)
    found = random_batch(system.config, rows=B, tokens=T, regions=R)
    del found["token_types"], found["task_id"]
    return found | {
        "images": rng.normal(size=(B, SIDE, SIDE, 3)).astype(np.float32),
        "picture_size": rng.integers(1, SIDE + 1, (B, 2), np.int32),
        "targets": rng.uniform(size=(B, R)).astype(np.float32),
        "_mask": np.arange(B) < B - 1,
        "task_id": np.int32(1),
    }


@pytest.fixture(scope="module")
def slopes(system):
    """Compiled: (trained, frozen, batch) -> loss and the gradient of the trained parameters."""

    def loss(params, frozen, batch):
        sums = system.objective([TASK]).loss(trees.merge(params, frozen), batch, None)
        return sums.mean_loss()

    return jax.jit(jax.value_and_grad(loss))


def test_the_loss_trains_the_encoder(system, batch, slopes, random_params):
    grads = trees.flatten(slopes(random_params(system.config), {}, batch)[1])
    # The final norm's scale and bias, the stem, positions: everything that the map is made of.
    reached = {path for path, value in grads.items() if np.abs(value).max() > 0}
    assert {path for path in grads if path[0] == "encoder"} <= reached


def test_the_number_of_devices_makes_no_difference(system, batch, slopes, random_params):
    params = random_params(system.config)
    alone, expected = slopes(params, {}, batch)
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    with sharding.use(mesh, "dp"):
        everywhere = jax.device_put(params, sharding.replicated(mesh))
        found, grads = jax.jit(lambda *x: slopes.__wrapped__(*x))(
            everywhere, {}, sharding.shard_batch(batch, mesh)
        )
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_frozen_encoder_is_split_off_and_a_trained_one_has_its_rate(system):
    assert system.frozen == ()
    (pattern,) = with_grid(system, freeze_encoder=True).frozen
    names = ["/".join(path) for path in trees.flatten(nn.unbox(system.abstract()))]
    frozen = {name for name in names if re.fullmatch(pattern, name)}
    assert frozen and frozen == {name for name in names if name.startswith("encoder/")}
    options = check.check(configs.get("world_grid")).optimizer
    groups = with_grid(system, encoder_learning_rate=0.3).groups(options, OfficialOptions())
    assigned = trees.flatten(param_groups.assign(nn.unbox(system.abstract()), groups))
    for path, group in assigned.items():
        wanted = (0.3, 0.01 if path[-1] == "kernel" else 0.0)
        if path[0] == "encoder":
            assert (group.learning_rate, group.weight_decay) == wanted, path
        else:
            assert group.learning_rate in (1.0, options.head_learning_rate)


def test_it_is_written_and_read(system):
    assert systems.from_json(system.to_json()) == system
    assert systems.from_json(Vilbert(named_size("tiny")).to_json()).config.grid is None


def test_sizes_follow_the_data_and_the_choice_of_features(system):
    fields = dataclasses.asdict(system.config)
    facts = Facts(vocab_size=41, answers={"vqa": 11, "gqa": 9}, feature_dim=35)
    assert GridVilbert.resolve(fields, facts).sizes(TASK)["feature_dim"] == 0
    fields["grid"]["region_features"] = True
    assert GridVilbert.resolve(fields, facts).sizes(TASK)["feature_dim"] == 35
    with pytest.raises(ConfigError, match="region_features: the data has none"):
        GridVilbert.resolve(fields, dataclasses.replace(facts, feature_dim=0))
    picture = system.sizes(TASK)["picture"]
    assert picture == dict(size=SIDE, low=-1.0, high=1.0, letterbox=False)


def test_pretraining_is_refused(system):
    fields = dataclasses.asdict(system.config)
    tasks = {"conceptual_captions": (CONCEPTUAL_CAPTIONS, _Options())}
    found = GridVilbert.misfits(fields, tasks)
    assert any("hides regions, which pictures would show" in text for text in found)


@dataclasses.dataclass(frozen=True)
class _Options:
    max_tokens: int = T
    task_token: int = 1


def test_exported_scores_are_the_models(system, batch, random_params):
    ((_, numbers, function),) = system.functions([TASK])
    assert numbers == {"refcoco": 1}
    assert "regions" not in function.inputs and function.params[-1] == "encoder/"
    inputs = {name: batch[name] for name in function.inputs}
    params = random_params(system.config)
    scores = jax.jit(function.scores)(params, inputs)
    judged = jax.jit(lambda p, b: system.judge(TASK)(p, b)[1].logits)(params, batch)
    np.testing.assert_allclose(scores, judged, atol=1e-6)
    noise = function.noise({"b": 4})
    assert noise["picture_size"].min() >= 1 and noise["picture_size"].max() <= SIDE
