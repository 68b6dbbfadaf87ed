"""Released weights of region detectors: every layout in, nothing of them executed."""

import math
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
from reference.when_used import when_used

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import detector_layouts, faster_rcnn
from twelve_in_one.models.detection import c4, fpn

torch = when_used("torch")


@pytest.fixture(scope="module")
def state(shared_dir):
    """Weights of a small detector under the names of the released file."""
    with np.load(shared_dir / "fixtures/pixels.npz") as arrays:
        prefix = "e2e_sd__"
        found = {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
    stored = {f"rpn.anchor_generator.cell_anchors.{i}": a for i, a in enumerate(fpn.anchors())}
    return found | stored


def saved(path, state, *, prefix="", **others):
    tensors = {prefix + name: torch.from_numpy(value) for name, value in state.items()}
    torch.save({"model": tensors, **others}, path)
    return path


def test_sizes_of_the_released_files():
    """Numbers of tensors and of values as the files' own loading logs and papers give them."""
    shapes = flatten(fpn.abstract_params(fpn.X152))
    table = detector_layouts.table("fpn", fpn.X152, shapes)
    names = {name for entry in table.values() for name in entry.names}
    assert len(names) + len(fpn.anchors()) == 810
    norms = sum(math.prod(leaf.shape) for path, leaf in shapes.items() if "body" in path[0])
    kernels = sum(
        math.prod(leaf.shape)
        for path, leaf in shapes.items()
        if path[0] == "body" and path[-1] == "kernel"
    )
    # Four vectors of a norm are one bias here.
    body = kernels + 4 * (norms - kernels)
    rest = sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path[0] != "body")
    anchors = sum(base.size for base in fpn.anchors())
    assert (body, body + rest + anchors) == (120_618_432, 206_374_224)
    head = fpn.BINS**2 * 512 * 2048 + 2048
    assert sum(math.prod(shapes["hidden_1", n].shape) for n in ("kernel", "bias")) == head

    shapes = flatten(c4.abstract_params(c4.R101))
    sizes = {path: math.prod(leaf.shape) for path, leaf in shapes.items()}
    biases = sum(
        n for path, n in sizes.items() if path[0] in ("body", "box_stage") and path[-1] == "bias"
    )
    attributes = 409_856 + 1_180_160 + 205_713
    assert sum(sizes.values()) + biases + attributes == 65_439_822


@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_of_the_released_code(state, tmp_path, prefix):
    path = saved(tmp_path / "detectron_model.pth", state, prefix=prefix, iteration=3)
    (tmp_path / "objects_vocab.txt").write_text("\n".join(f"thing {i},t" for i in range(10)))
    loaded = faster_rcnn.read(path, "x152")
    config, params, report = faster_rcnn.from_state_dict("fpn", state)
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.report == report and loaded.detector.config == config
    assert len(report.loaded) + len(report.unused) == len(state)
    assert {name.split(".")[2] for name in report.unused} == {"cell_anchors"}
    body = config.body
    assert (body.blocks, body.groups, config.num_classes) == ((1, 2, 2, 1), 4, 10)
    assert loaded.detector.name == f"x152-1-100-{faster_rcnn.fingerprint(params)}"
    assert loaded.detector.class_names[3] == "thing 3"
    script = faster_rcnn.read(path, "x152-script", dtype="bfloat16").detector
    assert script.clip == "padded" and script.name.endswith("-bfloat16")
    assert script.config.dtype == "bfloat16"


NORM = "backbone.body.layer2.0.bn1"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"rpn.anchor_generator.cell_anchors.1": np.zeros((3, 4), np.float32)},
            "cell_anchors.1 holds other anchors",
        ),
        ({f"{NORM}.running_var": np.full(16, -1, np.float32)}, f"not finite.*{NORM}.running_var"),
        ({f"{NORM}.weight": np.full(16, np.nan, np.float32)}, f"not finite.*{NORM}.weight"),
    ],
)
def test_damaged_numbers(state, tmp_path, entries, message):
    path = saved(tmp_path / "a.pth", state | entries)
    with pytest.raises(ValueError, match=f"a.pth: .*{message}"):
        faster_rcnn.read(path, "x152")


def test_entries_that_do_not_fit(state, tmp_path):
    entries = dict(state)
    del entries["backbone.fpn.fpn_inner2.bias"]
    entries["backbone.fpn.fpn_inner2.bais"] = state["backbone.fpn.fpn_inner2.bias"]
    entries[f"{NORM}.weight"] = np.ones(3, np.float32)
    # Groups that do not divide the width.
    entries["backbone.body.layer1.0.conv2.weight"] = np.ones((8, 3, 3, 3), np.float32)
    with pytest.raises(StateDictError) as error:
        faster_rcnn.read(saved(tmp_path / "a.pth", entries), "x152")
    report = error.value.report
    assert report.missing == ("backbone.fpn.fpn_inner2.bias",)
    assert report.unexpected == ("backbone.fpn.fpn_inner2.bais",)
    wrong = {name for names, _, _ in report.wrong_shape for name in names.split(" and ")}
    assert {f"{NORM}.weight", "backbone.body.layer1.0.conv2.weight"} <= wrong


@pytest.mark.parametrize(
    ("use", "message"),
    [("x153", "no detector 'x153': one of x152"), ("c4", "a.pth holds a pyramid's detector, c4")],
)
def test_wrong_use(state, tmp_path, use, message):
    with pytest.raises(ValueError, match=message):
        faster_rcnn.read(saved(tmp_path / "a.pth", state), use)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_nothing_is_executed(state, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    content = {"model": dict(state) | {"x": Hostile()}}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"a{suffix}.*mkdir.*refused"):
        faster_rcnn.read(path, "x152")
    assert not (tmp_path / "executed").exists()


def test_damaged_files(state, tmp_path):
    path = saved(tmp_path / "a.pth", state)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.pth is truncated"):
        faster_rcnn.read(path, "x152")
    path.write_bytes(b"<!doctype html><html>")
    with pytest.raises(ValueError, match=r"a\.pth is truncated or not a PyTorch"):
        faster_rcnn.read(path, "x152")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps([1]))
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        faster_rcnn.read(path, "x152")
    pickled = tmp_path / "a.pkl"
    pickled.write_bytes(pickle.dumps({"model": {"backbone": "text"}}))
    with pytest.raises(ValueError, match=r"a\.pkl: 'backbone' is a str, not an array"):
        faster_rcnn.read(pickled, "c4")
    pickled.write_bytes(pickle.dumps({"model": {"x": np.zeros(3)}}))
    with pytest.raises(ValueError, match=r"a\.pkl holds no known detector, c4 needs"):
        faster_rcnn.read(pickled, "c4")
    with pytest.raises(FileNotFoundError, match=r"b\.pth"):
        faster_rcnn.read(tmp_path / "b.pth", "x152")


def test_class_names_of_another_number(state, tmp_path):
    path = saved(tmp_path / "a.pth", state)
    with pytest.raises(ValueError, match=r"class_names: 2 names, the detector in .* knows 10"):
        faster_rcnn.read(path, "x152", class_names=["cat", "dog"])
