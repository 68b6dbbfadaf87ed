"""Caffe's own file of bottom-up attention, written byte by byte from the ports' weights."""

import struct

import numpy as np
import pytest
from reference.c4_detector import random_state

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import faster_rcnn
from twelve_in_one.data.formats import caffe_file
from twelve_in_one.models.detection.c4 import BestOfClasses

COUNT = 3.0  # of terms in stored statistics


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(array, old=False):
    array = np.asarray(array, np.float32)
    if old:
        sides = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(varint(i << 3) + varint(n) for i, n in enumerate(sides, start=1))
    else:
        shape = field(7, field(1, b"".join(map(varint, array.shape))))
    return field(5, array.tobytes()) + shape


def layer(name, arrays):
    blobs = b"".join(field(7, blob(array)) for array in arrays)
    return field(100, field(1, name.encode()) + field(2, b"Kind") + varint(10 << 3) + b"\1" + blobs)


def layers_of(state):
    """{Caffe's name: arrays} of the ports' weights."""
    layers = {"data": []}
    for name, value in state.items():
        parts = name.split(".")
        if name.endswith("norm.weight"):
            norm = {
                n: state[name.removesuffix("weight") + n] for n in ("running_mean", "running_var")
            }
            where = parts[:-2]
            if where[1] == "stem":
                bn, scale = "bn_conv1", "scale_conv1"
            else:
                place = block_name(where)
                bn, scale = f"bn{place}", f"scale{place}"
            layers[bn] = [norm["running_mean"] * COUNT, norm["running_var"] * COUNT, [COUNT]]
            layers[scale] = [value, state[name.removesuffix("weight") + "bias"]]
        elif parts[1] == "stem" and parts[-1] == "weight":
            layers["conv1"] = [value]
        elif parts[1].startswith("res") and value.ndim == 4:
            layers[f"res{block_name(parts[:-1])}"] = [value]
    heads = {n: [state[f"{n}.{leaf}"] for leaf in ("weight", "bias")] for n in plain(state)}
    rpn, box = "proposal_generator.rpn_head.", "roi_heads.box_predictor."
    rng = np.random.default_rng(0)
    background = [rng.normal(size=a.shape) for a in heads[f"{rpn}objectness_logits"]]
    layers["rpn_conv/3x3"] = heads[f"{rpn}conv"]
    layers["rpn_cls_score"] = [
        np.concatenate([b, b + a])
        for b, a in zip(background, heads[f"{rpn}objectness_logits"], strict=True)
    ]
    layers["rpn_bbox_pred"] = heads[f"{rpn}anchor_deltas"]
    layers["cls_score"] = [np.roll(a, 1, axis=0) for a in heads[f"{box}cls_score"]]
    layers["bbox_pred"] = [np.concatenate([a[:4] * 0, a]) for a in heads[f"{box}bbox_pred"]]
    layers["attr_score"] = heads[f"{box}attr_score"]
    return layers


def plain(state):
    return {n.rpartition(".")[0] for n in state if n.endswith("bias") and ".norm." not in n}


def block_name(parts):
    """Such as 3b1_branch2a; blocks of long stages are numbered, those of others lettered."""
    stage, number, module = parts[1].removeprefix("res"), int(parts[2]), parts[3]
    branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[module]
    block = "a" if number == 0 else f"b{number}" if stage == "3" else "abc"[number]
    return f"{stage}{block}_branch{branch}"


@pytest.fixture(scope="module")
def state():
    return {n: v for n, v in random_state().items() if "cell_anchors" not in n and "num_b" not in n}


def write(path, layers):
    net = field(1, b"VGG") + b"".join(layer(name, arrays) for name, arrays in layers.items())
    path.write_bytes(net)
    return path


def test_gives_the_weights_of_the_ports(state, tmp_path):
    path = write(tmp_path / "resnet101_faster_rcnn_final.caffemodel", layers_of(state))
    loaded = faster_rcnn.read(path, "caffe-10-100")
    _, expected, _ = faster_rcnn.from_state_dict("c4", state)
    ours, theirs = flatten(loaded.params), flatten(expected)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        # Differences and quotients of float32.
        np.testing.assert_allclose(ours[name], value, atol=2e-6 * max(np.abs(value).max(), 1))
    detector = loaded.detector
    assert detector.choice == BestOfClasses(10, 100) and detector.proposals.inclusive
    assert detector.resizing.size(480, 640) == (600, 800, 1.25)
    assert set(loaded.report.unused) == {
        f"roi_heads.box_predictor.attr_score.{leaf}" for leaf in ("weight", "bias")
    }


def test_files_of_the_other_kind(state, tmp_path):
    path = write(tmp_path / "a.caffemodel", layers_of(state))
    with pytest.raises(
        ValueError, match="a.caffemodel: a .caffemodel is used as caffe-36 or caffe-10"
    ):
        faster_rcnn.read(path, "c4")
    with pytest.raises(ValueError, match="a.pkl: a .caffemodel is used as caffe-36 .* need one"):
        faster_rcnn.read(tmp_path / "a.pkl", "caffe-36")


def test_layers_that_do_not_fit(state, tmp_path):
    layers = layers_of(state)
    layers["bn2a_branch1"].pop()
    with pytest.raises(ValueError, match="a.caffemodel: layer 'bn2a_branch1' has 2 arrays, not 3"):
        faster_rcnn.read(write(tmp_path / "a.caffemodel", layers), "caffe-36")
    layers = layers_of(state)
    layers["res2q_branch1"] = layers.pop("res2a_branch1")
    with pytest.raises(StateDictError) as error:
        faster_rcnn.read(write(tmp_path / "a.caffemodel", layers), "caffe-36")
    assert "backbone.res2.0.shortcut.weight" in error.value.report.missing


def test_old_shapes(tmp_path):
    path = tmp_path / "a.caffemodel"
    content = field(1, b"fc") + field(7, blob(np.arange(6.0).reshape(2, 3), old=True))
    path.write_bytes(field(100, content))
    (array,) = caffe_file.load(path)["fc"]
    np.testing.assert_array_equal(array.read(), np.arange(6.0).reshape(1, 1, 2, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ""),
        (b"<!doctype html>", ""),
        (field(100, field(1, b"x") + field(7, blob(np.ones(4))[:-3])), "bytes"),
        (field(100, field(7, field(5, b"1234") + field(7, field(1, varint(1 << 60))))), "in 4 byt"),
        (field(100, b"\x0b"), "a field of kind 3"),
        (field(100, b"\xff" * 30), "no whole number"),
        (field(2, b"x"), "first format: upgrade it"),
        (field(100, field(7, blob([1])) + field(7, field(8, struct.pack("<d", 1)))), "float64"),
        (2 * layer("a", [[1]]), "two layers 'a'"),
        (layer("a", [[1]])[:-2], "bytes at byte"),
    ],
)
def test_damaged_files(tmp_path, data, message):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"a.caffemodel is truncated or no .*{message}"):
        caffe_file.load(path)
