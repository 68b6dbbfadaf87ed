"""State dicts to parameters and back: nothing is lost, nothing is guessed."""

import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert.names import TIED_DECODER, WORD_TABLE
from twelve_in_one.convert.state_dict import (
    from_state_dict,
    normalise_name,
    normalise_names,
    to_state_dict,
)
from twelve_in_one.models.two_stream.config import ALL_HEADS, PRETRAINING_HEADS
from twelve_in_one.models.two_stream.encoder import stack_layers
from twelve_in_one.models.two_stream.reference_config import from_reference

TASK_TABLE = "bert.embeddings.task_embeddings.weight"
DEEPER = dict(
    text=dict(num_layers=5),
    visual=dict(num_layers=3),
    text_connections=(1, 1, 4),
    visual_connections=(0, 2, 2),
)
VARIANTS = {
    "all heads": {},
    "pretraining": dict(heads=PRETRAINING_HEADS, num_tasks=0),
    "one head": dict(heads=("three_way",)),
    "dynamic attention": dict(dynamic_attention=True),
    "sum": dict(fusion="sum", visual_target=1),
    "no co-attention": dict(with_coattention=False),
    "other depths": DEEPER,
    "scanned": dict(scan_layers=True, heads=("vqa",), **DEEPER),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_keeps_every_bit(variant, tiny_config, random_tensors, assert_same):
    config = tiny_config(**VARIANTS[variant])
    tensors = random_tensors(config)
    loaded = from_state_dict(config, tensors)
    assert loaded.report.ok
    assert len(loaded.report.loaded) + len(loaded.report.unused) == len(tensors)
    assert_same(dict(to_state_dict(config, loaded.params, loaded.unused)), tensors)


@pytest.mark.parametrize(
    "file, heads", [("vilbert_tiny", ALL_HEADS), ("vilbert_pretrain_tiny", PRETRAINING_HEADS)]
)
def test_round_trip_of_the_official_code_s_weights(file, heads, recorded_dir, assert_same):
    with np.load(recorded_dir / f"{file}.npz") as arrays:
        raw = json.loads(str(arrays["meta/config_json"]))
        tensors = {k.removeprefix("param/"): arrays[k] for k in arrays if k.startswith("param/")}
    config = from_reference(raw, heads=heads)
    loaded = from_state_dict(config, tensors)
    assert not loaded.report.notes
    assert_same(dict(to_state_dict(config, loaded.params, loaded.unused)), tensors)


def test_loading_makes_views(tiny_config, random_tensors):
    config = tiny_config()
    tensors = random_tensors(config)
    params = from_state_dict(config, tensors).params
    kernel = params["trunk"]["encoder"]["text_layer_0"]["attention"]["query"]["kernel"]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert kernel.shape == (16, 2, 8)
    assert np.shares_memory(kernel, tensors[name])
    np.testing.assert_array_equal(kernel.reshape(16, 16), tensors[name].T)


def test_names_of_older_code_and_of_wrapped_models():
    assert normalise_name("module.cls.bias") == "cls.bias"
    assert normalise_name("bert.embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    assert normalise_name("bert.embeddings.LayerNorm.beta") == "bert.embeddings.LayerNorm.bias"
    assert normalise_name("module.beta") == "bias"
    assert normalise_name("some.gamma.module.weight") == "some.gamma.module.weight"
    with pytest.raises(ValueError, match="'a.gamma' and 'module.a.weight' both stand for"):
        normalise_names({"a.gamma": 1, "module.a.weight": 2})


def test_older_and_wrapped_names_load(tiny_config, random_tensors, assert_same):
    config = tiny_config()
    tensors = random_tensors(config)

    def older(name):
        name = re.sub(r"(Norm\d?)\.weight$", r"\1.gamma", name)
        return "module." + re.sub(r"(Norm\d?)\.bias$", r"\1.beta", name)

    renamed = {older(name): array for name, array in tensors.items()}
    assert any(name.endswith(".gamma") for name in renamed)
    loaded = from_state_dict(config, renamed)
    assert_same(dict(to_state_dict(config, loaded.params, loaded.unused)), tensors)


def test_missing_entries_are_refused_unless_allowed(tiny_config, random_tensors):
    config = tiny_config(initializer_range=0.05, num_tasks=2000)
    tensors = random_tensors(config)
    norm, bias = "vil_prediction.logit_fc.2.weight", "vil_prediction.logit_fc.3.bias"
    absent = {TASK_TABLE, norm, bias}
    partial = {name: array for name, array in tensors.items() if name not in absent}
    with pytest.raises(StateDictError) as error:
        from_state_dict(config, partial, allow_missing=[".*task_embeddings"])  # not the whole name
    assert set(error.value.report.missing) == absent
    assert TASK_TABLE in str(error.value)

    patterns = [r".*task_embeddings\..*", "vil_.*"]
    loaded = from_state_dict(config, partial, allow_missing=patterns)
    assert set(loaded.report.initialised) == absent
    drawn = dict(to_state_dict(config, loaded.params, loaded.unused))
    np.testing.assert_array_equal(drawn[norm], 1)
    np.testing.assert_array_equal(drawn[bias], 0)
    assert drawn[TASK_TABLE].std() == pytest.approx(0.05, rel=0.03)
    assert abs(drawn[TASK_TABLE].mean()) < 0.002

    # The numbers depend on the seed, not on what else is absent.
    fewer = {name: array for name, array in tensors.items() if name != TASK_TABLE}
    same = from_state_dict(config, fewer, allow_missing=patterns).params
    other = from_state_dict(config, fewer, allow_missing=patterns, seed=1).params
    path = ("trunk", "text_embedding", "task", "embedding")
    np.testing.assert_array_equal(flatten(same)[path], drawn[TASK_TABLE])
    assert not np.array_equal(flatten(other)[path], drawn[TASK_TABLE])


def test_unused_entries_may_be_absent(tiny_config, random_tensors):
    config = tiny_config()
    tensors = random_tensors(config)
    used = {n: a for n, a in tensors.items() if "q_dense" not in n and n != TIED_DECODER}
    loaded = from_state_dict(config, used)
    assert not loaded.unused and not loaded.report.initialised
    first = dict(to_state_dict(config, loaded.params))
    second = dict(to_state_dict(config, loaded.params))
    assert set(first) == set(tensors)
    for name in set(tensors) - set(used):
        assert first[name].shape == tensors[name].shape
        np.testing.assert_array_equal(first[name], second[name])
    assert first["bert.encoder.c_layer.0.biOutput.q_dense1.weight"].std() == pytest.approx(
        0.02, rel=0.2
    )
    assert first[TIED_DECODER] is first[WORD_TABLE]


def test_a_decoder_that_is_not_tied_is_noted_and_kept(tiny_config, random_tensors, assert_same):
    config = tiny_config()
    tensors = random_tensors(config)
    tensors[WORD_TABLE][0, 0] = 0.0
    decoder = tensors[WORD_TABLE].copy()
    decoder[0, 0] = -0.0  # equal as a number, not bit for bit
    loaded = from_state_dict(config, tensors | {TIED_DECODER: decoder})
    assert [TIED_DECODER in note for note in loaded.report.notes] == [True]
    assert loaded.report.ok
    written = dict(to_state_dict(config, loaded.params, loaded.unused))
    assert_same(written, tensors | {TIED_DECODER: decoder})
    # A copy with equal bits is tied.
    tied = from_state_dict(config, tensors | {TIED_DECODER: tensors[WORD_TABLE].copy()})
    assert not tied.report.notes and TIED_DECODER not in tied.unused


def test_a_wrong_shape_is_an_error_that_no_option_allows(tiny_config, random_tensors):
    config = tiny_config()
    tensors = random_tensors(config) | {
        "vil_logit.weight": np.zeros((3, 20), np.float32),
        "vil_logit.bias": np.zeros(1, np.int64),
    }
    with pytest.raises(
        StateDictError, match=r"vil_logit.weight: \(3, 20\), expected \(1, 20\)"
    ) as e:
        from_state_dict(config, tensors, allow_missing=[".*"], allow_unexpected=[".*"])
    assert ("vil_logit.bias", "int64 (1,)", "(1,)") in e.value.report.wrong_shape


def test_unexpected_entries_are_refused_with_the_nearest_name(tiny_config, random_tensors):
    config = tiny_config()
    tensors = random_tensors(config)
    tensors["bert.t_poolr.dense.bias"] = tensors.pop("bert.t_pooler.dense.bias")
    tensors["zzz"] = np.zeros(1, np.float32)
    tensors["bert.embeddings.position_ids"] = np.arange(3)[None]  # a buffer: never a parameter
    with pytest.raises(StateDictError) as error:
        from_state_dict(config, tensors, allow_unexpected=["z+"])
    report = error.value.report
    assert report.unexpected == ("bert.t_poolr.dense.bias",)
    assert report.nearest["bert.t_poolr.dense.bias"] == "bert.t_pooler.dense.bias"
    assert report.nearest["bert.t_pooler.dense.bias"] == "bert.t_poolr.dense.bias"
    assert "did you mean bert.t_pooler.dense.bias" in str(report)
    assert {"zzz", "bert.embeddings.position_ids"} <= set(report.unused)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_point_types_become_float32(dtype, tiny_config, random_tensors):
    config = tiny_config()
    tensors = random_tensors(config)
    narrow = {name: array.astype(dtype) for name, array in tensors.items()}
    loaded = from_state_dict(config, narrow)
    name = np.dtype(dtype).name
    assert loaded.report.notes == (f"{len(tensors)} entries converted from {name} to float32",)
    written = dict(to_state_dict(config, loaded.params, loaded.unused))
    for key, array in narrow.items():
        np.testing.assert_array_equal(written[key], array.astype(np.float32))


def test_a_value_beyond_float32_is_an_error(tiny_config, random_tensors):
    config = tiny_config()
    tensors = random_tensors(config) | {"vil_logit.bias": np.array([1e300])}
    with pytest.raises(ValueError, match="vil_logit.bias: a float64 value is too large"):
        from_state_dict(config, tensors)


def test_a_malformed_expression_is_named(tiny_config):
    with pytest.raises(ValueError, match=r"malformed regular expression '\('"):
        from_state_dict(tiny_config(), {}, allow_missing=["("])


def test_writing_refuses_parameters_of_another_model(tiny_config, random_tensors):
    config = tiny_config(**DEEPER)
    params = from_state_dict(config, random_tensors(config)).params
    with pytest.raises(ValueError, match="unknown trunk/encoder/connection_2/.*; and 75 more"):
        to_state_dict(tiny_config(), params)


def test_writing_refuses_stacked_parameters(tiny_config, random_tensors):
    config = tiny_config(text=dict(num_layers=4), text_connections=(3, 3))
    params = from_state_dict(config, random_tensors(config)).params
    params = stack_layers(config, params)
    assert "segment_0" in params["trunk"]["encoder"]
    with pytest.raises(ValueError, match="the layers are stacked"):
        to_state_dict(config, params)


def test_writing_takes_jax_arrays(tiny_config, random_tensors, assert_same):
    config = tiny_config()
    tensors = random_tensors(config)
    loaded = from_state_dict(config, tensors)
    params = jax.tree.map(jax.numpy.asarray, loaded.params)
    assert_same(dict(to_state_dict(config, params, loaded.unused)), tensors)


def test_released_parameters_are_let_go_one_by_one(tiny_config, random_tensors, assert_same):
    config = tiny_config()
    tensors = random_tensors(config)
    loaded = from_state_dict(config, tensors)
    items = to_state_dict(config, loaded.params, loaded.unused, release=True)
    assert not loaded.params
    assert_same(dict(items), tensors)


def test_progress_sees_every_entry(tiny_config, random_tensors):
    config = tiny_config(heads=("vqa",))
    seen = []

    def watch(entries):
        for entry in entries:
            yield entry
            seen.append(entry.name)

    tensors = random_tensors(config)
    from_state_dict(config, tensors, progress=watch)
    assert seen == list(tensors)


def test_the_report_lists_what_matters():
    many = tuple(f"bert.encoder.v_layer.{i}.output.dense.bias" for i in range(30))
    text = str(Report(loaded=("a",), initialised=many, missing=many, notes=("careful",)))
    assert re.search(r"^loaded +1", text, re.M)
    assert "bert.encoder.v_layer (30)" in text  # by module, where nothing is wrong
    assert "... and 10 more" in text
    assert "note: careful" in text
    assert not Report(missing=("a",)).ok
    assert not Report(wrong_shape=(("a", "(1,)", "(2,)"),)).ok
    assert Report(loaded=("a",), unused=("b",), initialised=("c",)).ok


def test_dtype_of_the_model_does_not_matter(tiny_config, random_tensors):
    config = dataclasses.replace(tiny_config(), dtype="bfloat16")
    params = from_state_dict(config, random_tensors(config)).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
