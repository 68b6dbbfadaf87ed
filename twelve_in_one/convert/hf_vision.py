"""Vision Transformers of Hugging Face's layouts (safetensors and config.json) and ours.

Four families: `ViTModel`, `SiglipVisionModel`, `CLIPVisionModel` and `Dinov2Model`, with or without
registers; alone, or as the image tower of a whole CLIP or SigLIP. Differences in computation are
folded into the weights, so that the numbers are the same: the position of the class token is added
to the token, DINOv2's layer scales are multiplied into the projections before them.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.entries import match
from twelve_in_one.convert.files import (
    CONFIG_FILE,
    SAFETENSORS_FILE,
    read_state_dict,
    write_folder,
)
from twelve_in_one.convert.hf_layouts import FAMILIES, Family, from_ours, sources, to_ours
from twelve_in_one.models.pre_norm import BlocksConfig
from twelve_in_one.models.vit import ViTConfig, abstract_params, resize_positions

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "swish",
}


def read(path: str | Path, *, image_size: tuple[int, int] | None = None, **fields: Any) -> Loaded:
    """A model in a folder with `model.safetensors` and `config.json`.

    Args:
      path: the folder.
      image_size: rows and columns of pixels for the model; positions are resized to them. None
        takes the size that it was trained for.
      **fields: fields of `ViTConfig` to override.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: a file that cannot be read, or another kind of model; names the file.
      OSError: a file is missing.
    """
    settings = read_settings(path)
    tensors = read_state_dict(Path(path) / SAFETENSORS_FILE)
    try:
        return from_hf(settings, tensors, image_size=image_size, **fields)
    except StateDictError:
        raise
    except (KeyError, ValueError) as error:
        raise ValueError(f"{Path(path) / CONFIG_FILE}: {error}") from error


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
      ValueError: not a JSON object; names the file.
      OSError: it cannot be read.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: holds a JSON {type(settings).__name__}, not an object")
    return settings


def family_of(settings: Mapping[str, Any]) -> str:
    """The family of a config.json.

    Raises:
      ValueError: it belongs to no known family.
    """
    kind = str(settings.get("model_type", ""))
    for name in FAMILIES:
        if kind == name or kind.startswith(f"{name}_"):
            return name
    raise ValueError(f"model_type {kind!r} is none of {', '.join(FAMILIES)}")


def config_of(settings: Mapping[str, Any], **fields: Any) -> ViTConfig:
    """The config of a model; for a whole CLIP or SigLIP, that of its image tower.

    Raises:
      ValueError: another kind of model, or a variant that the ViT does not support.
    """
    family = FAMILIES[family_of(settings)]
    settings = settings.get("vision_config", settings)
    if settings.get("use_swiglu_ffn"):
        raise ValueError("use_swiglu_ffn: gated feed-forward blocks (DINOv2's giant) are not known")
    if not settings.get("qkv_bias", True):
        raise ValueError("qkv_bias=false: attention without biases is not known")
    size, width = settings.get("image_size", 224), settings.get("hidden_size", 768)
    found = dict(
        image_size=tuple(size) if isinstance(size, (list, tuple)) else (size, size),
        patch_size=settings.get("patch_size", 16),
        pool=family.pool,
        class_token=family.class_token is not None,
        num_registers=settings.get("num_register_tokens", 0) if family.registers else 0,
        patch_bias=family.embedding_norm is None,
        pre_norm=family.embedding_norm is not None,
        activation=activation_of(settings, family.activation),
        layer_norm_eps=settings.get("layer_norm_eps", family.eps),
    )
    return ViTConfig(
        width,
        settings.get("num_hidden_layers", 12),
        settings.get("num_attention_heads", 12),
        settings.get("intermediate_size", int(width * settings.get("mlp_ratio", 4))),
        **found | fields,
    )


def activation_of(settings: Mapping[str, Any], default: str) -> str:
    """Our name of the activation in a config.json, or else of their `default`.

    Raises:
      ValueError: an activation that the blocks do not support.
    """
    act = settings.get("hidden_act", default)
    if act not in _ACTIVATIONS:
        raise ValueError(f"hidden_act {act!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[act]


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
      tensors: {name: array}; those of a whole CLIP or SigLIP include an image tower.
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
    params, report = match(
        sources(family, unrolled),
        found,
        shapes,
        to_ours,
        unneeded=[re.escape(name) for name in family.unused],
        layout=" as ours",
    )
    if not report.ok:
        raise StateDictError(report)
    tree, notes = resized(unflatten(params), trained, config)
    return Loaded(config, tree, dataclasses.replace(report, notes=notes))


def to_hf(family_name: str, config: ViTConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse: our unrolled parameters as tensors of a family.

    Values folded into other weights at loading stay there: positions of class tokens are zero and
    layer scales one.

    Raises:
      ValueError: the model does not have the family's form.
    """
    table = sources(FAMILIES[family_name], config)
    return from_ours(table, flatten(params), f"{family_name} model")


def settings_of(family_name: str, config: ViTConfig) -> dict[str, Any]:
    """The config.json of a model of a family: the inverse of `config_of`.

    Raises:
      ValueError: a setting that their config.json cannot express.
    """
    rows, columns = config.image_size
    if rows != columns:
        raise ValueError(f"config.json has one image_size, not {rows} x {columns}")
    settings = block_settings(config) | dict(
        model_type=family_name, image_size=rows, patch_size=config.patch_size, num_channels=3
    )
    names = {"vit": "ViTModel", "clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    if family_name == "dinov2":
        if config.mlp_dim % config.hidden_dim:
            raise ValueError(f"mlp_dim {config.mlp_dim} is no whole multiple of the width (DINOv2)")
        registers = "_with_registers" if config.num_registers else ""
        settings |= dict(
            model_type=f"dinov2{registers}",
            mlp_ratio=config.mlp_dim // config.hidden_dim,
            qkv_bias=True,
            use_swiglu_ffn=False,
            num_register_tokens=config.num_registers,
        )
        names["dinov2"] = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    elif family_name != "vit":
        settings["model_type"] = f"{family_name}_vision_model"
    return settings | {"architectures": [names[family_name]]}


def block_settings(config: BlocksConfig) -> dict[str, Any]:
    """The settings of a tower's blocks in config.json."""
    acts = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return dict(
        hidden_size=config.hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        hidden_act=acts[config.activation],
        layer_norm_eps=config.layer_norm_eps,
    )


def write(
    directory: str | Path,
    family_name: str,
    config: ViTConfig,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes our unrolled parameters as a folder that `transformers` reads.

    Raises:
      ValueError: the model does not have the family's form.
      FileExistsError: the directory exists and `overwrite` is False.
    """
    tensors = to_hf(family_name, config, params)
    settings = settings_of(family_name, config)
    write_folder(directory, tensors.items(), settings, overwrite=overwrite)


def _prefix(family: Family, tensors: Mapping[str, Any]) -> str:
    """The prefix of the names: empty, or the name of the image tower."""
    tail = f"{family.patch}.weight"
    found = [name for name in tensors if name == tail or name.endswith(f".{tail}")]
    if len(found) != 1:
        raise ValueError(f"there should be one entry ...{tail}, found {len(found)}")
    return found[0].removesuffix(tail)


def resized(
    params: dict[str, Any], trained: ViTConfig, wanted: ViTConfig
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters with positions for the grid of `wanted`; a note if they were resized."""
    if trained.grid == wanted.grid:
        return params, ()
    table = resize_positions(params["position"], trained.grid, wanted.grid, "bicubic")
    (y, x), (rows, columns) = trained.grid, wanted.grid
    note = f"positions resized from {y} x {x} to {rows} x {columns} patches"
    return params | {"position": table}, (note,)
