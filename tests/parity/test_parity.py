"""The parity command: passes on the recorded arrays, and fails on anything that is off."""

import json
import os
import pickle

import flax.linen as nn
import jax
import numpy as np
import pytest
from reference.recorded import COPIES
from reference.two_stream import Reference

from twelve_in_one.convert import names
from twelve_in_one.convert.two_tower import to_big_vision
from twelve_in_one.models import two_tower
from twelve_in_one.models.two_stream.config import ALL_HEADS, PRETRAINING_HEADS
from twelve_in_one.models.two_stream.reference_config import to_reference
from twelve_in_one.models.two_tower import TextTowerConfig, TwoTower, TwoTowerConfig
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.parity.__main__ import compare, main
from twelve_in_one.parity.fixture import load_fixture, relative
from twelve_in_one.parity.outputs import PADDED_SCORE

RELEASED_INPUTS = dict(
    input_ids="tokens", text_mask="token_mask", features="regions", boxes="boxes",
    image_mask="region_mask", segment_ids="token_types",
)  # fmt: skip
OUTPUTS = dict(
    vil_prediction="vqa", vil_prediction_gqa="gqa", vil_binary_prediction="image_pair",
    vil_logit="image_text_match", vil_tri_prediction="three_way", vision_logit="region_score",
    linguistic_logit="token_score", linguistic_prediction="masked_language",
    vision_prediction="masked_region",
)  # fmt: skip
PRETRAINING_OUTPUTS = dict(
    prediction_scores_text="masked_language", prediction_scores_image="masked_region",
    seq_relationship_score="alignment",
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "at_least", "gradients"),
    [("vilbert_tiny.npz", 200, 109), ("vilbert_pretrain_tiny.npz", 60, 46)],
)
def test_recorded_arrays(recorded_dir, file, at_least, gradients):
    """Outputs, intermediates, maps, losses, gradients and AdamW runs of the released code."""
    path = recorded_dir / file
    checks = list(compare(load_fixture(path)))
    assert [str(check) for check in checks if not check.ok] == []
    kinds = ("out", "inter", "attn", "grad", "gradnorm")
    with np.load(path) as archive:
        stored = {name for name in archive.files if name.split("/")[0] in kinds}
    compared = {check.name.split(" ")[0] for check in checks}
    assert stored <= compared
    # The copies beside the tests have the norms of gradients, and not their elements.
    elements = sum(name.startswith("grad/") for name in stored)
    assert elements == (0 if recorded_dir == COPIES else gradients)
    assert len(checks) >= at_least - gradients + elements


def record(config, params, batch):
    """A fixture of outputs, as the reference in NumPy computes them."""
    reference = Reference(config, params)
    out, aux = reference(**batch)
    rng = np.random.default_rng(1)
    state = {e.name: rng.normal(size=e.shape) for e in names.table(config)} | reference.state
    if names.TIED_DECODER in state:
        state[names.TIED_DECODER] = state[names.WORD_TABLE]
    arrays = {f"param/{name}": value.astype(np.float32) for name, value in state.items()}
    arrays["meta/config_json"] = np.array(json.dumps(to_reference(config)))
    arrays |= {f"in/{theirs}": batch[ours] for theirs, ours in RELEASED_INPUTS.items()}
    if config.num_tasks:
        arrays["in/task_ids"] = np.asarray(batch["task_id"])[:, None]
    released = OUTPUTS if "vqa" in config.heads else PRETRAINING_OUTPUTS
    for theirs, ours in released.items():
        value = out[ours]
        if ours in ("image_text_match", "region_score", "token_score"):
            value = value[..., None]
        if ours == "region_score":
            value = value + PADDED_SCORE * ~batch["region_mask"][..., None]
        arrays[f"out/{theirs}"] = value.astype(np.float32)
    arrays["inter/pooled_text"] = aux["text_pooled"].astype(np.float32)
    # The released mode that returns every encoded layer pools behind the last connection.
    if not config.with_coattention:
        text, visual = aux["text_layer_1"], aux["visual_layer_0"]
        arrays["all_layers/pooled_text"] = reference.pool("t", text).astype(np.float32)
        arrays["all_layers/pooled_image"] = reference.pool("v", visual).astype(np.float32)
    arrays["attn/image_layer_1"] = aux["attention/visual_layer_1"].astype(np.float32)
    return arrays


VARIANTS = {
    "no_coattention": dict(with_coattention=False, heads=PRETRAINING_HEADS),
    "sum_fusion_and_odd_order": dict(
        fusion="sum", heads=ALL_HEADS, text=dict(num_layers=5), text_connections=(1, 4),
        visual_connections=(1, 1),
    ),
    "dynamic_attention_pretraining_features": dict(
        dynamic_attention=True, heads=PRETRAINING_HEADS, num_tasks=0, visual_target=1,
        text=dict(activation="relu"), visual=dict(activation="swish"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tiny_config, random_params, random_batch):
    """Makes the arrays of a variant."""

    def make(variant):
        config = tiny_config(**VARIANTS[variant])
        return record(config, random_params(config), random_batch(config))

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_of_other_models(recorded, tmp_path, capsys, variant):
    arrays = recorded(variant)
    np.savez(tmp_path / "model.npz", **arrays)
    assert main([str(tmp_path / "model.npz")]) == 0
    printed = capsys.readouterr().out
    expected = [name for name in arrays if name.split("/")[0] not in ("param", "meta", "in")]
    for name in expected:
        assert name in printed
    assert "FAIL" not in printed


@pytest.mark.parametrize("bad", [1e-4, np.nan])
def test_one_number_off(recorded, tmp_path, capsys, bad):
    arrays = recorded("dynamic_attention_pretraining_features")
    arrays["out/seq_relationship_score"][2, 1] += bad
    np.savez(tmp_path / "off.npz", **arrays)
    assert main([str(tmp_path / "off.npz"), "--failures_only"]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert len(rows) == 1
    assert "out/seq_relationship_score" in rows[0]


def test_one_shape_off(recorded, tmp_path, capsys):
    arrays = recorded("dynamic_attention_pretraining_features")
    arrays["inter/pooled_text"] = arrays["inter/pooled_text"][:, :-1]
    np.savez(tmp_path / "off.npz", **arrays)
    assert main([str(tmp_path / "off.npz"), "--failures_only"]) == 1
    assert "inter/pooled_text: shape (4, 20), reference (4, 19)" in capsys.readouterr().out


class Opener:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def spoil_nothing_to_compare(arrays, path):
    np.savez(path, **{k: v for k, v in arrays.items() if k.startswith(("param/", "meta/"))})


def spoil_no_parameters(arrays, path):
    np.savez(path, **{k: v for k, v in arrays.items() if not k.startswith("param/")})


def spoil_missing_parameter(arrays, path):
    del arrays["param/bert.t_pooler.dense.bias"]
    np.savez(path, **arrays)


def spoil_truncated(arrays, path):
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:-500])


def spoil_pickle(arrays, path):
    hostile = np.empty(1, object)
    hostile[0] = Opener(path.with_name("opened"))
    assert b"mkdir" in pickle.dumps(hostile)
    np.savez(path, **arrays, hostile=hostile, allow_pickle=True)


def spoil_settings(arrays, path):
    settings = json.loads(str(arrays["meta/config_json"])) | {"hidden_sise": 3}
    np.savez(path, **arrays | {"meta/config_json": np.array(json.dumps(settings))})


def spoil_inputs(arrays, path):
    del arrays["in/boxes"]
    np.savez(path, **arrays)


def spoil_unknown_output(arrays, path):
    np.savez(path, **arrays, **{"out/vil_predicton": np.zeros((4, 11), np.float32)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing_to_compare, "holds nothing to compare"),
        (spoil_no_parameters, "holds no param/"),
        (spoil_missing_parameter, "bert.t_pooler.dense.bias"),
        (spoil_truncated, "not a readable .npz"),
        (spoil_pickle, "not a readable .npz of plain arrays"),
        (spoil_inputs, "holds outputs, but not in/boxes"),
        (spoil_unknown_output, "out/vil_predicton: no such output"),
        (spoil_settings, "did you mean 'hidden_size'"),
    ],
)
def test_unusable_file(recorded, tmp_path, capsys, spoil, message):
    path = tmp_path / "spoilt.npz"
    spoil(recorded("dynamic_attention_pretraining_features"), path)
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert not path.with_name("opened").exists()


def test_missing_file(tmp_path, capsys):
    assert main([str(tmp_path / "none.npz")]) == 1
    assert "none.npz" in capsys.readouterr().err


def test_relative_error_is_of_the_largest_value():
    check = relative("x", [1.0, 100.0], np.array([1.001, 100.0]), 1e-4)
    assert check.error == pytest.approx(1e-5)
    assert check.ok
    assert relative("zeros", [1e-3], np.zeros(1)).error == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["bv_vit_tiny.npz", "siglip_tiny.npz"])
@pytest.mark.parametrize("flags", [[], ["--scan_layers", "--remat", "full"]])
def test_vision_transformers_equal_big_visions(shared_dir, capsys, name, flags):
    path = shared_dir / "fixtures" / name
    assert main([str(path), *flags]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    if name.startswith("siglip"):
        with np.load(path, allow_pickle=False) as archive:
            kinds = ("out", "loss", "grad", "old_expect")
            stored = [n for n in archive.files if n.split("/")[0] in kinds]
            stored += [f"grad_norm/sigmoid/{n}" for n in archive["grad_norm_names"]]
        assert len(stored) == 117
        compared = {line.split()[-1] for line in printed.splitlines() if " ok " in line}
        assert compared == set(stored)


def test_two_towers_of_another_form(tmp_path, capsys):
    """A linear map behind pictures, other pools; and an array that is not known is named."""
    config = TwoTowerConfig(
        ViTConfig(8, 1, 2, 12, image_size=(8, 4), patch_size=4, pool="mean", num_classes=6),
        TextTowerConfig(6, 1, 3, 10, vocab_size=9, max_tokens=3, pool="mean", out_dim=6),
        bias=None,
    )
    init = jax.jit(two_tower.init_params, static_argnums=0)
    params = nn.unbox(init(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    images, tokens = (
        rng.normal(size=(2, 8, 4, 3)).astype(np.float32),
        np.array([[1, 2, 8], [0] * 3]),
    )
    vectors, _ = jax.jit(TwoTower(config).apply)({"params": params}, images, tokens)
    facts = dict(image=[8, 4], img=dict(pool_type="gap"), txt=dict(pool_type="gap"))
    arrays = {f"param/{k}": v for k, v in to_big_vision(config, params).items()}
    arrays |= {"in/image": images, "in/text": tokens, "config_json": np.array(json.dumps(facts))}
    arrays |= {"out/zimg": vectors.image, "out/ztxt": vectors.text}
    np.savez(tmp_path / "towers.npz", **arrays)
    assert main([str(tmp_path / "towers.npz")]) == 0
    assert "2 comparisons, 0 beyond" in capsys.readouterr().out
    np.savez(tmp_path / "towers.npz", **arrays, **{"out/zing": vectors.image})
    assert main([str(tmp_path / "towers.npz")]) == 1
    assert "towers.npz: out/zing: no such output" in capsys.readouterr().err


def test_captioners_equal_big_visions(shared_dir, capsys):
    """Also texts written greedily and with beams, the ranking of a list, and a training."""
    path = shared_dir / "fixtures" / "cappa_tiny.npz"
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    with np.load(path, allow_pickle=False) as archive:
        kinds = ("out", "loss", "grad", "train")
        stored = {n for n in archive.files if n.split("/")[0] in kinds}
        for variant in ("bias", "nobias"):
            stored |= {f"grad_norm/{variant}/{n}" for n in archive[f"grad_norm_names/{variant}"]}
    compared = {line.split()[-1] for line in printed.splitlines() if " ok " in line}
    assert compared == stored | {"scan_param", "ranking"}


@pytest.mark.parametrize("name", ["mammut_tiny.npz", "mammut_nomlp_tiny.npz"])
def test_mammut_equals_open_clips(shared_dir, tmp_path, capsys, name):
    """Both passes and losses; of one file also gradients, and texts written with the cache."""
    path = shared_dir / "fixtures" / name
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    if "nomlp" in name:  # compiling its eight layers again would take longer than all the rest
        arrays = {k: v for k, v in arrays.items() if "grad" not in k and "greedy" not in k}
        path = tmp_path / name
        np.savez(path, **arrays)
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    stored = {n for n in arrays if n.split("/")[0] in ("out", "grad")}
    stored |= {f"grad_norm/{n}" for n in arrays.get("grad_norm_names", ())}
    compared = {line.split()[-1] for line in printed.splitlines() if " ok " in line}
    assert compared == stored


def test_recorded_arrays_of_detectors(shared_dir, capsys):
    """All groups: parts, and a small detector end to end on a larger canvas than recorded."""
    path = shared_dir / "fixtures/pixels.npz"
    assert main([str(path)]) == 0
    printed = capsys.readouterr()
    with np.load(path) as arrays:
        given = ("ra__feat", "ra__rois", "lvl__boxes", "box__src", "box__deltas", "box__gt")
        given += ("nms__boxes", "nms__scores", "nms__tie_boxes", "sel__boxes", "sel__probs")
        given += ("size__in_hw", "resize__in", "resize__fx", "pool__in", "e2e__rgb_image")
        elsewhere = ("e2e_sd__", "cnet__", "ndet__", "mbv2__")
        outputs = {n for n in arrays.files if n not in given and not n.startswith(elsewhere)}
    assert outputs == {n for n in outputs if f" {n}" in printed.out}
    assert "12 arrays of cnet, ndet, mbv2 are not compared" in printed.err


def test_detectors_arrays_that_are_off(tmp_path, capsys):
    boxes = np.array([[0, 0, 110, 110], [0, 0, 111, 111]], np.float32)
    for levels, code in (([2, 3], 0), ([3, 3], 1)):
        arrays = {"lvl__boxes": boxes, "lvl__legacy_plus1": np.array(levels, np.int32)}
        np.savez(tmp_path / "a.npz", **arrays)
        assert main([str(tmp_path / "a.npz")]) == code
    np.savez(tmp_path / "a.npz", lvl__boxes=boxes, lvl__other=boxes)
    assert main([str(tmp_path / "a.npz")]) == 1
    assert "other: no such output of a detector's part" in capsys.readouterr().err
