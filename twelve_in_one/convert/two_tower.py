"""Models of two towers: SigLIP as saved by big_vision (`.npz`) and Hugging Face (`SiglipModel`).

One report covers both towers, temperature and bias, and names entries that belong to neither tower.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert import big_vision, entries, files, hf_layouts, hf_vision
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.files import CONFIG_FILE, SAFETENSORS_FILE, read_state_dict
from twelve_in_one.models.two_tower import TextTowerConfig, TwoTowerConfig, abstract_params

_IMAGE, _TEXT = "img/", "txt/"
_HF_IMAGE, _HF_TEXT = "vision_model.", "text_model."
_HF_SCALARS = {("log_temperature",): ("logit_scale",), ("bias",): ("logit_bias",)}
_Fields = Mapping[str, Any]


def from_big_vision(
    arrays: Mapping[str, np.ndarray],
    *,
    image_size: tuple[int, int] | None = None,
    image: _Fields | None = None,
    text: _Fields | None = None,
) -> Loaded:
    """Our parameters of both towers from big_vision's.

    Args:
      arrays: from `big_vision.read_npz`: `img/...`, `txt/...`, `t` and, if there is one, `b`.
      image_size: rows and columns of pixels for the model; the position table is resized to them.
        None takes the size that it was trained for, which must be square.
      image: fields of `ViTConfig` that the arrays do not determine, or that override them.
      text: the same for `TextTowerConfig`.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: not two towers.
    """
    towers = {}
    for prefix in (_IMAGE, _TEXT):
        below = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        towers[prefix] = big_vision.modern_names(below)
    found, notes = big_vision.resized(towers[_IMAGE], image_size)
    sizes = {} if image_size is None else {"image_size": image_size}
    config = TwoTowerConfig(
        big_vision.config_of(found, **(sizes | dict(image or {}))),
        big_vision.text_config_of(towers[_TEXT], **(text or {})),
        bias=-10.0 if "b" in arrays else None,
    )
    renamed = {k: v for k, v in arrays.items() if not k.startswith((_IMAGE, _TEXT))}
    renamed |= {_IMAGE + k: v for k, v in found.items()}
    renamed |= {_TEXT + k: v for k, v in towers[_TEXT].items()}
    return _load(
        config,
        {path: (name,) for name, path in _big_vision_names(config).items()},
        renamed,
        big_vision.to_ours,
        notes=notes,
        unneeded=[_IMAGE + f"(?:{big_vision.OPTIONAL})", _TEXT + f"(?:{big_vision.OPTIONAL})"],
    )


def to_big_vision(config: TwoTowerConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our unrolled parameters under big_vision's names.

    Raises:
      ValueError: an image tower that big_vision's ViT cannot hold.
    """
    big_vision.check_form(config.image)
    return big_vision.with_leading_ones(_big_vision_names(config), params)


def read_hf(path: str | Path, *, image_size: tuple[int, int] | None = None) -> Loaded:
    """A SigLIP in a folder with `model.safetensors` and `config.json`; see `from_hf`.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: a file that cannot be read, or another kind of model; names the file.
      OSError: a file is missing.
    """
    settings = hf_vision.read_settings(path)
    tensors = read_state_dict(Path(path) / SAFETENSORS_FILE)
    try:
        return from_hf(settings, tensors, image_size=image_size)
    except StateDictError:
        raise
    except (KeyError, ValueError) as error:
        raise ValueError(f"{Path(path) / CONFIG_FILE}: {error}") from error


def from_hf(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None = None,
) -> Loaded:
    """Our parameters of both towers from those of a `SiglipModel`.

    Args:
      settings: its config.json.
      tensors: {name: array}.
      image_size: see `from_big_vision`.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: another kind of model.
    """
    if settings.get("model_type") != "siglip":
        raise ValueError(f"model_type {settings.get('model_type')!r} is not siglip")
    config = TwoTowerConfig(hf_vision.config_of(settings), _hf_text_config(settings))

    def to_ours(path: entries.Path, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        below = path[1:] if path[0] in ("image", "text") else path
        return hf_layouts.to_ours(below, arrays, shape)

    loaded = _load(
        config,
        _hf_sources(config),
        tensors,
        to_ours,
        unneeded=[r"(vision|text)_model\.embeddings\.position_ids"],
        layout=" as ours",
    )
    if image_size is None:
        return loaded
    wanted = dataclasses.replace(config.image, image_size=image_size)
    image, notes = hf_vision.resized(loaded.params["image"], config.image, wanted)
    return Loaded(
        dataclasses.replace(config, image=wanted),
        loaded.params | {"image": image},
        dataclasses.replace(loaded.report, notes=notes),
    )


def to_hf(config: TwoTowerConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our unrolled parameters as tensors of a `SiglipModel`.

    Raises:
      ValueError: a model of another form.
    """
    table = _hf_sources(config)
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    result: dict[str, np.ndarray] = {}
    for tower in ("image", "text"):
        below = {path[1:]: names for path, names in table.items() if path[0] == tower}
        values = {path[1:]: value for path, value in flat.items() if path[0] == tower}
        result |= hf_layouts.from_ours(below, values, "siglip model")
    for path, (name,) in _HF_SCALARS.items():
        if path not in flat:
            raise ValueError(f"not of the form of a siglip model: it needs {path[0]}")
        result[name] = flat[path].reshape(1)
    return result


def write_hf(
    directory: str | Path,
    config: TwoTowerConfig,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes our unrolled parameters as a folder of a `SiglipModel`.

    Raises:
      ValueError: a model of another form.
      FileExistsError: the directory exists and `overwrite` is False.
    """
    text = config.text
    sizes = dict(
        model_type="siglip_text_model",
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_tokens,
        projection_size=text.out_dim,
    )
    settings = dict(
        model_type="siglip",
        architectures=["SiglipModel"],
        text_config=hf_vision.block_settings(text) | sizes,
        vision_config=hf_vision.settings_of("siglip", config.image),
    )
    files.write_folder(directory, to_hf(config, params).items(), settings, overwrite=overwrite)


def _big_vision_names(config: TwoTowerConfig) -> dict[str, entries.Path]:
    image, text = big_vision.names(config.image), big_vision.text_names(config.text)
    scalars = {"t": ("log_temperature",)} | ({} if config.bias is None else {"b": ("bias",)})
    return (
        {_IMAGE + name: ("image", *path) for name, path in image.items()}
        | {_TEXT + name: ("text", *path) for name, path in text.items()}
        | scalars
    )


def _hf_text_config(settings: Mapping[str, Any]) -> TextTowerConfig:
    text = settings.get("text_config", {})
    width = text.get("hidden_size", 768)
    return TextTowerConfig(
        width,
        text.get("num_hidden_layers", 12),
        text.get("num_attention_heads", 12),
        text.get("intermediate_size", 3072),
        vocab_size=text.get("vocab_size", 32_000),
        max_tokens=text.get("max_position_embeddings", 64),
        out_dim=text.get("projection_size") or width,
        activation=hf_vision.activation_of(text, "gelu_pytorch_tanh"),
        layer_norm_eps=text.get("layer_norm_eps", 1e-6),
    )


def _hf_sources(config: TwoTowerConfig) -> dict[entries.Path, tuple[str, ...]]:
    image = hf_layouts.sources(hf_layouts.FAMILIES["siglip"], config.image)
    text = hf_layouts.text_sources(config.text)
    return (
        {("image", *p): tuple(_HF_IMAGE + name for name in names) for p, names in image.items()}
        | {("text", *p): tuple(_HF_TEXT + name for name in names) for p, names in text.items()}
        | _HF_SCALARS
    )


def _load(
    config: TwoTowerConfig,
    sources: entries.Sources,
    tensors: Mapping[str, Any],
    to_ours: entries.ToOurs,
    notes: tuple[str, ...] = (),
    **options: Any,
) -> Loaded:
    unrolled = dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, scan_layers=False),
        text=dataclasses.replace(config.text, scan_layers=False),
    )
    shapes = {k: v.shape for k, v in flatten(nn.unbox(abstract_params(unrolled))).items()}
    params, report = entries.match(sources, tensors, shapes, to_ours, **options)
    report = dataclasses.replace(report, notes=notes)
    if not report.ok:
        raise StateDictError(report)
    return Loaded(config, unflatten(params), report)
