"""The whole two-stream model against a NumPy one written from the spec, and its promises."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from reference.two_stream import Reference

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import names
from twelve_in_one.models import layers
from twelve_in_one.models.two_stream import coattention, heads, trunk
from twelve_in_one.models.two_stream.config import ALL_HEADS, PRETRAINING_HEADS, named_size
from twelve_in_one.models.two_stream.trunk import (
    TwoStreamModel,
    abstract_params,
    count_parameters,
    init_params,
)

# ------------------------------------------------------------------------------ helpers


def apply(config, params, batch, names=ALL_HEADS, **options):
    return TwoStreamModel(config).apply({"params": params}, **batch, heads=names, **options)


@functools.cache
def forward(config, **options):
    """The compiled model with all its heads: called with parameters, a batch and maybe a key."""

    def run(params, batch, key=None):
        return apply(config, params, batch, config.heads, dropout_key=key, **options)

    return jax.jit(run)


def assert_close(ours, theirs, atol):
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=atol, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def default(tiny_config, random_params, random_batch):
    """The default tiny config, parameters, a batch, and what the compiled model makes of it."""
    config = tiny_config()
    params, batch = random_params(config), random_batch(config)
    logits, aux = forward(config, return_attention=True)(params, batch)
    return dict(config=config, params=params, batch=batch, logits=logits, aux=aux)


# ---------------------------------------------------------------------------- against the spec

# Heads are listed where fewer will do: each costs compilation time.
VARIANTS = {
    "default": {},
    "dynamic_attention": dict(
        dynamic_attention=True, heads=("vqa", "region_score", "token_score", "masked_language")
    ),
    "no_task_token": dict(
        num_tasks=0, text=dict(activation="relu"), heads=("token_score", "region_score")
    ),
    "no_coattention": dict(with_coattention=False, heads=("three_way",)),
    "connections_on_one_layer": dict(
        text_connections=(1, 1, 2), visual_connections=(0, 1, 1), heads=("three_way",)
    ),
    "gaps_between_connections": dict(
        text=dict(num_layers=5),
        text_connections=(1, 4),
        visual_connections=(1, 1),
        heads=("three_way",),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_is_the_specified_one(tiny_config, random_params, random_batch, variant):
    """Every head and every intermediate, in float32 against float64."""
    config = tiny_config(**VARIANTS[variant])
    params, batch = random_params(config), random_batch(config)
    logits, aux = forward(config, return_attention=True)(params, batch)
    expected_logits, expected_aux = Reference(config, params)(**batch)
    assert_close(logits, expected_logits, atol=2e-5)
    assert_close(aux, expected_aux, atol=2e-5)


# Whatever is equal in the released configs differs here: streams, rates and widths (which differ in
# every tiny config) from each other, and the rest from its default.
UNEQUAL = dict(
    text=dict(activation="gelu_tanh", dropout_rate=0.1, attention_dropout_rate=0.2),
    visual=dict(activation="swish", dropout_rate=0.3, attention_dropout_rate=0.4),
    head_dropout_rate=0.6,
    layer_norm_eps=1e-2,
    position_offset=2,
    fusion="sum",
    visual_target=1,
)


def test_every_setting_is_read_where_the_spec_says(
    tiny_config, random_params, random_batch, monkeypatch
):
    """All heads, with dropout at its expectation: each rate scales where it stands."""

    def scale(x, rate, key):
        return x * (1 - rate)

    for module in (layers, coattention, trunk, heads):
        monkeypatch.setattr(module, "dropout", scale)
    config = tiny_config(**UNEQUAL)
    params, batch = random_params(config), random_batch(config)
    run = jax.jit(lambda p, b: apply(config, p, b, return_attention=True))
    logits, aux = run(params, batch)
    expected_logits, expected_aux = Reference(config, params, dropout=True)(**batch)
    assert_close(logits, expected_logits, atol=2e-5)
    # What the heads read, before their dropout, and every state and map on the way.
    assert_close(aux, expected_aux, atol=2e-5)


def test_token_types_default_to_zeros(default):
    batch = {k: v for k, v in default["batch"].items() if k != "token_types"}

    def embed(params, batch):
        return apply(default["config"], params, batch, ())[1]["text_embedding"]

    zeros = batch | {"token_types": np.zeros_like(batch["tokens"])}
    ours, expected = (jax.jit(embed)(default["params"], b) for b in (batch, zeros))
    np.testing.assert_array_equal(ours, expected)
    assert not np.array_equal(ours, default["aux"]["text_embedding"])


# ----------------------------------------------------------------------------------- masks


def unmasked(logits, batch, config):
    """The logits of real rows, tokens and regions."""
    task_slot = np.ones((len(batch["tokens"]), int(config.num_tasks > 0)), bool)
    tokens = np.concatenate([task_slot, batch["token_mask"]], axis=1)
    masks = dict(
        token_score=tokens,
        masked_language=tokens,
        region_score=batch["region_mask"],
        masked_region=batch["region_mask"],
    )
    return {k: np.asarray(v)[masks[k]] if k in masks else v for k, v in logits.items()}


@pytest.mark.parametrize("variant", ["default", "dynamic_attention"])
def test_what_is_masked_changes_nothing(tiny_config, random_params, random_batch, variant):
    """Bit for bit: other ids, types, features and boxes behind the masks."""
    config = tiny_config(**VARIANTS[variant])
    params, batch = random_params(config), random_batch(config)
    run, rng = forward(config, return_attention=True), np.random.default_rng(1)
    other = dict(batch)
    for name, mask, values in (
        ("tokens", "token_mask", rng.integers(0, config.vocab_size, batch["tokens"].shape)),
        ("token_types", "token_mask", 1 - batch["token_types"]),
        ("regions", "region_mask", 1e3 * rng.normal(size=batch["regions"].shape)),
        ("boxes", "region_mask", 1e3 * rng.normal(size=batch["boxes"].shape)),
    ):
        keep = batch[mask].reshape(batch[mask].shape + (1,) * (values.ndim - 2))
        other[name] = np.where(keep, batch[name], values).astype(batch[name].dtype)
        assert not np.array_equal(other[name], batch[name])
    before, after = (unmasked(run(params, b)[0], batch, config) for b in (batch, other))
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name], err_msg=name)


@pytest.mark.parametrize("name", ["tokens", "token_types", "regions", "boxes"])
def test_what_is_real_does_matter(default, name):
    """The counterpart: the last real token or region of row 0 changes all heads of row 0 only."""
    batch = dict(default["batch"])
    mask = batch["token_mask" if name.startswith("token") else "region_mask"][0]
    last = np.flatnonzero(mask)[-1]
    batch[name] = batch[name].copy()
    batch[name][0, last] = 1 - batch[name][0, last]
    after, _ = forward(default["config"], return_attention=True)(default["params"], batch)
    for head, before in default["logits"].items():
        assert not np.array_equal(before[0], after[head][0]), head
        np.testing.assert_array_equal(before[1:], after[head][1:], err_msg=head)


def test_attention_maps_are_distributions_over_real_keys(default):
    batch, aux = default["batch"], default["aux"]
    tokens = np.concatenate([np.ones((4, 1), bool), batch["token_mask"]], axis=1)
    maps = {k: np.asarray(v) for k, v in aux.items() if k.startswith("attention/")}
    assert len(maps) == 3 + 2 + 2 * 2
    for name, probabilities in maps.items():
        reads_text = "text_layer" in name or name.endswith("reads_text")
        keys = tokens if reads_text else batch["region_mask"]
        np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-6, err_msg=name)
        real = np.broadcast_to(keys[:, None, None, :], probabilities.shape)
        assert (probabilities[~real] == 0).all(), name
        assert (probabilities[real] > 0).all(), name


# ------------------------------------------------------------------------- order, task token


def test_word_order_matters_and_region_order_does_not(default):
    config, batch = default["config"], dict(default["batch"])
    run = forward(config, return_attention=True)
    swapped = batch | {"tokens": batch["tokens"][:, [0, 2, 1, 3, 4, 5]]}
    logits, _ = run(default["params"], swapped)
    assert np.abs(logits["vqa"][0] - default["logits"]["vqa"][0]).max() > 1e-3

    order = [0, 3, 1, 4, 2]  # region 0, the whole image, is the one that is pooled
    moved = batch | {k: batch[k][:, order] for k in ("regions", "boxes", "region_mask")}
    logits, _ = run(default["params"], moved)
    for name, before in default["logits"].items():
        if name in ("region_score", "masked_region"):
            before = before[:, np.array(order)]
        np.testing.assert_allclose(logits[name], before, atol=1e-5, err_msg=name)


def test_task_token_lengthens_the_text_only(tiny_config, random_params, random_batch, default):
    config = tiny_config(**VARIANTS["no_task_token"])
    run = forward(config, return_attention=True)
    logits, aux = run(random_params(config), random_batch(config))
    for name, length in (("text", 6), ("text_layer_0", 6), ("visual", 5), ("visual_layer_0", 5)):
        assert aux[name].shape[1] == length
        assert default["aux"][name].shape[1] == length + (name[:4] == "text")
    for name, length in (("token_score", 6), ("region_score", 5)):
        assert logits[name].shape == (4, length)
        assert default["logits"][name].shape == (4, length + (name[:5] == "token"))


def test_task_id_changes_its_own_row(default):
    batch = dict(default["batch"])
    batch["task_id"] = batch["task_id"].copy()
    batch["task_id"][2] = (batch["task_id"][2] + 1) % 6
    logits, _ = forward(default["config"], return_attention=True)(default["params"], batch)
    changed = [
        not np.array_equal(ours, before)
        for ours, before in zip(logits["vqa"], default["logits"]["vqa"], strict=True)
    ]
    assert changed == [False, False, True, False]


def test_one_task_id_serves_all_rows(default):
    def embed(params, batch):
        return apply(default["config"], params, batch, ())[1]["text_embedding"]

    run = jax.jit(embed)
    one, many = (
        run(default["params"], default["batch"] | {"task_id": np.asarray(task_id, np.int32)})
        for task_id in (3, [3] * 4)
    )
    np.testing.assert_array_equal(one, many)
    assert not np.array_equal(one, default["aux"]["text_embedding"])


# ---------------------------------------------------------------------------------- all pairs


@pytest.mark.parametrize("visual_before", [0, 1])
def test_all_pairs_scores_every_caption_against_every_image(
    tiny_config, random_params, random_batch, visual_before
):
    """Rows are caption-major; also with visual layers in front of the first connection."""
    config = tiny_config(
        visual_connections=(visual_before, 1), heads=("image_text_match", "region_score")
    )
    params, (captions, images) = random_params(config), (3, 2)
    batch = random_batch(config, rows=captions, images=images)
    logits, aux = forward(config, all_pairs=True)(params, batch)
    assert aux["text_layer_0"].shape[0] == captions
    if visual_before:
        assert aux["visual_layer_0"].shape[0] == images

    # One forward pass per pair, in the model that knows of nothing but rows.
    reference, by_image = Reference(config, params), ("regions", "boxes", "region_mask")
    for m in range(captions):
        for n in range(images):
            at = {k: slice(n, n + 1) if k in by_image else slice(m, m + 1) for k in batch}
            expected, _ = reference(**{k: v[at[k]] for k, v in batch.items()})
            row = {
                name: values[m * images + n : m * images + n + 1] for name, values in logits.items()
            }
            assert_close(row, expected, atol=2e-5)


def test_all_pairs_of_equally_many(default, random_batch):
    config = default["config"]
    logits, _ = jax.eval_shape(
        lambda p, b: apply(config, p, b, ("image_text_match",), all_pairs=True),
        default["params"],
        random_batch(config, rows=3),
    )
    assert logits["image_text_match"].shape == (9,)


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (dict(tokens=(4,)), {}, r"tokens must be [B, T] and regions [B, R, F], got (4,)"),
        (dict(regions=(4, 10)), {}, r"tokens must be [B, T] and regions [B, R, F]"),
        (dict(token_mask=(4, 5)), {}, "token_mask must have shape (4, 6), got (4, 5)"),
        (dict(regions=(4, 5, 9)), {}, "regions must have shape (4, 5, 10), got (4, 5, 9)"),
        (dict(boxes=(4, 5, 4)), {}, "boxes must have shape (4, 5, 5), got (4, 5, 4)"),
        (dict(region_mask=(4, 6)), {}, "region_mask must have shape (4, 5), got (4, 6)"),
        (
            dict(tokens=(3, 6), token_mask=(3, 6), token_types=(3, 6), task_id=(3,)),
            {},
            "3 rows of tokens but 4 rows of regions; pass all_pairs=True",
        ),
        (
            dict(tokens=(4, 14), token_mask=(4, 14), token_types=(4, 14)),
            {},
            "14 tokens need 14 positions, the table has 13",
        ),
        (
            dict(tokens=(4, 12), token_mask=(4, 12), token_types=(4, 12)),
            dict(position_offset=2),
            "12 tokens need 14 positions, the table has 13",
        ),
        (dict(task_id=None), {}, "this model has task tokens: pass task_id"),
        ({}, dict(names=("vcr",)), "heads ['vcr'] are not in this model"),
        ({}, dict(heads=("vqa",)), "are not in this model, which has ('vqa',)"),
    ],
)
def test_bad_input(tiny_config, random_params, random_batch, changes, options, message):
    fields = {k: v for k, v in options.items() if k != "names"}
    config = tiny_config(**fields)
    batch = random_batch(config)
    for name, shape in changes.items():
        if shape is None:
            del batch[name]
        else:
            batch[name] = np.zeros(shape, batch[name].dtype)
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            lambda p, b: apply(config, p, b, options.get("names", ("vqa", "gqa"))),
            random_params(config),
            batch,
        )


def test_image_pair_wants_pairs(default, random_batch):
    config = default["config"]
    with pytest.raises(ValueError, match="rows 2j and 2j \\+ 1 .* got 3 rows"):
        jax.eval_shape(
            lambda p, b: apply(config, p, b, ("image_pair",)),
            default["params"],
            random_batch(config, rows=3),
        )


# -------------------------------------------------------------------------- only what is asked


def _matmul_widths(jaxpr):
    """Last dimensions of all matrix products in a jaxpr, nested ones included."""
    widths = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            widths.add(equation.outvars[0].aval.shape[-1])
        for inner in jaxprs_in_params(equation.params):
            widths |= _matmul_widths(inner)
    return widths


@pytest.mark.parametrize(
    ("head", "width"), [("masked_language", 41), ("vqa", 11), ("gqa", 9), ("masked_region", 37)]
)
def test_only_the_heads_that_are_asked_for_are_computed(default, head, width):
    config, params, batch = default["config"], default["params"], default["batch"]

    def widths(*names):
        jaxpr = jax.make_jaxpr(lambda p, b: apply(config, p, b, names))(params, batch)
        return _matmul_widths(jaxpr.jaxpr)

    assert width in widths(head)
    assert width not in widths("three_way", "region_score")


# ----------------------------------------------------------------------------------- aux


def test_intermediates_have_the_documented_names_and_shapes(default):
    b, s, r, d, v, c = 4, 7, 5, 16, 24, 20
    expected = {"text_embedding": (b, s, d), "visual_embedding": (b, r, v)}
    expected |= {f"text_layer_{i}": (b, s, d) for i in range(3)}
    expected |= {f"visual_layer_{i}": (b, r, v) for i in range(2)}
    expected |= {f"attention/text_layer_{i}": (b, 2, s, s) for i in range(3)}
    expected |= {f"attention/visual_layer_{i}": (b, 3, r, r) for i in range(2)}
    for i in range(2):
        expected |= {f"connection_{i}_text": (b, s, d), f"connection_{i}_visual": (b, r, v)}
        expected[f"attention/connection_{i}_text_reads_visual"] = (b, 5, s, r)
        expected[f"attention/connection_{i}_visual_reads_text"] = (b, 5, r, s)
    expected |= {"text": (b, s, d), "visual": (b, r, v)}
    expected |= dict.fromkeys(("text_pooled", "visual_pooled", "fused"), (b, c))
    assert {name: value.shape for name, value in default["aux"].items()} == expected


def test_attention_maps_only_on_request(default):
    config = default["config"]
    _, aux = jax.eval_shape(
        lambda p, b: apply(config, p, b, ()), default["params"], default["batch"]
    )
    assert set(aux) == {k for k in default["aux"] if not k.startswith("attention/")}


def test_logits_have_the_documented_shapes(default):
    shapes = {name: value.shape for name, value in default["logits"].items()}
    assert shapes == dict(
        vqa=(4, 11),
        gqa=(4, 9),
        image_pair=(2, 2),
        image_text_match=(4,),
        three_way=(4, 3),
        region_score=(4, 5),
        token_score=(4, 7),
        masked_language=(4, 7, 41),
        masked_region=(4, 5, 37),
        alignment=(4, 2),
    )


# ---------------------------------------------------------------------------------- bfloat16


def test_bfloat16_is_close_and_keeps_probabilities_in_float32(default):
    config = dataclasses.replace(default["config"], dtype="bfloat16")
    logits, aux = forward(config, return_attention=True)(default["params"], default["batch"])
    for name, value in (logits | aux).items():
        wide = name.startswith("attention/")
        assert value.dtype == (jnp.float32 if wide else jnp.bfloat16), name
    ours = {name: np.asarray(value, np.float32) for name, value in logits.items()}
    errors = {name: ours[name] - expected for name, expected in default["logits"].items()}
    for name, error in errors.items():
        assert np.abs(error).max() < 0.1 * np.abs(default["logits"][name]).max(), name
    square, total = (
        sum(np.sum(np.square(x)) for x in tree.values()) for tree in (errors, default["logits"])
    )
    assert math.sqrt(square / total) < 0.03


def test_parameters_are_float32_whatever_the_compute_dtype(tiny_config):
    params = abstract_params(tiny_config(dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


# ------------------------------------------------------------------------------------ dropout

NOISY = dict(dropout_rate=0.1, attention_dropout_rate=0.1)


def test_without_a_key_there_is_no_dropout(tiny_config, default):
    """The same program whatever the rates: nothing random is even traced."""
    noisy = tiny_config(text=NOISY, visual=NOISY, head_dropout_rate=0.1)
    still, ours = (
        str(jax.make_jaxpr(lambda p, b, c=c: apply(c, p, b))(default["params"], default["batch"]))
        for c in (default["config"], noisy)
    )
    assert still == ours


@pytest.fixture(scope="module")
def shallow(tiny_config):
    """Makes configs of two text layers, two visual layers and a connection between them."""
    return functools.partial(
        tiny_config, text_connections=(1,), visual_connections=(1,), heads=("three_way",)
    )


def test_dropout_depends_on_the_key_alone(shallow, random_params, random_batch):
    config = shallow(text=dict(num_layers=2) | NOISY, visual=NOISY)
    run, params, batch = forward(config), random_params(config), random_batch(config)
    # This kind of key compiles in a fraction of the default kind's time.
    keys = (jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 0, 1))
    first, again, other = (np.asarray(run(params, batch, key)[0]["three_way"]) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max(axis=1) > 1e-3).all()  # in every row


def test_every_dropout_draws_from_a_key_of_its_own(tiny_config, default, monkeypatch):
    config = tiny_config(text=NOISY, visual=NOISY, head_dropout_rate=0.1)
    drawn = []

    def record(x, rate, key):
        assert rate == 0.1
        drawn.append(jax.random.key_data(key))
        return x

    for module in (layers, coattention, trunk, heads):
        monkeypatch.setattr(module, "dropout", record)

    @jax.jit  # returns the keys alone, so the compiler drops the model
    def keys(key):
        drawn.clear()
        apply(config, default["params"], default["batch"], dropout_key=key)
        return jnp.stack(drawn)

    found = np.asarray(keys(jax.random.key(0)))
    # two embeddings; three draws per layer, six per connection; the fused vector for the tasks and
    # for the alignment head, region states, token states
    assert len(found) == 2 + 3 * 5 + 6 * 2 + 4
    assert len(np.unique(found, axis=0)) == len(found)


# --------------------------------------------------------------------------- frozen layers


@pytest.mark.parametrize("stream", ["text", "visual"])
def test_frozen_layers_get_no_gradient(shallow, random_params, random_batch, stream):
    """One layer and the embedding of `stream` are frozen, of the other stream nothing."""
    fields = {"text": dict(num_layers=2), "visual": {}}
    fields[stream]["num_frozen_layers"] = 1
    config = shallow(**fields)

    def loss(params, batch):
        return jnp.sum(apply(config, params, batch, ("three_way",))[0]["three_way"] ** 2)

    grads = jax.jit(jax.grad(loss))(random_params(config), random_batch(config))
    frozen = {("trunk", f"{stream}_embedding"), ("trunk", "encoder", f"{stream}_layer_0")}
    seen = set()
    for path, grad in flatten(grads).items():
        prefix = next((p for p in frozen if path[: len(p)] == p), None)
        if prefix:
            seen.add(prefix)
            assert (np.asarray(grad) == 0).all(), path
        elif path[-2:] != ("key", "bias"):  # shifts all scores of a query alike: truly 0
            assert np.abs(grad).max() > 1e-6, path
    assert seen == frozen


# --------------------------------------------------------------------- parameters, abstractly


def test_init_draws_what_the_spec_says(tiny_config):
    config = tiny_config(
        initializer_range=0.05,
        heads=("three_way", "masked_language"),
        text=dict(num_layers=1),
        visual=dict(num_layers=1),
        text_connections=(0,),
        visual_connections=(0,),
        vocab_size=500,
    )
    params = flatten(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    drawn = []
    for path, value in params.items():
        if path[-1] in ("bias", "masked_language_bias"):
            assert (np.asarray(value) == 0).all(), path
        elif path[-1] == "scale":
            assert (np.asarray(value) == 1).all(), path
        else:
            drawn.append(np.asarray(value).ravel())
            # 5 standard errors of a sample standard deviation
            assert abs(drawn[-1].std() / 0.05 - 1) < 5 / math.sqrt(2 * value.size), path
    drawn = np.concatenate(drawn)
    assert len(np.unique(drawn)) > 0.99 * len(drawn)
    assert np.abs(drawn).max() > 3.2 * 0.05  # untruncated


def test_released_parameter_counts(monkeypatch):
    """Spec 1.12, without allocating anything."""
    monkeypatch.setattr(names, "abstract_params", functools.cache(abstract_params))
    base = named_size("base_6l")
    no_tasks = dataclasses.replace(base, num_tasks=0)
    pretraining = dataclasses.replace(no_tasks, heads=PRETRAINING_HEADS)
    dynamic = dataclasses.replace(base, dynamic_attention=True)
    assert names.count_released(base) == 268_028_859
    assert names.count_released(no_tasks) == 268_013_499
    assert names.count_released(pretraining) == 250_044_029
    assert names.count_released(dynamic) == 277_478_331
    assert len(names.table(base)) == 560
    assert len(names.table(pretraining)) == 533
    assert count_parameters(base) == 257_008_059


def test_a_released_file_holds_connections_that_do_not_run(tiny_config):
    config = tiny_config()
    skipping = dataclasses.replace(config, with_coattention=False)
    assert names.count_released(skipping) == names.count_released(config)
    assert count_parameters(skipping) < count_parameters(config)
