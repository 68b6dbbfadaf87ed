"""CapPa's files in and out, unrolled and scanned. Numbers are in the parity tests."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert import big_vision, cappa
from twelve_in_one.convert.cappa import CaptionerConfig
from twelve_in_one.models import text_decoder, vit
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.models.vit import ViTConfig

CONFIG = CaptionerConfig(
    ViTConfig(12, 2, 3, 20, image_size=(8, 8), patch_size=4),
    TextDecoderConfig(10, 3, 2, 14, vocab_size=9, max_tokens=5, encoder_dim=12, block_biases=False),
)


@pytest.fixture(scope="module")
def theirs():
    rng = np.random.default_rng(0)
    shapes = {
        "encoder": nn.unbox(vit.abstract_params(CONFIG.encoder)),
        "decoder": nn.unbox(text_decoder.abstract_params(CONFIG.decoder)),
    }
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return cappa.to_big_vision(CONFIG, params)


def test_there_and_back_is_bit_for_bit(theirs, tmp_path):
    assert theirs["pos_embedding_decoder"].shape == (1, 5, 10)
    assert theirs["decoder/EncDecBlock2/CrossAttn/value/kernel"].shape == (12, 2, 5)
    assert "decoder/EncDecBlock0/LayerNorm1/bias" not in theirs
    np.savez(tmp_path / "cappa.npz", **{f"params/{k}": v for k, v in theirs.items()})
    loaded = cappa.from_big_vision(big_vision.read_npz(tmp_path / "cappa.npz"))
    assert loaded.config == CONFIG
    again = cappa.to_big_vision(loaded.config, loaded.params)
    assert set(again) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_scanned_files_stack_the_decoder_on_axis_1(theirs):
    """Its blocks in a file of big_vision, the encoder's on axis 0."""
    scanned = {k: v for k, v in theirs.items() if "block_" not in k and "EncDecBlock" not in k}
    for first, many, axis, layers in (
        ("encoder/Transformer/encoderblock_0/", "encoder/Transformer/encoderblock/", 0, 2),
        ("decoder/EncDecBlock0/", "decoder/EncDecBlock/", 1, 3),
    ):
        for name in [k for k in theirs if k.startswith(first)]:
            parts = [theirs[name.replace("0/", f"{i}/", 1)] for i in range(layers)]
            scanned[many + name.removeprefix(first)] = np.stack(parts, axis)
    loaded = cappa.from_big_vision(scanned)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, cappa.from_big_vision(theirs).params)


def test_the_mask_token_is_left_out_and_said(theirs):
    name = "decoder/EmbedTargets/embedding"
    longer = theirs | {name: np.pad(theirs[name], ((0, 1), (0, 0)))}
    loaded = cappa.from_big_vision(longer)
    np.testing.assert_array_equal(loaded.params["decoder"]["token"]["embedding"], theirs[name])
    assert loaded.report.notes == (
        "left out 1 rows of decoder/EmbedTargets/embedding beyond the vocabulary (the mask)",
    )


def test_a_decoder_alone_and_other_picture_sizes(theirs):
    alone = {k: v for k, v in theirs.items() if not k.startswith("encoder/")}
    loaded = cappa.from_big_vision(alone)
    assert loaded.config == CONFIG._replace(encoder=None)
    assert set(cappa.to_big_vision(loaded.config, loaded.params)) == set(alone)
    larger = cappa.from_big_vision(theirs, image_size=(12, 16))
    assert larger.config.encoder.grid == (3, 4)
    assert larger.report.notes == ("positions resized from 2 x 2 to 3 x 4 patches",)


def test_every_entry_is_accounted_for(theirs):
    wrong = dict(theirs) | {"decoder/EncDecBlock0/LayerNorm4/scale": np.zeros(10)}
    lost = "decoder/EncDecBlock1/MLP/Dense_1/kernel"
    del wrong[lost]
    wrong["decoder/LayerNorm/scale"] = np.zeros(11)
    with pytest.raises(StateDictError) as caught:
        cappa.from_big_vision(wrong)
    report = caught.value.report
    assert report.missing == (lost,)
    assert report.unexpected == ("decoder/EncDecBlock0/LayerNorm4/scale",)
    assert [name for name, *_ in report.wrong_shape] == ["decoder/LayerNorm/scale"]
    with pytest.raises(ValueError, match="not a captioner of big_vision: there is no pos_emb"):
        cappa.from_big_vision({"embedding/kernel": np.zeros(3)})


@pytest.mark.parametrize("fields", [dict(tied_logits=True), dict(cross_every=2)])
def test_other_decoders_are_refused(fields):
    config = CONFIG._replace(decoder=dataclasses.replace(CONFIG.decoder, **fields))
    with pytest.raises(ValueError, match="CapPa's decoder has cross-attention in every block"):
        cappa.to_big_vision(config, {})
