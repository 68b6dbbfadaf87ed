"""Tensors of an ONNX file under their original names, and facts from its graph.

The weights of a graph are its initialisers. Exporters fold transposed weights into new unnamed
ones: such a weight is named after the bias that is added to its product.
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

# Names invented by exporters: "onnx::MatMul_1966", "1966", "val_12".
_UNNAMED = re.compile(r".*::.*|\d+|val_\d+")
_KEY_BIASES = ("key.bias", "k_proj.bias")


@dataclasses.dataclass(frozen=True)
class Graph:
    """The contents read from a file.

    Attributes:
      tensors: {name: array} of its initialisers in PyTorch's layout, [out, in].
      unnamed: initialisers with meaningless names that no bias names either.
      facts: about the model, from the graph: "layer_norm_eps", "hidden_act", "head_dim".
      notes: conclusions drawn.
    """

    tensors: dict[str, np.ndarray]
    unnamed: dict[str, np.ndarray]
    facts: dict[str, Any]
    notes: tuple[str, ...]


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


def _named_by_biases(
    graph: Any, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Weights of linear maps as [out, in], under their own names or those of their biases.

    Raises:
      ValueError: two weights with the same name.
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
    """(node, weight, bias or None) of products with a matrix initialiser."""
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
    """Facts from the graph: the norms' epsilon, the activation, the head size."""
    ops = collections.Counter(node.op_type for node in graph.node)
    makers = {name: node for node in graph.node for name in node.output}
    facts: dict[str, Any] = {}
    eps = set()
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            eps.add(next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5))
        elif node.op_type == "Sqrt" and node.input[0] in makers:
            # The root of a variance plus a small number, in decomposed norms.
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
    # Of several, that of the blocks, which are most of a model.
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
    return (
        array.size == 1
        and array.dtype.kind == "f"
        and math.isclose(array.item(), number, rel_tol=1e-6)
    )


def _shape_of(node: Any, makers: Mapping[str, Any], constants: Any) -> tuple[int | None, ...]:
    """The shape made by a Reshape; None for computed sizes."""
    if node.input[1] in constants:
        return tuple(int(x) for x in constants[node.input[1]].ravel())
    maker = makers.get(node.input[1])
    if maker is None or maker.op_type != "Concat":
        return ()
    known = [constants.get(name) for name in maker.input]
    return tuple(None if x is None or x.size != 1 else int(x.item()) for x in known)
