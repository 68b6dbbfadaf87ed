"""big_vision's files in and out: layouts, the report, and what is refused."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert import big_vision
from twelve_in_one.models import vit
from twelve_in_one.models.vit import ViTConfig

CONFIG = ViTConfig(
    12,
    2,
    3,
    20,
    image_size=(8, 8),
    patch_size=2,
    pool="class",
    class_token=True,
    num_classes=5,
    representation=True,
)


def _params(config: ViTConfig):
    rng = np.random.default_rng(0)
    shapes = nn.unbox(vit.abstract_params(config))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(pool="attention", class_token=False, representation=False),
        dict(pool="mean", class_token=False, representation=False, num_classes=0),
        dict(image_size=(4, 10)),
    ],
)
def test_there_and_back_is_bit_for_bit(fields):
    config = dataclasses.replace(CONFIG, **fields)
    params = _params(config)
    theirs = big_vision.to_big_vision(config, params)
    loaded = big_vision.from_big_vision(theirs, image_size=config.image_size)
    assert loaded.config == config
    assert loaded.report.ok and not loaded.report.unused
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_files_of_parameters_and_of_training_states_are_read(tmp_path, prefix):
    theirs = big_vision.to_big_vision(CONFIG, _params(CONFIG))
    others = {"opt/step": np.int32(7)} if prefix else {}
    np.savez(tmp_path / "vit.npz", **others, **{prefix + k: v for k, v in theirs.items()})
    loaded = big_vision.from_big_vision(big_vision.read_npz(tmp_path / "vit.npz"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, _params(CONFIG))


def test_bfloat16_is_read_as_numpy_saves_it(tmp_path):
    theirs = big_vision.to_big_vision(CONFIG, _params(CONFIG))
    half = {name: np.asarray(jnp.asarray(v, jnp.bfloat16)) for name, v in theirs.items()}
    np.savez(tmp_path / "vit.npz", **half)
    read = big_vision.read_npz(tmp_path / "vit.npz")
    assert big_vision.from_big_vision(read).config == CONFIG
    np.testing.assert_array_equal(read["head/kernel"], half["head/kernel"])


def test_image_towers_are_found_below_their_prefix():
    theirs = big_vision.to_big_vision(CONFIG, _params(CONFIG))
    both = {f"img/{k}": v for k, v in theirs.items()} | {"txt/head/bias": np.zeros(3), "t": 1.0}
    loaded = big_vision.from_big_vision(both, prefix="img/")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, _params(CONFIG))


def test_every_entry_is_accounted_for():
    theirs = big_vision.to_big_vision(CONFIG, _params(CONFIG))
    norm = "Transformer/encoderblock_1/LayerNorm_0/scale"
    theirs["Transformer/encoderblock_1/LayerNorm_0/scales"] = theirs.pop(norm)
    theirs["Transformer/encoder_norm/bias"] = np.zeros(13)
    with pytest.raises(StateDictError) as caught:
        big_vision.from_big_vision(theirs)
    report = caught.value.report
    assert report.missing == (norm,)
    assert report.nearest[norm] == f"{norm}s"
    assert report.unexpected == (f"{norm}s",)
    assert report.wrong_shape == (("Transformer/encoder_norm/bias", "(13,)", "(12,)"),)


def test_what_another_pooling_reads_is_known_and_unused():
    theirs = big_vision.to_big_vision(CONFIG, _params(CONFIG))
    loaded = big_vision.from_big_vision(
        theirs, pool="mean", class_token=False, representation=False
    )
    assert set(loaded.report.unused) == {"cls", "pre_logits/kernel", "pre_logits/bias"}


def test_another_image_size_resizes_the_positions_and_says_so():
    theirs = big_vision.to_big_vision(CONFIG, _params(CONFIG))
    loaded = big_vision.from_big_vision(theirs, image_size=(6, 12))
    assert loaded.config.grid == (3, 6)
    assert loaded.report.notes == ("positions resized from 4 x 4 to 3 x 6 patches",)
    table = theirs["pos_embedding"][0].reshape(4, 4, -1)
    resized = loaded.params["position"].reshape(3, 6, -1)
    np.testing.assert_array_equal(resized[0, 0], table[0, 0])
    np.testing.assert_array_equal(resized[-1, -1], table[-1, -1])


def test_positions_of_no_square_need_the_image_size():
    oblong = dataclasses.replace(CONFIG, image_size=(4, 10))
    theirs = big_vision.to_big_vision(oblong, _params(oblong))
    with pytest.raises(ValueError, match="10 positions are no square: say image_size"):
        big_vision.from_big_vision(theirs)
    with pytest.raises(ValueError, match=r"cannot be resized to \(3, 3\)"):
        big_vision.from_big_vision(theirs, image_size=(6, 6))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK\x03\x04 cut short", "not a readable"), (b"no zip at all", "not a readable")],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content, message):
    (tmp_path / "vit.npz").write_bytes(content)
    with pytest.raises(ValueError, match=f"vit.npz: {message}"):
        big_vision.read_npz(tmp_path / "vit.npz")


def test_pickles_in_a_file_are_not_executed(tmp_path):
    np.savez(tmp_path / "vit.npz", embedding=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="vit.npz: not a readable"):
        big_vision.read_npz(tmp_path / "vit.npz")


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="not a ViT of big_vision: there is no embedding/kernel"):
        big_vision.from_big_vision({"head/kernel": np.zeros((3, 4))})


def test_models_that_big_vision_cannot_hold_are_refused():
    config = dataclasses.replace(CONFIG, num_registers=2)
    with pytest.raises(ValueError, match="no registers"):
        big_vision.to_big_vision(config, _params(config))
