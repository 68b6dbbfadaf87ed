"""Vision Transformers of Hugging Face's layouts (safetensors and config.json) and ours.

Four families: `ViTModel`, `SiglipVisionModel`, `CLIPVisionModel` and `Dinov2Model`, with registers
or without; alone, or as the image tower of a whole CLIP or SigLIP. What they compute in another
order is folded into the weights, so that the same numbers come out: a position of the class token
is added to the token, DINOv2's layer scales are multiplied into the projections before them.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError, nearest_names
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.files import CONFIG_FILE, SAFETENSORS_FILE, read_state_dict
from twelve_in_one.models.vit import ViTConfig, abstract_params, resize_positions

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "swish",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of one layout; those of a layer follow `layer`, {} being its number.

    Attributes:
      pool: what the model pools with.
      eps: of its norms where config.json does not say.
      activation: likewise.
      scales: layer scales behind attention and feed-forward block, or none.
      unused: entries that the model does not compute with.
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
    embedding_norm="pre_layrnorm",  # so it is spelt
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


def read(path: str | Path, *, image_size: tuple[int, int] | None = None, **fields: Any) -> Loaded:
    """A model in a folder with `model.safetensors` and `config.json`.

    Args:
      path: the folder.
      image_size: rows and columns of pixels that the model will see; positions are resized to them.
        None takes the size that it was trained for.
      **fields: fields of `ViTConfig` that are wanted otherwise.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: a file that cannot be read, or another kind of model; names the file.
      OSError: a file is missing.
    """
    folder = Path(path)
    file = folder / CONFIG_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    tensors = read_state_dict(folder / SAFETENSORS_FILE)
    try:
        return from_hf(settings, tensors, image_size=image_size, **fields)
    except StateDictError:
        raise
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def family_of(settings: Mapping[str, Any]) -> str:
    """The family that a config.json is of.

    Raises:
      ValueError: of none of them.
    """
    kind = str(settings.get("model_type", ""))
    for name in FAMILIES:
        if kind == name or kind.startswith(f"{name}_"):
            return name
    raise ValueError(f"model_type {kind!r} is none of {', '.join(FAMILIES)}")


def config_of(settings: Mapping[str, Any], **fields: Any) -> ViTConfig:
    """The config of a model; of a whole CLIP or SigLIP that of its image tower.

    Raises:
      ValueError: another kind of model, or a variant that the ViT does not have.
    """
    family = FAMILIES[family_of(settings)]
    settings = settings.get("vision_config", settings)
    if settings.get("use_swiglu_ffn"):
        raise ValueError("use_swiglu_ffn: gated feed-forward blocks (DINOv2's giant) are not known")
    if not settings.get("qkv_bias", True):
        raise ValueError("qkv_bias=false: attention without biases is not known")
    act = settings.get("hidden_act", family.activation)
    if act not in _ACTIVATIONS:
        raise ValueError(f"hidden_act {act!r} is none of {', '.join(_ACTIVATIONS)}")
    size, width = settings.get("image_size", 224), settings.get("hidden_size", 768)
    found = dict(
        image_size=tuple(size) if isinstance(size, (list, tuple)) else (size, size),
        patch_size=settings.get("patch_size", 16),
        pool=family.pool,
        class_token=family.class_token is not None,
        num_registers=settings.get("num_register_tokens", 0) if family.registers else 0,
        patch_bias=family.embedding_norm is None,
        pre_norm=family.embedding_norm is not None,
        activation=_ACTIVATIONS[act],
        layer_norm_eps=settings.get("layer_norm_eps", family.eps),
    )
    return ViTConfig(
        width,
        settings.get("num_hidden_layers", 12),
        settings.get("num_attention_heads", 12),
        settings.get("intermediate_size", int(width * settings.get("mlp_ratio", 4))),
        **found | fields,
    )


def from_hf(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None = None,
    **fields: Any,
) -> Loaded:
    """Our parameters from those of a model.

    Args:
      settings: its config.json.
      tensors: {name: array}; those of a whole CLIP or SigLIP have an image tower among them.
      image_size: see `read`.
      **fields: see `read`.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: another kind of model.
    """
    family = FAMILIES[family_of(settings)]
    prefix = _prefix(family, tensors)
    found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    trained = config_of(settings, **fields)
    if family.representation and f"{family.representation}.weight" in found:
        trained = dataclasses.replace(trained, representation=True)
    config = trained if image_size is None else dataclasses.replace(trained, image_size=image_size)
    unrolled = dataclasses.replace(trained, scan_layers=False)
    shapes = {k: v.shape for k, v in flatten(nn.unbox(abstract_params(unrolled))).items()}
    loaded, missing, wrong, params = [], [], [], {}
    known = set(family.unused)
    for path, names in _sources(family, unrolled).items():
        known |= set(names)
        absent = [name for name in names if name not in found]
        if absent:
            missing += absent
            continue
        arrays = [np.asarray(found[name], np.float32) for name in names]
        try:
            params[path] = _to_ours(path, arrays, shapes[path])
        except ValueError:
            shapes_found = " and ".join(str(array.shape) for array in arrays)
            wrong.append((" and ".join(names), shapes_found, f"{shapes[path]} as ours"))
            continue
        loaded += names
    unexpected = [name for name in found if name not in known]
    report = Report(
        loaded=tuple(dict.fromkeys(loaded)),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong),
        unused=tuple(name for name in family.unused if name in found),
        notes=_resize(params, trained, config),
        nearest=nearest_names(missing, unexpected) | nearest_names(unexpected, known),
    )
    if not report.ok:
        raise StateDictError(report)
    return Loaded(config, unflatten(params), report)


def to_hf(family_name: str, config: ViTConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse: our unrolled parameters as tensors of a family.

    What was folded into other weights at loading stays there: positions of class tokens are zero
    and layer scales one.

    Raises:
      ValueError: a model of another form than the family's.
    """
    family, flat = FAMILIES[family_name], flatten(params)
    sources = _sources(family, config)
    if set(sources) != set(flat):
        odd = sorted("/".join(path) for path in set(sources) ^ set(flat))
        raise ValueError(f"not of the form of a {family_name} model: {', '.join(odd[:5])}")
    result: dict[str, np.ndarray] = {}
    for path, names in sources.items():
        _from_ours(path, names, np.asarray(flat[path], np.float32), result)
    return result


def _prefix(family: Family, tensors: Mapping[str, Any]) -> str:
    """What precedes the names: nothing, or the name of the image tower."""
    tail = f"{family.patch}.weight"
    found = [name for name in tensors if name == tail or name.endswith(f".{tail}")]
    if len(found) != 1:
        raise ValueError(f"there should be one entry ...{tail}, found {len(found)}")
    return found[0].removesuffix(tail)


def _sources(family: Family, config: ViTConfig) -> dict[tuple[str, ...], tuple[str, ...]]:
    """{path of ours: names of what it is made from}, the first being what it is, roughly."""
    result: dict[tuple[str, ...], tuple[str, ...]] = {}

    def linear(ours: tuple[str, ...], theirs: str, *also: str, bias: bool = True) -> None:
        result[*ours, "kernel"] = (f"{theirs}.weight", *also)
        if bias:
            result[*ours, "bias"] = (f"{theirs}.bias", *also)

    def norm(ours: tuple[str, ...], theirs: str) -> None:
        result[*ours, "scale"] = (f"{theirs}.weight",)
        result[*ours, "bias"] = (f"{theirs}.bias",)

    linear(("patch_embedding",), family.patch, bias=config.patch_bias)
    result["position",] = (family.position,)
    if family.class_token:
        result["class_token",] = (family.class_token, family.position)
    if config.num_registers and family.registers:
        result["registers",] = (family.registers,)
    if family.embedding_norm:
        norm(("embedding_norm",), family.embedding_norm)
    for i in range(config.num_layers):
        ours, theirs = (f"block_{i}",), family.layer.format(i)
        scales = [(theirs + scale,) for scale in family.scales or ()] or [(), ()]
        for name, module in family.attention.items():
            also = scales[0] if name == "out" else ()
            linear((*ours, "attention", name), theirs + module, *also)
        norm((*ours, "attention_norm"), theirs + family.norms[0])
        norm((*ours, "mlp_norm"), theirs + family.norms[1])
        linear((*ours, "mlp", "up"), theirs + family.mlp[0])
        linear((*ours, "mlp", "down"), theirs + family.mlp[1], *scales[1])
    norm(("final_norm",), family.final_norm)
    if config.representation and family.representation:
        linear(("representation",), family.representation)
    if family.probe:
        pool = ("attention_pool",)
        result[*pool, "probe"] = (f"{family.probe}probe",)
        for name in ("query", "key", "value"):
            result[*pool, "attention", name, "kernel"] = (
                f"{family.probe}attention.in_proj_weight",
            )
            result[*pool, "attention", name, "bias"] = (f"{family.probe}attention.in_proj_bias",)
        linear((*pool, "attention", "out"), f"{family.probe}attention.out_proj")
        norm((*pool, "norm"), f"{family.probe}layernorm")
        linear((*pool, "mlp", "up"), f"{family.probe}mlp.fc1")
        linear((*pool, "mlp", "down"), f"{family.probe}mlp.fc2")
    return result


def _to_ours(path: tuple[str, ...], arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of `shape`.

    Raises:
      ValueError: arrays that it cannot be made from.
    """
    array = arrays[0]
    if path[0] == "patch_embedding" and path[-1] == "kernel":
        array = np.transpose(array, (2, 3, 1, 0))  # [D, 3, p, p] -> [p, p, 3, D]
    elif path == ("position",):
        array = array.reshape(-1, shape[1])
        if len(array) == shape[0] + 1:
            array = array[1:]  # the class token's own
    elif path == ("class_token",):
        array = array.reshape(1, -1) + arrays[1].reshape(-1, shape[1])[:1]
    elif path[-1] == "kernel":
        array = _part(path, array).T
    elif path[-1] == "bias":
        array = _part(path, array)
    if len(arrays) == 2 and path != ("class_token",):
        array = array * arrays[1]  # a layer scale, over the outputs
    if array.size != int(np.prod(shape)):
        raise ValueError(array.shape)
    return np.ascontiguousarray(array).reshape(shape)


def _part(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Of a pooling head's joint projections [3 D, ...] the query's, key's or value's."""
    if path[0] == "attention_pool" and path[-2] in ("query", "key", "value"):
        return np.split(array, 3)[("query", "key", "value").index(path[-2])]
    return array


def _from_ours(
    path: tuple[str, ...], names: tuple[str, ...], array: np.ndarray, result: dict[str, np.ndarray]
) -> None:
    """Puts one parameter, or its part of an entry, into `result`."""
    name, width = names[0], array.shape[-1]
    if path == ("position",):
        # The class token, which comes after, puts a row before it.
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
        outputs = width if path[-2] in ("out", "up", "down", "representation") else None
        inputs = array.shape[0] if outputs is None else array.size // outputs
        array = array.reshape(inputs, -1).T
    elif path[-1] == "bias":
        array = array.reshape(-1)
    if len(names) == 2:
        result[names[1]] = np.ones(array.shape[:1], np.float32)
    if (
        name in result
    ):  # joint projections: the query's part is there, the key's, the value's follow
        array = np.concatenate([result[name], array])
    result[name] = np.ascontiguousarray(array)


def _resize(
    params: dict[tuple[str, ...], np.ndarray], trained: ViTConfig, config: ViTConfig
) -> tuple[str, ...]:
    """Resizes the position table where the grid is another; says so."""
    if trained.grid == config.grid or ("position",) not in params:
        return ()
    params["position",] = resize_positions(params["position",], trained.grid, config.grid)
    (y, x), (rows, columns) = trained.grid, config.grid
    return (f"positions resized from {y} x {x} to {rows} x {columns} patches",)
