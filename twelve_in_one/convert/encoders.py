"""Image encoders of others as the encoder that a run begins with (`init_from`).

Our systems see pixels in -1 ... 1. An encoder that was trained on pixels with another mean and
standard deviation gets them folded into its patch embedding, which changes nothing else.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.convert import (
    big_vision,
    efficientnet,
    files,
    hf_vision,
    onnx_vision,
    open_clip,
)
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.models.vit import ViTConfig
from twelve_in_one.systems.image_classifier import ImageClassifierConfig, ImageClassifierSystem

# CapPa's and SigLIP's image towers are below a prefix.
_PREFIXES = ("img/", "encoder/", "")
_HEADS = ("classifier", "representation")
PACKAGED = "efficientnet-lite0"  # the name of the encoder that a package brings


def read(
    path: Path,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[ImageClassifierSystem, dict[str, Any], Report]:
    """An encoder, as a system without classes.

    Args:
      path: an .npz of big_vision (a ViT, or SigLIP's or CapPa's image tower), an .onnx file, a
        folder of Hugging Face with config.json and model.safetensors, a state dict (.pt, .pth, .bin
        or .safetensors) of open_clip (a CLIP's or MaMMUT's image encoder), with its config beside
        it if there is one, or of EfficientNet-Lite0, or `PACKAGED` for that of the extra "photos".
      image_size: side of the pictures that it will see; positions are resized. None takes that of
        its training.
      mean: of the pixels (0 to 1) that it was trained on, per channel; None takes what the config
        says, else CLIP's for open_clip and one half for others.
      std: their standard deviation, in the same way.

    Returns:
      The system, its parameters and the report of every entry.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: not such a file; names it.
      OSError: it cannot be read.
      ImportError: the package of `PACKAGED` is not installed.
    """
    is_state_dict = path.suffix in (*files.TORCH_SUFFIXES, ".safetensors")
    if str(path) == PACKAGED or (
        is_state_dict and efficientnet.FIRST_ENTRY in files.read_state_dict(path)
    ):
        if image_size is not None or mean is not None or std is not None:
            raise ValueError(f"{path}: EfficientNet-Lite0 has a size and pixels of its own")
        loaded = efficientnet.read(None if str(path) == PACKAGED else path)
        return _system_of(loaded)
    size = None if image_size is None else (image_size, image_size)
    if path.suffix == ".npz":
        arrays = big_vision.read_npz(path)
        prefix = next(p for p in _PREFIXES if any(name.startswith(p) for name in arrays))
        loaded = big_vision.from_big_vision(arrays, prefix=prefix, image_size=size)
    elif path.suffix == ".onnx":
        loaded = onnx_vision.read(path, image_size=size)
    elif is_state_dict:
        tensors, known = open_clip.read_tensors(path)
        try:
            loaded = open_clip.encoder_from_open_clip(tensors, known, image_size=size)
        except StateDictError:
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        clip_mean, clip_std = open_clip.pixels_of(known)
        mean, std = mean or clip_mean, std or clip_std
    elif path.is_dir():
        loaded = hf_vision.read(path, image_size=size)
        settings = path / "preprocessor_config.json"
        if settings.is_file():
            known = read_json(settings, dict)
            mean = mean or known.get("image_mean")
            std = std or known.get("image_std")
    else:
        raise ValueError(
            f"{path}: an encoder is an .npz, an .onnx, a folder of Hugging Face, a .pt, .pth, .bin "
            f"or .safetensors of open_clip or EfficientNet-Lite0, or {PACKAGED}"
        )
    config = dataclasses.replace(loaded.config, representation=False)
    config, params = with_pixels(config, loaded.params, mean or (0.5,) * 3, std or (0.5,) * 3)
    if config.pool == "none":
        config = dataclasses.replace(config, pool="mean")
    return _system_of(loaded._replace(config=config, params=params))


def _system_of(loaded: Any) -> tuple[ImageClassifierSystem, dict[str, Any], Report]:
    config = dataclasses.replace(loaded.config, num_classes=0)
    params = {name: value for name, value in loaded.params.items() if name not in _HEADS}
    system = ImageClassifierSystem(ImageClassifierConfig(config))
    return system, {"encoder": params}, loaded.report


def with_pixels(
    config: ViTConfig, params: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> tuple[ViTConfig, dict[str, Any]]:
    """The encoder for pixels in -1 ... 1 instead of (pixel - mean) / std of pixels in 0 ... 1.

    Raises:
      ValueError: not three numbers each, or a standard deviation of 0.
    """
    center, scale = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if center.shape != (3,) or scale.shape != (3,) or not (scale > 0).all():
        raise ValueError(f"mean {mean} and std {std} should be three numbers each, std above 0")
    if np.array_equal(center, [0.5] * 3) and np.array_equal(scale, [0.5] * 3):
        return config, dict(params)
    patch = dict(params["patch_embedding"])
    kernel = np.asarray(patch["kernel"], np.float64)
    # With x in -1 ... 1: ((x + 1) / 2 - mean) / std = x / (2 std) + (1/2 - mean) / std
    shift = np.einsum("yxcd,c->d", kernel, (0.5 - center) / scale)
    bias = np.asarray(patch.get("bias", np.zeros(kernel.shape[-1])), np.float64) + shift
    kernel = kernel / (2 * scale)[:, None]
    folded = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return dataclasses.replace(config, patch_bias=True), {**params, "patch_embedding": folded}
