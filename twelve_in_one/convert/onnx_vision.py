"""Image towers in ONNX files, exported from Hugging Face's layouts, to our parameters.

Reads only the graph's tensors and some facts (epsilon, activation, heads); does not run it.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.convert import hf_vision
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.hf_layouts import FAMILIES, Family
from twelve_in_one.convert.onnx_graph import Graph, read_graph
from twelve_in_one.models.vit import ViTConfig

_USUAL_HEAD = 64


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
      path: the file; external weights must be next to it.
      image_size: rows and columns of pixels for the model; positions are resized to them. None
        keeps their size, which must be square.
      num_heads: of attention, for graphs that do not tell; by default heads of size 64.
      allow_unexpected: regular expressions of entries that need not be known.
      **fields: fields of `ViTConfig` that the graph does not determine, or that override it.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: not an ONNX file, or another kind of model; names the file.
      OSError: it cannot be read.
      ImportError: onnx is not installed.
    """
    try:
        return from_graph(
            read_graph(path),
            image_size=image_size,
            num_heads=num_heads,
            allow_unexpected=allow_unexpected,
            **fields,
        )
    except StateDictError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_graph(
    graph: Graph,
    *,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    allow_unexpected: tuple[str, ...] = (),
    **fields: Any,
) -> Loaded:
    """Our parameters from the contents of a file; see `read`."""
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
    # Shapes, axes and other numbers are the graph's; arrays of the model's width should be known.
    odd = {
        n
        for n, v in unnamed.items()
        if n not in used and v.ndim > 1 and v.size >= width
        if not any(p.fullmatch(n) for p in patterns)
    }
    idle = [n for n in unnamed if n not in used and n not in odd]

    def whole(report: Report) -> Report:
        """Extends `report` from the tower to the whole file."""
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


def _family_in(tensors: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """The family of the names, and their prefix.

    Raises:
      ValueError: no known family.
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
    """Adds an unnamed position table, whole or cut after the class token's, to `below`."""
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
    """The settings that a config.json would hold.

    Raises:
      ValueError: the graph has too little information.
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
