"""Where arrays go under the layouts, and that it changes no number."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.models.two_stream.trunk import TwoStreamModel, abstract_params
from twelve_in_one.parallel import sharding
from twelve_in_one.parallel.sharding import constrain, layout_rules, make_mesh, partition_spec
from twelve_in_one.tasks import losses

B = 8


def test_mesh_axes():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    mesh = make_mesh(model=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert list(mesh.devices.flat) == jax.devices()
    assert dict(make_mesh(model=3, devices=jax.devices()[:6]).shape) == {"data": 2, "model": 3}
    for model in (0, 3, 16):
        with pytest.raises(ValueError, match=f"model={model} does not divide the 8 devices"):
            make_mesh(model=model)


def test_make_mesh_over_slices():
    mesh = make_mesh(model=2, slices=2)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "model": 2}
    assert list(mesh.devices.ravel()) == jax.devices()  # processes, and so slices, stay together
    assert sharding.batch_axes(mesh) == ("slice", "data") and sharding.batch_ways(mesh) == 4
    assert sharding.batch_ways(make_mesh(model=2)) == 4
    with pytest.raises(ValueError, match="slices=3 does not divide the 8 devices"):
        make_mesh(slices=3)
    with pytest.raises(ValueError, match="model=8 does not divide the 4 devices of a slice"):
        make_mesh(model=8, slices=2)


class Tpu(NamedTuple):
    slice_index: int
    platform: str = "tpu"


def test_tpus_know_their_slices():
    devices = [Tpu(index) for index in (1, 0, 1, 0)]
    first, second = sharding.slices_of(devices, 0)
    assert first == [Tpu(0)] * 2 and second == [Tpu(1)] * 2
    assert sharding.slices_of(devices, 2) == [first, second]
    for slices in (1, 4):
        with pytest.raises(ValueError, match=f"slices is {slices}: these TPUs are of 2 slices"):
            sharding.slices_of(devices, slices)


MESH_SHAPE = {"data": 4, "model": 2}
SLICES = {"slice": 2, "data": 2, "model": 2}


def test_partition_spec_over_slices():
    def spec(layout, names, shape):
        return partition_spec(names, shape, SLICES, layout_rules(layout))

    both = ("slice", "data")
    assert spec("dp", ("act_batch", None), (8, 3)) == PartitionSpec(both, None)
    assert spec("fsdp", ("text_embed", "mlp"), (16, 28)) == PartitionSpec(both, None)
    assert spec("hsdp", ("text_embed", "mlp"), (16, 28)) == PartitionSpec("data", "model")
    assert spec("hsdp", ("act_batch", "act_mlp"), (8, 28)) == PartitionSpec(both, "model")
    assert spec("fsdp", ("text_embed",), (18,)) == PartitionSpec(None)  # 4 do not divide it


@pytest.mark.parametrize(
    ("layout", "names", "shape", "expected"),
    [
        ("dp", ("text_embed", "mlp"), (16, 28), (None, None)),
        ("fsdp", ("text_embed", "mlp"), (16, 28), ("data", None)),
        ("fsdp_tp", ("text_embed", "mlp"), (16, 28), ("data", "model")),
        ("fsdp_tp", ("mlp", "text_embed"), (28, 16), ("model", "data")),
        ("fsdp_tp", ("heads", "head_dim", "visual_embed"), (2, 5, 8), ("model", None, "data")),
        ("fsdp_tp", ("layers", "text_embed", "heads", "head_dim"), (3, 4, 2, 5),
         (None, "data", "model", None)),
        ("fsdp_tp", ("classifier_embed", "labels"), (8, 3129), ("data", None)),  # odd: stays whole
        ("fsdp_tp", ("vocab", "text_embed"), (41, 18), (None, None)),
        ("dp", ("act_batch", "act_length", "act_heads", "head_dim"), (4, 3, 2, 5),
         ("data", None, None, None)),
        ("fsdp_tp", ("act_batch", "act_length", "act_mlp"), (4, 3, 6), ("data", None, "model")),
        ("fsdp", ("act_batch", None), (6, 4), (None, None)),
        ("fsdp", (), (), ()),
    ],
)  # fmt: skip
def test_partition_spec(layout, names, shape, expected):
    spec = partition_spec(names, shape, MESH_SHAPE, layout_rules(layout))
    assert spec == PartitionSpec(*expected)


def test_partition_spec_errors():
    rules = layout_rules("fsdp_tp")
    with pytest.raises(ValueError, match="no sharding rule for the logical axis 'width'"):
        partition_spec(("width",), (4,), MESH_SHAPE, rules)
    with pytest.raises(ValueError, match="two dimensions map to the mesh axis 'model'"):
        partition_spec(("heads", "mlp"), (4, 4), MESH_SHAPE, rules)
    with pytest.raises(ValueError, match=r"1 axis names \('mlp',\) for an array of shape \(4, 4\)"):
        partition_spec(("mlp",), (4, 4), MESH_SHAPE, rules)
    with pytest.raises(ValueError, match="unknown layout 'tp'; known: dp, fsdp, fsdp_tp"):
        layout_rules("tp")


@pytest.fixture(scope="module")
def full_size():
    """full_size(scan_layers): shapes of all parameters of a full model, with their axes' names."""
    return functools.cache(
        lambda scan_layers: abstract_params(
            dataclasses.replace(named_size("base_6l"), scan_layers=scan_layers)
        )
    )


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    ("layout", "model", "least", "most"),
    [("dp", 1, 1, 1), ("dp", 2, 1, 1), ("fsdp", 1, 0.125, 0.14), ("fsdp_tp", 2, 0.125, 0.14)],
)
def test_full_size_parameters_are_split(full_size, layout, model, least, most, scan_layers):
    """The share of the bytes that one of eight devices holds."""
    boxed = full_size(scan_layers)
    shardings = sharding.param_shardings(boxed, make_mesh(model=model), layout)
    leaves = jax.tree.leaves(nn.unbox(boxed))
    placed = jax.tree.leaves(shardings)
    assert len(leaves) == len(placed) > 50
    held = sum(
        np.prod(where.shard_shape(leaf.shape)) for leaf, where in zip(leaves, placed, strict=True)
    )
    assert least <= held / sum(leaf.size for leaf in leaves) <= most


def test_shard_batch():
    mesh = make_mesh(model=2)
    batch = dict(x=np.arange(24.0, dtype=np.float32).reshape(8, 3), task_id=np.int32(4))
    placed = sharding.shard_batch(batch, mesh)
    assert {key: value.dtype for key, value in placed.items()} == dict(x="float32", task_id="int32")
    assert placed["task_id"].sharding.is_fully_replicated and placed["task_id"] == 4
    np.testing.assert_array_equal(placed["x"], batch["x"])
    assert len(placed["x"].addressable_shards) == 8
    for shard in placed["x"].addressable_shards:
        row = 2 * np.argwhere(mesh.devices == shard.device)[0, 0]  # its place along `data`
        np.testing.assert_array_equal(shard.data, batch["x"][row : row + 2])
    with pytest.raises(ValueError, match=r"batch\['y'\] has 6 rows .* not a multiple of the 4"):
        sharding.shard_batch(batch | {"y": np.zeros((6, 2))}, mesh)


def test_constrain_acts_only_inside_use():
    mesh, x = make_mesh(model=2), jnp.ones((8, 3, 4))
    names = "act_batch", "act_length", "act_mlp"

    def place(x):
        return constrain(x, *names)

    assert constrain(x, *names) is x
    assert constrain(x, "no such name") is x  # not even looked up
    assert "sharding_constraint" not in str(jax.make_jaxpr(place)(x))
    with sharding.use(mesh, "fsdp_tp"):
        inner = jax.jit(lambda x: place(x))(x)
        with sharding.use(mesh, "fsdp"):
            nested = jax.jit(lambda x: place(x))(x)
        outer_again = jax.jit(lambda x: place(x))(x)
    assert inner.sharding.shard_shape(x.shape) == (2, 3, 2)
    assert outer_again.sharding.shard_shape(x.shape) == (2, 3, 2)
    assert nested.sharding.shard_shape(x.shape) == (2, 3, 4)
    with pytest.raises(RuntimeError), sharding.use(mesh, "fsdp"):
        raise RuntimeError
    assert constrain(x, *names) is x
    with pytest.raises(ValueError, match="unknown layout"), sharding.use(mesh, "tp"):
        pass


# ------------------------------------------------------------------ one device against eight


@pytest.fixture(scope="module")
def config(tiny_config):
    """With dropout. Vocabulary, heads and labels are odd here and there, and then stay whole."""
    noisy = dict(dropout_rate=0.1, attention_dropout_rate=0.1)
    return tiny_config(
        text=dict(num_layers=2) | noisy,
        visual=dict(num_layers=1) | noisy,
        text_connections=(1,),
        visual_connections=(0,),
        coattention_heads=4,
        heads=("gqa", "region_score"),
        head_dropout_rate=0.1,
    )


@pytest.fixture(scope="module")
def batch(config, random_batch):
    rng = np.random.default_rng(1)
    return random_batch(config, rows=B) | dict(
        answers=rng.uniform(size=(B, config.num_gqa_answers)).astype(np.float32),
        overlaps=rng.uniform(size=(B, 5)).astype(np.float32),
        mask=np.arange(B) < B - 1,
    )


@pytest.fixture(scope="module")
def compute(config, random_params, batch):
    """Loss and gradients, on one device or on eight: `compute(layout or None, model)`."""

    def loss(params, batch, key):
        answers, overlaps, mask = (batch[name] for name in ("answers", "overlaps", "mask"))
        inputs = {k: v for k, v in batch.items() if k not in ("answers", "overlaps", "mask")}
        model = TwoStreamModel(config)
        out, _ = model.apply({"params": params}, **inputs, heads=config.heads, dropout_key=key)
        real = inputs["region_mask"]
        regions = losses.region_loss(out["region_score"], overlaps, real, mask)
        return losses.answer_loss(out["gqa"], answers, mask).mean_loss() + regions.mean_loss()

    @functools.cache
    def run(layout=None, model=1, slices=1):
        # A function of its own, so that no compilation is shared between layouts.
        function = jax.jit(jax.value_and_grad(lambda *args: loss(*args)))
        params, key = random_params(config), jax.random.key(0)
        if layout is None:
            return params, *function(params, batch, key)
        mesh = make_mesh(model=model, slices=slices)
        where = sharding.param_shardings(abstract_params(config), mesh, layout)
        placed = jax.device_put(params, where)
        with sharding.use(mesh, layout):
            return placed, *function(placed, sharding.shard_batch(batch, mesh), key)

    return run


LAYOUTS = pytest.mark.parametrize(
    ("layout", "model", "slices"),
    [("dp", 1, 1), ("fsdp", 1, 1), ("fsdp_tp", 2, 1), ("fsdp", 1, 2), ("hsdp", 2, 2)],
)


@LAYOUTS
def test_eight_devices_compute_what_one_does(compute, layout, model, slices):
    """Loss and all gradients of a training loss with dropout."""
    _, value, grads = compute()
    _, ours_value, ours = compute(layout, model, slices)
    assert len(value.devices()) == 1 and len(ours_value.devices()) == 8
    np.testing.assert_allclose(ours_value, value, rtol=1e-5)
    grads, ours = flatten(grads), flatten(ours)
    assert set(ours) == set(grads)
    largest = max(np.abs(grad).max() for grad in grads.values())
    for path, grad in grads.items():
        np.testing.assert_allclose(ours[path], grad, atol=1e-5 * largest, rtol=0, err_msg=str(path))
        if path[-2:] != ("key", "bias"):  # shifts all scores of a query alike: truly 0
            assert np.abs(grad).max() > 1e-4 * largest, path


@LAYOUTS
def test_parameters_are_where_the_layout_says(compute, layout, model, slices):
    """Shard shapes by hand: widths 16 and 24, vocabulary 41, 2 and 3 heads, feed-forward 28."""
    params = flatten(compute(layout, model, slices)[0])
    encoder = ("trunk", "encoder")
    paths = [
        ("trunk", "text_embedding", "word", "embedding"),  # [41, 16]
        (*encoder, "text_layer_0", "feed_forward", "up", "kernel"),  # [16, 28]
        (*encoder, "text_layer_0", "attention", "query", "kernel"),  # [16, 2, 8]
        (*encoder, "visual_layer_0", "attention", "out", "kernel"),  # [3, 8, 24]
        ("trunk", "visual_pooler", "bias"),  # [20]
    ]
    expected = {
        ("dp", 1, 1): [(41, 16), (16, 28), (16, 2, 8), (3, 8, 24), (20,)],
        ("fsdp", 1, 1): [(41, 2), (2, 28), (2, 2, 8), (3, 8, 3), (20,)],
        ("fsdp", 1, 2): [(41, 2), (2, 28), (2, 2, 8), (3, 8, 3), (20,)],
        ("hsdp", 2, 2): [(41, 8), (8, 14), (8, 1, 8), (3, 8, 12), (10,)],
        ("fsdp_tp", 2, 1): [(41, 4), (4, 14), (4, 1, 8), (3, 8, 6), (10,)],
    }
    shapes = [{shard.data.shape for shard in params[path].addressable_shards} for path in paths]
    assert shapes == [{shape} for shape in expected[layout, model, slices]]
