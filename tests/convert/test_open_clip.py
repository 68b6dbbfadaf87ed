"""open_clip's MaMMUT in and out, and image encoders of CLIP. Numbers are in the parity tests."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints import weights
from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import encoders, files, mammut, open_clip
from twelve_in_one.convert.__main__ import main
from twelve_in_one.models.mammut import abstract_params
from twelve_in_one.models.mammut_sizes import CLIP_MEAN, open_form
from twelve_in_one.models.vit import ViT

# Four layers with cross-attention behind the first and the third.
CONFIG = open_form(
    (12, 2, 3),
    (10, 4, 2),
    False,
    dict(image_size=(8, 8), patch_size=4, mlp_dim=20),
    dict(mlp_dim=14, cross_every=2, max_tokens=5, vocab_size=9),
    eos_id=8,
    start_id=7,
)
SECOND = dataclasses.replace(
    CONFIG, decoder=dataclasses.replace(CONFIG.decoder, cross_mlp="second")
)
SETTINGS = mammut.settings_of(CONFIG)


def scrambled(config):
    rng = np.random.default_rng(0)
    shapes = nn.unbox(abstract_params(config))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return scrambled(CONFIG)


@pytest.fixture(scope="module")
def theirs(params):
    return mammut.to_open_clip(CONFIG, params)


def test_names_are_open_clips(theirs):
    assert theirs["text.resblocks.1.attn.in_proj_weight"].shape == (30, 10)
    assert theirs["text.cross_attn.1.ln_1_kv.weight"].shape == (10,)
    assert theirs["map_viz2txt_kv"].shape == (12, 10)
    assert theirs["visual.positional_embedding"].shape == (5, 12)
    assert theirs["logit_scale"].shape == ()
    assert "text.cross_attn.2.ln_1.weight" not in theirs
    missing = [i for i in range(4) if f"text.resblocks.{i}.mlp.c_fc.weight" not in theirs]
    assert missing == [0, 2]
    text, vision = (SETTINGS["model_cfg"][f"{part}_cfg"] for part in ("text", "vision"))
    assert (text["cross_attn_ratio"], text["has_mlp"], text["context_length"]) == (2, False, 5)
    assert (vision["head_width"], vision["pool_type"]) == (4, "avg_all")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_there_and_back(theirs, params, tmp_path, suffix):
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        nested = {f"module.{k}": torch.from_numpy(np.copy(v)) for k, v in theirs.items()}
        torch.save({"epoch": 3, "state_dict": nested}, tmp_path / "model.pt")
        (tmp_path / open_clip.CONFIG_FILE).write_text(json.dumps(SETTINGS))
        path = tmp_path / "model.pt"
    else:
        files.write_folder(tmp_path / "folder", theirs.items(), {})
        path = tmp_path / "folder" / "model.safetensors"
        (path.parent / open_clip.CONFIG_FILE).write_text(json.dumps(SETTINGS))
    tensors, settings = open_clip.read_tensors(path)
    loaded = mammut.from_open_clip(tensors, settings)
    assert loaded.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert set(loaded.report.loaded) == set(theirs)


def test_sizes_without_a_config(theirs):
    loaded = mammut.from_open_clip(theirs)
    # What tensors do not tell: here, widths below 64 have a head.
    heads = (loaded.config.encoder.num_heads, loaded.config.decoder.num_heads)
    assert heads == (1, 1)
    one = dataclasses.replace(
        CONFIG,
        encoder=dataclasses.replace(CONFIG.encoder, num_heads=1),
        decoder=dataclasses.replace(CONFIG.decoder, num_heads=1),
    )
    assert loaded.config == one
    assert loaded.report.notes == (
        "no open_clip_config.json: 1 heads in the image encoder, activation gelu",
        "no open_clip_config.json: 1 heads in the decoder",
    )


def test_second_feed_forward_blocks_and_longer_tables():
    theirs = mammut.to_open_clip(SECOND, scrambled(SECOND))
    assert "text.resblocks.0.mlp.c_fc.weight" in theirs
    table = "text.token_embedding.weight"
    loaded = mammut.from_open_clip(
        theirs | {table: np.pad(theirs[table], ((0, 4), (0, 0)))},
        mammut.settings_of(SECOND),
        image_size=(12, 16),
    )
    assert loaded.config.decoder == SECOND.decoder
    assert loaded.config.encoder.grid == (3, 4)
    assert loaded.report.notes == (
        f"left out 4 rows of {table} beyond the vocabulary",
        "positions resized from 2 x 2 to 3 x 4 patches",
    )
    np.testing.assert_array_equal(loaded.params["decoder"]["token"]["embedding"], theirs[table])


def test_every_entry_is_accounted_for(theirs):
    wrong = dict(theirs) | {"text.cross_attn.0.ls_1.gamma": np.zeros(10, np.float32)}
    lost = "text.resblocks.3.mlp.c_proj.bias"
    del wrong[lost]
    wrong["text.ln_final.weight"] = np.zeros(11, np.float32)
    with pytest.raises(StateDictError) as caught:
        mammut.from_open_clip(wrong, SETTINGS)
    report = caught.value.report
    assert report.missing == (lost,)
    assert report.unexpected == ("text.cross_attn.0.ls_1.gamma",)
    assert [name for name, *_ in report.wrong_shape] == ["text.ln_final.weight"]
    with pytest.raises(ValueError, match=r"not a model of open_clip: there is no map_viz2txt_kv"):
        mammut.from_open_clip({"visual.proj": np.zeros(3)})


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("text_cfg", "cross_attn_ratio", 4, "ratio 4 of the config is not that of the file, .* 2"),
        ("vision_cfg", "pool_type", "tok", "mean over all tokens: avg_all"),
        ("vision_cfg", "pool_type", "max", "pool_type 'max' is none of tok, avg, avg_all"),
    ],
)
def test_configs_of_other_models_are_refused(theirs, part, field, value, message):
    model = SETTINGS["model_cfg"]
    settings = SETTINGS | {"model_cfg": model | {part: model[part] | {field: value}}}
    with pytest.raises(ValueError, match=message):
        mammut.from_open_clip(theirs, settings)


def test_models_of_other_forms_are_refused(params):
    for config in (
        dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, pool="mean")),
        dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, logits_bias=True)),
    ):
        with pytest.raises(ValueError, match="not of the form of open_clip's MaMMUT"):
            mammut.to_open_clip(config, params)


@pytest.mark.parametrize("kind", ["mammut", "clip"])
def test_an_image_encoder_to_begin_with(theirs, params, tmp_path, kind):
    """MaMMUT's own, and a CLIP's, whose vector is that of the class token, normed as all are."""
    vision = {k: v for k, v in theirs.items() if k.startswith("visual.") or kind == "mammut"}
    files.write_folder(tmp_path / "folder", vision.items(), {})
    path = tmp_path / "folder" / "model.safetensors"
    if kind == "clip":
        vision_cfg = dict(head_width=4, image_size=8)
        (path.parent / open_clip.CONFIG_FILE).write_text(
            json.dumps({"model_cfg": {"quick_gelu": True, "vision_cfg": vision_cfg}})
        )
    else:
        (path.parent / open_clip.CONFIG_FILE).write_text(json.dumps(SETTINGS))
    system, read, report = encoders.read(path)
    expected = dataclasses.replace(CONFIG.encoder, patch_bias=True)
    if kind == "clip":
        expected = dataclasses.replace(
            expected, pool="class", norm_pooled=False, activation="quick_gelu"
        )
    assert system.config.encoder == expected
    assert report.unused == ("proj",)
    encoder = params["encoder"]
    originals = flatten(encoder)
    for name, ours in flatten(read["encoder"]).items():
        if name[0] != "patch_embedding":
            np.testing.assert_array_equal(ours, originals[name])
    # Pixels in -1 ... 1 are folded into the first map.
    pixels = np.random.default_rng(1).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    std = np.array(CONFIG.pixel_std, np.float32)
    as_trained = (pixels - np.array(CLIP_MEAN, np.float32)) / std
    plain = dataclasses.replace(expected, patch_bias=False)

    @jax.jit
    def run(first, second):
        return (
            ViT(expected).apply({"params": first}, 2 * pixels - 1)[1]["pooled"],
            ViT(plain).apply({"params": second}, as_trained)[1]["pooled"],
        )

    np.testing.assert_allclose(*run(read["encoder"], encoder), rtol=1e-4, atol=1e-4)


def test_the_command_reads_and_writes_mammut(theirs, params, tmp_path, capsys):
    files.write_folder(tmp_path / "open", theirs.items(), SETTINGS, prefix=open_clip.PREFIX)
    assert main([str(tmp_path / x) for x in ("open", "ours")]) == 0
    stored, system, _ = weights.load_params(tmp_path / "ours")
    assert system.name == "mammut"
    assert mammut.settings_of(system.config) == SETTINGS
    jax.tree.map(np.testing.assert_array_equal, stored, params)
    assert main([*(str(tmp_path / x) for x in ("ours", "back")), "--to", "safetensors"]) == 0
    tensors, settings = open_clip.read_tensors(tmp_path / "back")
    assert settings == SETTINGS
    for name, array in theirs.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)
    capsys.readouterr()
    rest = {k: v for k, v in theirs.items() if k != "text.ln_final.bias"}
    files.write_folder(tmp_path / "lost", rest.items(), SETTINGS, prefix=open_clip.PREFIX)
    assert main([str(tmp_path / x) for x in ("lost", "nothing")]) == 1
    assert "text.ln_final.bias" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()
