"""Names and layouts of Hugging Face's vision models, and conversion of each parameter."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twelve_in_one.convert.entries import Path
from twelve_in_one.models.two_tower import TextTowerConfig
from twelve_in_one.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of one layout; names within a layer follow `layer`, where {} is its number.

    Attributes:
      pool: the pooling of the model.
      eps: of its norms, if config.json does not say.
      activation: of its blocks, if config.json does not say.
      scales: layer scales after attention and feed-forward block, or none.
      unused: entries that the model does not use.
    """

    patch: str
    position: str
    class_token: str | None
    layer: str
    attention: Mapping[str, str]
    norms: tuple[str, str]
    mlp: tuple[str, str]
    final_norm: str
    pool: str
    eps: float
    activation: str = "gelu"
    embedding_norm: str | None = None
    registers: str | None = None
    representation: str | None = None
    probe: str | None = None
    scales: tuple[str, str] | None = None
    unused: tuple[str, ...] = ()


def _self_attention(*names: str) -> dict[str, str]:
    return dict(zip(("query", "key", "value", "out"), names, strict=True))


_VIT = Family(
    patch="embeddings.patch_embeddings.projection",
    position="embeddings.position_embeddings",
    class_token="embeddings.cls_token",
    layer="encoder.layer.{}.",
    attention=_self_attention(
        *(f"attention.attention.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
    ),
    norms=("layernorm_before", "layernorm_after"),
    mlp=("intermediate.dense", "output.dense"),
    final_norm="layernorm",
    pool="class",
    eps=1e-12,
    representation="pooler.dense",
    unused=("embeddings.mask_token",),
)
_CLIP = Family(
    patch="embeddings.patch_embedding",
    position="embeddings.position_embedding.weight",
    class_token="embeddings.class_embedding",
    layer="encoder.layers.{}.",
    attention=_self_attention(*(f"self_attn.{name}_proj" for name in "qkv"), "self_attn.out_proj"),
    norms=("layer_norm1", "layer_norm2"),
    mlp=("mlp.fc1", "mlp.fc2"),
    final_norm="post_layernorm",
    pool="class",
    eps=1e-5,
    activation="quick_gelu",
    embedding_norm="pre_layrnorm",  # their spelling
    unused=("embeddings.position_ids",),
)
FAMILIES: Mapping[str, Family] = {
    "vit": _VIT,
    "clip": _CLIP,
    "siglip": dataclasses.replace(
        _CLIP,
        class_token=None,
        pool="attention",
        eps=1e-6,
        activation="gelu_pytorch_tanh",
        embedding_norm=None,
        probe="head.",
    ),
    "dinov2": dataclasses.replace(
        _VIT,
        eps=1e-6,
        norms=("norm1", "norm2"),
        mlp=("mlp.fc1", "mlp.fc2"),
        registers="embeddings.register_tokens",
        representation=None,
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
}


def text_sources(config: TextTowerConfig) -> dict[Path, tuple[str, ...]]:
    """Sources of SigLIP's text tower, with blocks named as in its image tower."""
    return {
        ("token", "embedding"): ("embeddings.token_embedding.weight",),
        ("position",): ("embeddings.position_embedding.weight",),
        **block_sources(FAMILIES["siglip"], config.num_layers),
        **norm(("final_norm",), "final_layer_norm"),
        **linear(("projection",), "head"),
    }


def from_ours(
    table: Mapping[Path, tuple[str, ...]], flat: Mapping[Path, Any], what: str
) -> dict[str, np.ndarray]:
    """Converts parameters, given by path, to the entries of `table`.

    Raises:
      ValueError: a model of another form; names extra or missing parameters.
    """
    if set(table) != set(flat):
        odd = sorted("/".join(path) for path in set(table) ^ set(flat))
        raise ValueError(f"not of the form of a {what}: {', '.join(odd[:5])}")
    result: dict[str, np.ndarray] = {}
    for path, names in table.items():
        _from_ours(path, names, np.asarray(flat[path], np.float32), result)
    return result


def linear(ours: Path, theirs: str, *also: str, bias: bool = True) -> dict[Path, Any]:
    """Sources of a linear map, its outputs multiplied by `also`."""
    leaves = {"kernel": "weight"} | ({"bias": "bias"} if bias else {})
    return {(*ours, leaf): (f"{theirs}.{name}", *also) for leaf, name in leaves.items()}


def norm(ours: Path, theirs: str) -> dict[Path, Any]:
    """Sources of a layer norm."""
    return {(*ours, "scale"): (f"{theirs}.weight",), (*ours, "bias"): (f"{theirs}.bias",)}


def block_sources(family: Family, num_layers: int) -> dict[Path, tuple[str, ...]]:
    """Sources of all blocks."""
    result: dict[Path, tuple[str, ...]] = {}
    for i in range(num_layers):
        ours, theirs = (f"block_{i}",), family.layer.format(i)
        scales = [(theirs + scale,) for scale in family.scales or ()] or [(), ()]
        for name, module in family.attention.items():
            also = scales[0] if name == "out" else ()
            result |= linear((*ours, "attention", name), theirs + module, *also)
        result |= norm((*ours, "attention_norm"), theirs + family.norms[0])
        result |= norm((*ours, "mlp_norm"), theirs + family.norms[1])
        result |= linear((*ours, "mlp", "up"), theirs + family.mlp[0])
        result |= linear((*ours, "mlp", "down"), theirs + family.mlp[1], *scales[1])
    return result


def sources(family: Family, config: ViTConfig) -> dict[Path, tuple[str, ...]]:
    """{our path: names of its sources}; the first source is the main one."""
    result: dict[Path, tuple[str, ...]] = linear(
        ("patch_embedding",), family.patch, bias=config.patch_bias
    )
    result["position",] = (family.position,)
    if family.class_token:
        result["class_token",] = (family.class_token, family.position)
    if config.num_registers and family.registers:
        result["registers",] = (family.registers,)
    if family.embedding_norm:
        result |= norm(("embedding_norm",), family.embedding_norm)
    result |= block_sources(family, config.num_layers)
    result |= norm(("final_norm",), family.final_norm)
    if config.representation and family.representation:
        result |= linear(("representation",), family.representation)
    if family.probe:
        pool = ("attention_pool",)
        result[*pool, "probe"] = (f"{family.probe}probe",)
        joint = f"{family.probe}attention.in_proj_"
        for name in ("query", "key", "value"):
            result[*pool, "attention", name, "kernel"] = (f"{joint}weight",)
            result[*pool, "attention", name, "bias"] = (f"{joint}bias",)
        result |= linear((*pool, "attention", "out"), f"{family.probe}attention.out_proj")
        result |= norm((*pool, "norm"), f"{family.probe}layernorm")
        result |= linear((*pool, "mlp", "up"), f"{family.probe}mlp.fc1")
        result |= linear((*pool, "mlp", "down"), f"{family.probe}mlp.fc2")
    return result


def to_ours(path: Path, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of `shape`.

    Raises:
      ValueError: arrays of the wrong shape.
    """
    array = arrays[0]
    if path[0] == "patch_embedding" and path[-1] == "kernel":
        array = np.transpose(array, (2, 3, 1, 0))  # [D, 3, p, p] -> [p, p, 3, D]
    elif path == ("position",):
        array = array.reshape(-1, shape[1])
        if len(array) == shape[0] + 1:
            array = array[1:]  # without the class token's
    elif path == ("class_token",):
        array = array.reshape(1, -1) + arrays[1].reshape(-1, shape[1])[:1]
    elif path[-1] == "kernel":
        array = _part(path, array).T
        outputs = shape[-1] if path[-2] in _FLAT else int(np.prod(shape[1:]))
        if array.shape != (int(np.prod(shape)) // outputs, outputs):
            raise ValueError(array.shape)
    elif path[-1] == "bias":
        array = _part(path, array)
    if len(arrays) == 2 and path != ("class_token",):
        array = array * arrays[1]  # a layer scale, over the outputs
    if array.size != int(np.prod(shape)):
        raise ValueError(array.shape)
    return np.ascontiguousarray(array).reshape(shape)


def _part(path: Path, array: np.ndarray) -> np.ndarray:
    """The query's, key's or value's part of a pooling head's joint projections [3 D, ...]."""
    if path[0] == "attention_pool" and path[-2] in ("query", "key", "value"):
        return np.split(array, 3)[("query", "key", "value").index(path[-2])]
    return array


# Linear maps with one output dimension here; attention has separate heads and head size.
_FLAT = ("out", "up", "down", "representation", "projection")


def _from_ours(
    path: tuple[str, ...], names: tuple[str, ...], array: np.ndarray, result: dict[str, np.ndarray]
) -> None:
    """Puts one parameter, or its part of an entry, into `result`."""
    name, width = names[0], array.shape[-1]
    if path == ("position",):
        # The class token, converted later, adds a row before it.
        result[name] = array if name.endswith(".weight") else array[None]
        return
    if path == ("class_token",):
        table = result[names[1]]
        zero = np.zeros((*table.shape[:-2], 1, width), np.float32)
        result[names[1]] = np.concatenate([zero, table], axis=-2)
        result[name] = array[0] if name.endswith("class_embedding") else array[None]
        return
    if path[-1] in ("registers", "probe"):
        array = array[None]
    elif path[0] == "patch_embedding" and path[-1] == "kernel":
        array = np.transpose(array, (3, 2, 0, 1))
    elif path[-1] == "kernel":
        inputs = array.size // width if path[-2] in _FLAT else array.shape[0]
        array = array.reshape(inputs, -1).T
    elif path[-1] == "bias":
        array = array.reshape(-1)
    if len(names) == 2:
        result[names[1]] = np.ones(array.shape[:1], np.float32)
    if (
        name in result
    ):  # joint projections: the query's part exists, the key's and the value's follow
        array = np.concatenate([result[name], array])
    result[name] = np.ascontiguousarray(array)
