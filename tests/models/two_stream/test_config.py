"""Model configs: shipped sizes, validation, the released JSON files, loading."""

import dataclasses
import json
import logging
import re

import pytest

from twelve_in_one.models.two_stream import config as model_config
from twelve_in_one.models.two_stream import reference_config
from twelve_in_one.models.two_stream.config import SIZES, from_json, named_size, to_json

# The released bert_base_6layer_6conect.json.
BASE_6 = dict(
    attention_probs_dropout_prob=0.1,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    hidden_size=768,
    initializer_range=0.02,
    intermediate_size=3072,
    max_position_embeddings=512,
    num_attention_heads=12,
    num_hidden_layers=12,
    type_vocab_size=2,
    vocab_size=30522,
    v_feature_size=2048,
    v_target_size=1601,
    v_hidden_size=1024,
    v_num_hidden_layers=6,
    v_num_attention_heads=8,
    v_intermediate_size=1024,
    bi_hidden_size=1024,
    bi_num_attention_heads=8,
    bi_intermediate_size=1024,
    bi_attention_type=1,
    v_attention_probs_dropout_prob=0.1,
    v_hidden_act="gelu",
    v_hidden_dropout_prob=0.1,
    v_initializer_range=0.02,
    v_biattention_id=[0, 1, 2, 3, 4, 5],
    t_biattention_id=[6, 7, 8, 9, 10, 11],
    pooling_method="mul",
)


def base_6(*, without=(), **changes):
    return {k: v for k, v in (BASE_6 | changes).items() if k not in without}


# ----------------------------------------------------------------------------------- sizes


# Connections of the shipped files: (text layers, width, text ids, visual ids).
SHIPPED = {
    "base_2l": (12, 768, [10, 11], [0, 1]),
    "base_4l": (12, 768, [8, 9, 10, 11], [0, 1, 2, 3]),
    "base_6l": (12, 768, [6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5]),
    "base_8l": (12, 768, [4, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7]),
    "large_2l": (24, 1024, [22, 23], [0, 1]),
    "large_4l": (24, 1024, [20, 21, 22, 23], [0, 1, 2, 3]),
    "large_6l": (24, 1024, [18, 19, 20, 21, 22, 23], [0, 1, 2, 3, 4, 5]),
    "roberta_base_6l": (12, 768, [6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_size_has_the_released_layers(name):
    config = named_size(name)
    layers, width, text_ids, visual_ids = SHIPPED[name]
    assert (config.text.num_layers, config.text.hidden_dim) == (layers, width)
    assert config.text.mlp_dim == 4 * width
    assert width // config.text.num_heads == 64
    assert list(config.text_connections) == text_ids
    assert list(config.visual_connections) == visual_ids
    assert config.visual.num_layers == len(visual_ids)
    assert (config.visual.hidden_dim, config.visual.num_heads, config.visual.mlp_dim) == (
        1024, 8, 1024,
    )  # fmt: skip
    assert (config.coattention_dim, config.coattention_heads) == (1024, 8)


def test_every_size_is_valid_and_survives_replace():
    for config in SIZES.values():
        assert dataclasses.replace(config) == config  # validates once more


def test_roberta_has_its_own_tables_and_positions():
    for name, config in SIZES.items():
        tables = (config.vocab_size, config.max_positions, config.num_token_types)
        if name.startswith("roberta"):
            assert (*tables, config.position_offset) == (50265, 514, 1, 2)
        elif name != "tiny":
            assert (*tables, config.position_offset) == (30522, 512, 2, 0)


def test_unknown_size_names_the_near_ones():
    with pytest.raises(ValueError, match="unknown model size 'base_6'; did you mean base_6l"):
        named_size("base_6")


# ----------------------------------------------------------------------------------- validation

INVALID = [
    (dict(text=dict(num_heads=3)), "text.hidden_dim 16 is not a multiple of 3 heads"),
    (dict(visual=dict(num_heads=5)), "visual.hidden_dim 24 is not a multiple of 5 heads"),
    (dict(text=dict(activation="tanh")), "text.activation 'tanh' is not one of ('gelu',"),
    (dict(visual=dict(activation="")), "visual.activation '' is not one of ('gelu',"),
    (dict(text=dict(dropout_rate=1.0)), "text.dropout_rate 1.0 is outside [0, 1)"),
    (
        dict(visual=dict(attention_dropout_rate=-0.1)),
        "visual.attention_dropout_rate -0.1 is outside [0, 1)",
    ),
    (dict(head_dropout_rate=1.5), "head_dropout_rate 1.5 is outside [0, 1)"),
    (dict(text_connections=(2, 1)), "text_connections (2, 1) must be ascending layer ids below 3"),
    (dict(text_connections=(1, 3)), "text_connections (1, 3) must be ascending layer ids below 3"),
    (
        dict(visual_connections=(-1, 1)),
        "visual_connections (-1, 1) must be ascending layer ids below 2",
    ),
    (dict(text=dict(num_frozen_layers=2)), "text.num_frozen_layers 2 must lie in 0..1"),
    (dict(text=dict(num_frozen_layers=-1)), "text.num_frozen_layers -1 must lie in 0..1"),
    (dict(visual=dict(num_frozen_layers=1)), "visual.num_frozen_layers 1 must lie in 0..0"),
    (dict(text_connections=(), visual_connections=()), "text_connections is empty"),
    (dict(text_connections=(1,)), "text_connections has 1 entries, visual_connections 2"),
    (dict(coattention_heads=3), "coattention_dim 20 is not a multiple of 3 heads"),
    (dict(visual_target=3), "visual_target 3 is not 0, 1 or 2"),
    (dict(fusion="concat"), "fusion 'concat' is not one of ('mul', 'sum')"),
    (dict(dtype="int8"), "dtype 'int8' is not one of ('float32',"),
    (dict(remat="some"), "remat 'some' is not one of ('none', 'full', 'dots')"),
    (dict(heads=("vqa", "vcr")), "unknown heads ['vcr']; known: ('vqa',"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID, ids=[m for _, m in INVALID])
def test_invalid_config(tiny_config, fields, message):
    with pytest.raises(ValueError, match="TwoStreamConfig: .*" + re.escape(message)):
        tiny_config(**fields)


def test_all_errors_are_reported_at_once(tiny_config):
    with pytest.raises(ValueError, match="fusion.*") as caught:
        tiny_config(fusion="concat", dtype="int8", text=dict(num_heads=3))
    for name in ("fusion", "dtype", "text.hidden_dim"):
        assert name in str(caught.value)


def test_masked_region_head_predicts_classes_or_features(tiny_config):
    assert [tiny_config(visual_target=t).masked_region_dim for t in (0, 1, 2)] == [37, 10, 10]


# ----------------------------------------------------------------------------------- our JSON


def test_json_round_trip(tiny_config):
    odd = tiny_config(
        text=dict(num_frozen_layers=1, activation="relu", dropout_rate=0.25),
        fusion="sum",
        visual_target=2,
        heads=("vqa", "alignment"),
        position_offset=2,
        scan_layers=True,
        remat="dots",
        dtype="bfloat16",
    )
    for config in (odd, *SIZES.values()):
        assert from_json(to_json(config)) == config
        hash(from_json(to_json(config)))  # lists would not do: a config is a static jit argument


def edited(config, **changes):
    raw = json.loads(to_json(config)) | changes
    return json.dumps({k: v for k, v in raw.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(colour=1), r"unknown fields \['colour'\]"),
        (dict(visual=None), r"missing fields \['visual'\]"),
        (dict(text=dict(num_layers=3)), "model config: .*hidden_dim"),
        (dict(text=dict(num_layers=3, depth=1)), "model config: .*depth"),
        (dict(text=4), "model config: "),
        (dict(fusion="concat"), "fusion 'concat'"),
    ],
)
def test_from_json_errors(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        from_json(edited(tiny_config(), **changes))


def test_from_json_wants_an_object():
    with pytest.raises(ValueError, match="a model config is a JSON object, got list"):
        from_json("[]")


# ----------------------------------------------------------------------------- released JSON


def test_released_base_file_is_our_base_size():
    ours = reference_config.from_reference(BASE_6 | {"task_specific_tokens": True})
    assert ours == named_size("base_6l")
    without_flag = reference_config.from_reference(BASE_6)  # the flag is off by default
    assert without_flag == dataclasses.replace(named_size("base_6l"), num_tasks=0)


def test_reference_round_trip(tiny_config):
    odd = dict(
        text=dict(num_frozen_layers=1, activation="relu", dropout_rate=0.25),
        visual=dict(activation="swish", attention_dropout_rate=0.5),
        text_connections=(1, 1),
        fusion="sum",
        with_coattention=False,
        dynamic_attention=True,
        visual_target=1,
        initializer_range=0.1,
    )
    named = [c for n, c in SIZES.items() if not n.startswith("roberta")]
    odd = [
        dataclasses.replace(tiny_config(num_tasks=rows, **odd), head_dropout_rate=0.1)
        for rows in (20, 0)
    ]
    for config in (*odd, *named):
        raw = json.loads(json.dumps(reference_config.to_reference(config)))
        assert reference_config.from_reference(raw) == config


def test_each_released_key_sets_one_field():
    """What is equal in the released files is unequal here; nothing reads `v_initializer_range`."""
    raw = base_6(
        hidden_act="relu", v_hidden_act="swish",
        hidden_dropout_prob=0.15, v_hidden_dropout_prob=0.25,
        attention_probs_dropout_prob=0.35, v_attention_probs_dropout_prob=0.45,
        v_num_attention_heads=16, v_intermediate_size=96, bi_hidden_size=60,
        bi_num_attention_heads=4, initializer_range=0.03, v_initializer_range=0.5,
        fixed_t_layer=2, v_biattention_id=[1, 2, 3, 4, 5, 5], fixed_v_layer=1,
    )  # fmt: skip
    config = reference_config.from_reference(raw)
    assert config.text == model_config.StreamConfig(12, 768, 12, 3072, "relu", 0.15, 0.35, 2)
    assert config.visual == model_config.StreamConfig(6, 1024, 16, 96, "swish", 0.25, 0.45, 1)
    assert (config.coattention_dim, config.coattention_heads) == (60, 4)
    assert config.initializer_range == 0.03
    assert config.head_dropout_rate == 0.1  # whatever the file says


def test_released_roberta_looks_positions_up_from_row_0():
    # Its JSON cannot say where positions start, and the released code starts at 0 (spec 7.19).
    raw = reference_config.to_reference(named_size("roberta_base_6l"))
    assert (raw["vocab_size"], raw["max_position_embeddings"]) == (50265, 514)
    config = reference_config.from_reference(raw | {"model": "roberta"})
    assert config == dataclasses.replace(named_size("roberta_base_6l"), position_offset=0)
    assert reference_config.from_reference(raw, position_offset=2) == named_size("roberta_base_6l")


def test_overrides_come_last():
    config = reference_config.from_reference(BASE_6, heads=("vqa",), fusion="sum")
    assert (config.heads, config.fusion) == (("vqa",), "sum")


def test_inert_keys_are_accepted_and_logged(caplog):
    with caplog.at_level(logging.INFO):
        changed = base_6(pooling_method="sum", bi_attention_type=2, fast_mode=True)
        assert reference_config.from_reference(changed) == reference_config.from_reference(
            base_6(without=("pooling_method", "bi_attention_type"))
        )
    first, second = [record.getMessage() for record in caplog.records]
    for key in ("pooling_method", "bi_attention_type", "fast_mode", "v_initializer_range"):
        assert key in first
    assert "pooling_method" not in second


def test_no_inert_keys_no_log(caplog, tiny_config):
    with caplog.at_level(logging.INFO):
        reference_config.from_reference(reference_config.to_reference(tiny_config()))
    assert not caplog.records


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            base_6(fusion_metod="sum"),
            r"unknown key 'fusion_metod' \(did you mean 'fusion_method'\?\)",
        ),
        (base_6(qqq=1), r"unknown key 'qqq'$"),
        (base_6(without=["v_hidden_size"]), "missing key 'v_hidden_size'"),
        (base_6(without=["t_biattention_id"]), "missing key 't_biattention_id'"),
        (base_6(hidden_size=770), "text.hidden_dim 770"),
        (base_6(v_biattention_id=[0]), "they pair up one to one"),
    ],
)
def test_from_reference_errors(raw, message):
    with pytest.raises(ValueError, match=message):
        reference_config.from_reference(raw)


def test_all_reference_errors_are_reported_at_once():
    raw = base_6(without=["hidden_size", "v_hidden_size"], fusion_metod="sum")
    with pytest.raises(ValueError, match="missing key 'hidden_size'") as caught:
        reference_config.from_reference(raw)
    assert "'v_hidden_size'" in str(caught.value)
    assert "fusion_metod" in str(caught.value)


# ----------------------------------------------------------------------------------- load


def test_load_a_name():
    assert reference_config.load("base_6l") == named_size("base_6l")
    with pytest.raises(ValueError, match="did you mean base_6l"):
        reference_config.load("base_6x")


def test_load_a_file_of_each_kind(tmp_path, tiny_config):
    released, ours = tmp_path / "released.json", tmp_path / "ours.json"
    released.write_text(json.dumps(BASE_6))
    ours.write_text(to_json(tiny_config(fusion="sum")))
    assert reference_config.load(released) == reference_config.from_reference(BASE_6)
    assert reference_config.load(str(ours)) == tiny_config(fusion="sum")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[1]", "a model config is a JSON object, got list"),
        (b"{}", "missing fields"),
        (json.dumps(base_6(colour=1)).encode(), "unknown key 'colour'"),
        (json.dumps(base_6(hidden_size=770)).encode(), "text.hidden_dim 770"),
        (None, "No such file"),
    ],
)
def test_load_error_names_the_file(tmp_path, content, message):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"model config {path}: ") + f".*{message}"):
        reference_config.load(path)


def test_heads_are_the_released_ones():
    assert len(model_config.ALL_HEADS) == len(set(model_config.ALL_HEADS)) == 10
