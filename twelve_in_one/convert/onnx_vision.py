"""Image towers in ONNX files, exported from Hugging Face's layouts, to our parameters.

What a graph computes with are its initialisers, plain tensors. Exporters fold transposed weights
into new ones without a name: such a weight has that of the bias which is added to its product. Of
the graph itself only facts are read (epsilon, activation, heads); it is not run, nor compared with.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one import extras
from twelve_in_one.convert import hf_vision
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.hf_layouts import FAMILIES, Family
from twelve_in_one.convert.report import Report, StateDictError
from twelve_in_one.models.vit import ViTConfig

# Names that exporters make up: "onnx::MatMul_1966", "1966", "val_12".
_UNNAMED = re.compile(r".*::.*|\d+|val_\d+")
_KEY_BIASES = ("key.bias", "k_proj.bias")
_USUAL_HEAD = 64


@dataclasses.dataclass(frozen=True)
class Graph:
    """What is read of a file.

    Attributes:
      tensors: {name: array} of its initialisers in PyTorch's layout, [out, in].
      unnamed: initialisers whose names say nothing and which no bias names.
      facts: what the graph says about the model: "layer_norm_eps", "hidden_act", "head_dim".
      notes: what was concluded.
    """

    tensors: dict[str, np.ndarray]
    unnamed: dict[str, np.ndarray]
    facts: dict[str, Any]
    notes: tuple[str, ...]


def read(
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    allow_unexpected: tuple[str, ...] = (),
    **fields: Any,
) -> Loaded:
    """An image tower in a file: `ViTModel`, `CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model`.

    The tower may be part of a larger graph: entries without its prefix are listed as unused.
    A last linear map without bias (CLIP's projection) becomes the classifier.

    Args:
      path: the file; weights outside it are found beside it.
      image_size: rows and columns of pixels that the model will see; positions are resized to them.
        None takes the size that they are of, which must be square.
      num_heads: of attention, for graphs that do not tell; None takes what they tell, or heads of 64.
      allow_unexpected: regular expressions of entries that need not be known.
      **fields: fields of `ViTConfig` that the graph does not tell, or that are wanted otherwise.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: not an ONNX file, or of another kind of model; names the file.
      OSError: it cannot be read.
      ImportError: onnx is not installed.
    """
    try:
        graph = read_graph(path)
        return from_graph(graph, image_size=image_size, allow_unexpected=allow_unexpected, **fields)
    except StateDictError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_graph(path: str | Path) -> Graph:
    """Initialisers and facts of a file.

    Raises:
      ValueError: not an ONNX file.
      OSError: it cannot be read.
      ImportError: onnx is not installed.
    """
    extras.require("reading ONNX files", "onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path).graph
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    except (DecodeError, onnx.checker.ValidationError, TypeError) as error:
        raise ValueError(f"not a readable ONNX file: {error}") from error
    if not tensors:
        raise ValueError("not a model in ONNX: it holds no initialisers")
    constants = dict(tensors)
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            constants[node.output[0]] = onnx.numpy_helper.to_array(value)
    named, notes = _named_by_biases(graph, tensors)
    kept = {k: v for k, v in named.items() if not _UNNAMED.fullmatch(k)}
    unnamed = {k: v for k, v in named.items() if _UNNAMED.fullmatch(k)}
    return Graph(kept, unnamed, _facts(graph, constants), notes)


def from_graph(
    graph: Graph,
    *,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    allow_unexpected: tuple[str, ...] = (),
    **fields: Any,
) -> Loaded:
    """Our parameters from what was read of a file; see `read`."""
    patterns = [re.compile(pattern) for pattern in allow_unexpected]
    allowed = {n for n in graph.tensors if any(p.fullmatch(n) for p in patterns)}
    tensors = {k: v for k, v in graph.tensors.items() if k not in allowed}
    name, prefix = _family_in(tensors)
    family, notes, unnamed = FAMILIES[name], list(graph.notes), dict(graph.unnamed)
    below = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    width = len(tensors[f"{prefix}{family.patch}.weight"])
    _find_positions(family, prefix, width, below, unnamed, notes)
    projections = {
        **{k: v for k, v in tensors.items() if k.endswith("visual_projection.weight")},
        **{k: v for k, v in unnamed.items() if v.ndim == 2 and v.shape[1] == width},
    }
    settings = _settings(name, prefix, below, graph.facts, num_heads, notes)
    used = tuple(projections) if len(projections) == 1 else ()
    elsewhere = [n for n in graph.tensors if n not in below and n not in used]
    # Shapes, axes and other numbers are of the graph; arrays of the model's width should be known.
    odd = {
        n
        for n, v in unnamed.items()
        if n not in used and v.ndim > 1 and v.size >= width
        if not any(p.fullmatch(n) for p in patterns)
    }
    idle = [n for n in unnamed if n not in used and n not in odd]

    def whole(report: Report) -> Report:
        """Of the file, where `report` is of the tower."""
        return dataclasses.replace(
            report,
            loaded=(*(prefix + n for n in report.loaded), *used),
            missing=tuple(prefix + n for n in report.missing),
            unexpected=(*(prefix + n for n in report.unexpected), *sorted(odd)),
            unused=(*(prefix + n for n in report.unused), *elsewhere, *idle),
            notes=(*notes, *report.notes),
        )

    try:
        config, params, report = hf_vision.from_hf(settings, below, image_size=image_size, **fields)
    except StateDictError as error:
        raise StateDictError(whole(error.report)) from None
    for projection in used:
        weight = projections[projection]
        config, params = _with_classifier(config, params, weight)
        notes.append(f"{projection}, a linear map to {len(weight)} without bias: the classifier")
    report = whole(report)
    if not report.ok:
        raise StateDictError(report)
    return Loaded(config, params, report)


def _named_by_biases(
    graph: Any, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Weights of linear maps as [out, in], under their own names or those of their biases.

    Raises:
      ValueError: two weights of one name.
    """
    result, renamed = dict(tensors), set()
    for node, weight, bias in _linear_maps(graph, tensors):
        flipped = any(a.name == "transB" and a.i for a in node.attribute)
        array = tensors[weight] if flipped else tensors[weight].T
        if not _UNNAMED.fullmatch(weight) or bias is None or not bias.endswith("bias"):
            result[weight] = array
        else:
            name = f"{bias.removesuffix('bias')}weight"
            if name in result:
                raise ValueError(f"{weight}, to which {bias} is added: there already is {name}")
            result[name] = array
            renamed.add(weight)
    notes = (f"{len(renamed)} weights without a name have that of their bias",) if renamed else ()
    return {name: array for name, array in result.items() if name not in renamed}, notes


def _linear_maps(
    graph: Any, tensors: Mapping[str, np.ndarray]
) -> Iterator[tuple[Any, str, str | None]]:
    """(node, weight, bias or None) of products with an initialiser that is a matrix."""
    readers = _readers(graph)
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2:
            continue
        weight = node.input[1]
        if weight not in tensors or tensors[weight].ndim != 2:
            continue
        added = list(node.input[2:])
        for reader in readers[node.output[0]]:
            added += reader.input if reader.op_type == "Add" else ()
        yield node, weight, next((name for name in added if name in tensors), None)


def _readers(graph: Any) -> Mapping[str, list[Any]]:
    """{value: nodes that read it}."""
    readers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def _facts(graph: Any, constants: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the graph says: the norms' epsilon, the activation, the size of a head."""
    ops = collections.Counter(node.op_type for node in graph.node)
    makers = {name: node for node in graph.node for name in node.output}
    facts: dict[str, Any] = {}
    eps = set()
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            eps.add(next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5))
        elif node.op_type == "Sqrt" and node.input[0] in makers:
            # The root of a variance and a small number, where norms are taken apart.
            added = [constants[n] for n in makers[node.input[0]].input if n in constants]
            eps |= {float(x) for x in added if x.size == 1 and 0 < float(x) < 1e-3}
    if len(eps) == 1:
        facts["layer_norm_eps"] = float(f"{eps.pop():.6g}")  # as it was before float32
    sigmoid = "quick_gelu" if any(_is(x, 1.702) for x in constants.values()) else "silu"
    approximate = any(
        a.s == b"tanh" for n in graph.node if n.op_type == "Gelu" for a in n.attribute
    )
    acts = {"Erf": "gelu", "Tanh": "gelu_pytorch_tanh", "Sigmoid": sigmoid, "Relu": "relu"}
    acts["Gelu"] = "gelu_pytorch_tanh" if approximate else "gelu"
    # Of several the one of the blocks, which are most of a model.
    often = max(acts, key=lambda op: ops[op])
    if ops[often]:
        facts["hidden_act"] = acts[often]
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "Reshape" else None
        if maker is not None and any(n.endswith(_KEY_BIASES) for n in maker.input):
            *_, size = (None, *_shape_of(node, makers, constants))
            if size is not None and size > 0:
                facts["head_dim"] = size
                break
    return facts


def _is(array: np.ndarray, number: float) -> bool:
    return array.size == 1 and array.dtype.kind == "f" and math.isclose(array.item(), number)


def _shape_of(node: Any, makers: Mapping[str, Any], constants: Any) -> tuple[int | None, ...]:
    """What a Reshape makes; None for sizes that are computed."""
    if node.input[1] in constants:
        return tuple(int(x) for x in constants[node.input[1]].ravel())
    maker = makers.get(node.input[1])
    if maker is None or maker.op_type != "Concat":
        return ()
    known = [constants.get(name) for name in maker.input]
    return tuple(None if x is None or x.size != 1 else int(x.item()) for x in known)


def _family_in(tensors: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """The family that the names are of, and what precedes them.

    Raises:
      ValueError: of none.
    """
    for name, family in FAMILIES.items():
        tail = f"{family.patch}.weight"
        for entry in tensors:
            prefix = entry.removesuffix(tail)
            layer = prefix + family.layer.format(0)
            needed = [f"{layer}{family.norms[0]}.weight", f"{layer}{family.mlp[0]}.bias"]
            needed += [prefix + family.class_token] if family.class_token else []
            needed += [layer + scale for scale in family.scales or ()]
            if entry.endswith(tail) and all(n in tensors for n in needed):
                return name, prefix
    first = ", ".join(list(tensors)[:3])
    raise ValueError(
        f"no image tower under the names of {', '.join(FAMILIES)}: the first entries are {first}"
    )


def _find_positions(
    family: Family,
    prefix: str,
    width: int,
    below: dict[str, np.ndarray],
    unnamed: dict[str, np.ndarray],
    notes: list[str],
) -> None:
    """Puts a position table without a name, whole or cut behind the class token's, into `below`."""
    if prefix + family.position in below:
        return
    tables = [k for k, v in unnamed.items() if v.ndim == 3 and v.shape[::2] == (1, width)]
    tables.sort(key=lambda name: unnamed[name].shape[1])
    rows = [unnamed[name].shape[1] for name in tables]
    if len(tables) == 1 or (len(tables) == 2 and rows[0] == 1 and family.class_token):
        table = np.concatenate([unnamed.pop(name) for name in tables], axis=1)
        below[prefix + family.position] = table
        notes.append(f"positions: {' and '.join(tables)}, {' + '.join(map(str, rows))} rows")


def _settings(
    name: str,
    prefix: str,
    below: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    num_heads: int | None,
    notes: list[str],
) -> dict[str, Any]:
    """What a config.json would say.

    Raises:
      ValueError: the graph tells too little.
    """
    family = FAMILIES[name]
    width, *_, patch = below[f"{prefix}{family.patch}.weight"].shape
    numbered = re.compile(re.escape(prefix) + re.escape(family.layer).replace(r"\{\}", r"(\d+)"))
    registers = below.get(f"{prefix}{family.registers}")
    settings = dict(
        model_type=name,
        hidden_size=width,
        num_hidden_layers=1
        + max(int(found[1]) for entry in below if (found := numbered.match(entry))),
        intermediate_size=len(below[f"{prefix}{family.layer.format(0)}{family.mlp[0]}.bias"]),
        patch_size=patch,
        num_register_tokens=0 if registers is None else registers.shape[-2],
    )
    if num_heads is None:
        size = facts.get("head_dim", _USUAL_HEAD)
        if width % size:
            raise ValueError("the graph does not say how many heads there are: num_heads is needed")
        num_heads = width // size
        if "head_dim" not in facts:
            notes.append(f"heads: {num_heads}, {size} wide, usual; the graph does not say")
    settings["num_attention_heads"] = num_heads
    for fact in ("layer_norm_eps", "hidden_act"):
        if fact in facts:
            settings[fact] = facts[fact]
        else:
            usual = family.eps if fact == "layer_norm_eps" else family.activation
            notes.append(f"{fact}: {usual}, usual; the graph does not say")
    table = below.get(prefix + family.position)
    if table is not None:
        patches = table.shape[-2] - (family.class_token is not None)
        side = round(patches**0.5)
        if side * side != patches:
            raise ValueError(f"{patches} positions are no square")
        settings["image_size"] = side * patch
    return settings


def _with_classifier(
    config: ViTConfig, params: dict[str, Any], weight: np.ndarray
) -> tuple[ViTConfig, dict[str, Any]]:
    kernel = np.ascontiguousarray(weight.T, np.float32)
    classifier = {"kernel": kernel, "bias": np.zeros(len(weight), np.float32)}
    config = dataclasses.replace(config, num_classes=len(weight))
    return config, params | {"classifier": classifier}
