"""ONNX files of image towers, made here as exporters make them from recorded weights."""

import json

import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert import hf_vision, onnx_vision

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

FAMILIES = ("vit", "siglip", "clip", "dinov2", "dinov2_with_registers")
_ACTIVATIONS = {"gelu": "Erf", "gelu_pytorch_tanh": "Tanh", "quick_gelu": "Sigmoid"}


@pytest.fixture(scope="module")
def recorded(hf_recorded):
    return hf_recorded("hf_vision")


@pytest.fixture(scope="module")
def model(recorded):
    def get(name):
        prefix = f"{name}/param/"
        tensors = {k[len(prefix) :]: v for k, v in recorded.items() if k.startswith(prefix)}
        return json.loads(str(recorded[f"{name}/config_json"])), tensors

    return get


def constant(name, value):
    tensor = numpy_helper.from_array(np.asarray(value), name)
    return helper.make_node("Constant", [], [name], value=tensor)


def export(path, settings, tensors, *, prefix="tower.", heads=True, taken_apart=True, extra=()):
    """Weights of linear maps are transposed and lose their names, as with `torch.onnx.export`."""
    nodes = [constant("eps", np.float32(settings["layer_norm_eps"]))]
    initialisers = []
    for number, (name, array) in enumerate(tensors.items()):
        module = prefix + name.removesuffix(".weight")
        if name == "embeddings.mask_token" or name == "embeddings.position_ids":
            continue
        if (
            name.endswith(".weight")
            and array.ndim == 2
            and f"{module}.bias" in {prefix + n for n in tensors}
        ):
            weight = f"onnx::MatMul_{number}"
            initialisers.append((weight, array.T))
            nodes.append(helper.make_node("MatMul", [f"{module}/x", weight], [f"{module}/MatMul"]))
            added = [f"{module}.bias", f"{module}/MatMul"]
            nodes.append(helper.make_node("Add", added, [f"{module}/Add"]))
            if heads and module.endswith(("key", "k_proj")):
                size = settings["hidden_size"] // settings["num_attention_heads"]
                nodes += [constant(f"{module}/size", np.int64([size]))]
                shape = [f"{module}/rows", f"{module}/tokens", f"{module}/heads", f"{module}/size"]
                nodes.append(helper.make_node("Concat", shape, [f"{module}/shape"], axis=0))
                pair = [f"{module}/Add", f"{module}/shape"]
                nodes.append(helper.make_node("Reshape", pair, [f"{module}/Reshape"]))
            continue
        initialisers.append((prefix + name, array))
    for i in range(settings["num_hidden_layers"]):
        act = _ACTIVATIONS[settings["hidden_act"]]
        nodes.append(helper.make_node(act, [f"act_{i}/x"], [f"act_{i}"]))
    if settings["hidden_act"] == "quick_gelu":
        nodes.append(constant("factor", np.float32(1.702)))
    if taken_apart:
        nodes.append(helper.make_node("Add", ["variance", "eps"], ["norm/Add"]))
        nodes.append(helper.make_node("Sqrt", ["norm/Add"], ["norm/Sqrt"]))
    else:
        norm = helper.make_node("LayerNormalization", ["x", "scale"], ["norm"])
        norm.attribute.append(helper.make_attribute("epsilon", settings["layer_norm_eps"]))
        nodes.append(norm)
    for name, array in extra:
        initialisers.append((name, array))
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in initialisers]
    graph = helper.make_graph(nodes, "tower", [], [], initializer=tensors)
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("taken_apart", [True, False])
def test_parameters_are_those_of_the_layout(model, tmp_path, name, taken_apart):
    settings, tensors = model(name)
    settings = dict(layer_norm_eps=1e-12) | settings
    path = export(tmp_path / "tower.onnx", settings, tensors, taken_apart=taken_apart)
    loaded = onnx_vision.read(path)
    expected = hf_vision.from_hf(settings, tensors)
    assert loaded.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert set(loaded.report.loaded) == {
        f"tower.{n}" for n in tensors if n != "embeddings.mask_token"
    } - {"tower.embeddings.position_ids"}


def test_positions_without_a_name_are_found(model, tmp_path):
    """Also where the class token's row has been cut off."""
    settings, tensors = model("dinov2")
    table = tensors["embeddings.position_embeddings"]
    rest = {k: v for k, v in tensors.items() if k != "embeddings.position_embeddings"}
    expected = hf_vision.from_hf(settings, tensors)
    for cut in (0, 1):
        parts = [table[:, :cut], table[:, cut:]][1 - cut :]
        extra = [(f"onnx::Concat_{900 + i}", part) for i, part in enumerate(parts)]
        path = export(tmp_path / "tower.onnx", settings, rest, extra=extra)
        loaded = onnx_vision.read(path)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert "positions: onnx::Concat_900 and onnx::Concat_901, 1 + 4 rows" in loaded.report.notes


def test_a_projection_without_bias_becomes_the_classifier(model, tmp_path):
    settings, tensors = model("clip")
    weight = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    path = export(tmp_path / "tower.onnx", settings, tensors)
    file = onnx.load(path)
    file.graph.initializer.append(numpy_helper.from_array(weight, "onnx::MatMul_999"))
    file.graph.node.append(helper.make_node("MatMul", ["pooled", "onnx::MatMul_999"], ["out"]))
    onnx.save(file, path)
    loaded = onnx_vision.read(path, image_size=(24, 40))
    assert loaded.config.num_classes == 7 and loaded.config.grid == (3, 5)
    np.testing.assert_array_equal(loaded.params["classifier"]["kernel"], weight)
    assert not loaded.params["classifier"]["bias"].any()
    assert "onnx::MatMul_999" in loaded.report.loaded


def test_every_entry_is_accounted_for(model, tmp_path):
    settings, tensors = model("dinov2")
    extra = [
        ("decoder.bn.weight", np.ones(3, np.float32)),
        ("tower.extra", np.ones(3, np.float32)),
        ("onnx::Add_7", np.ones((12, 5, 3), np.float32)),
        ("onnx::Slice_8", np.int64([1])),
    ]
    rest = {k: v for k, v in tensors.items() if k != "layernorm.bias"}
    path = export(tmp_path / "tower.onnx", settings, rest, heads=False, extra=extra)
    with pytest.raises(StateDictError) as caught:
        onnx_vision.read(path, num_heads=3)
    assert caught.value.report.missing == ("tower.layernorm.bias",)
    assert caught.value.report.unexpected == ("tower.extra", "onnx::Add_7")
    path = export(tmp_path / "tower.onnx", settings, tensors, heads=False, extra=extra)
    known = ("tower.extra", "onnx::Add_7")
    loaded = onnx_vision.read(path, num_heads=3, allow_unexpected=known)
    assert set(loaded.report.unused) == {*known, "decoder.bn.weight", "onnx::Slice_8"}


def test_what_the_graph_does_not_say_is_told(model, tmp_path):
    settings, tensors = model("dinov2")
    path = export(tmp_path / "tower.onnx", settings, tensors, heads=False)
    with pytest.raises(
        ValueError, match="tower.onnx: the graph does not say how many heads.* num_heads"
    ):
        onnx_vision.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xff no protocol buffer", "not a readable ONNX file"), (b"", "holds no initialisers")],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content, message):
    (tmp_path / "tower.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=f"tower.onnx: .*{message}"):
        onnx_vision.read(tmp_path / "tower.onnx")


def test_other_models_are_refused(tmp_path):
    tensor = numpy_helper.from_array(np.ones((3, 3), np.float32), "fc.weight")
    graph = helper.make_graph([], "g", [], [], initializer=[tensor])
    onnx.save(helper.make_model(graph), tmp_path / "fc.onnx")
    with pytest.raises(ValueError, match="no image tower under the names of vit, clip.*fc.weight"):
        onnx_vision.read(tmp_path / "fc.onnx")


def test_two_weights_of_one_bias_are_refused(model, tmp_path):
    settings, tensors = model("vit")
    name = "encoder.layer.0.output.dense.weight"
    extra = [(f"tower.{name}", tensors[name])]
    path = export(tmp_path / "tower.onnx", settings, tensors, extra=extra)
    with pytest.raises(ValueError, match=f"there already is tower.{name}"):
        onnx_vision.read(path)
