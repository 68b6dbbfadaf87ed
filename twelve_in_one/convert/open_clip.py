"""Models of open_clip: MaMMUT (the LAION fork's `MaMMUT`), and image encoders of any CLIP there.

Sizes come from the tensors; what they do not tell (heads, activation, epsilon, pooling) from the
model's config, an `open_clip_config.json` or the bare model config of open_clip. Without one it is
open_clip's usual choice, and the report says so.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert import entries, files
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.hf_vision import resized
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.models import vit
from twelve_in_one.models.mammut_sizes import CLIP_MEAN, CLIP_STD
from twelve_in_one.models.vit import ViTConfig

PREFIX = "open_clip_"
CONFIG_FILE = PREFIX + files.CONFIG_FILE
# In a folder; the first two are those of its hub.
FILES = (
    PREFIX + files.SAFETENSORS_FILE,
    PREFIX + "pytorch_model.bin",
    files.SAFETENSORS_FILE,
    "pytorch_model.bin",
)
BRIDGE = "map_viz2txt_kv"  # only MaMMUT has it
VISUAL = "visual."
EPS = 1e-5
_PATCH, _POSITIONS = "conv1.weight", "positional_embedding"
_BLOCK = "transformer.resblocks.{}."
_PARTS = ("query", "key", "value")
# Used as x @ W there, and so never transposed.
_AS_IS = {("bridge", "kernel"), ("image_map", "kernel"), ("decoder", "logits", "kernel")}
_POOLS = {"tok": "class", "avg": "mean", "avg_all": "all"}
_Settings = Mapping[str, Any]
_Tensors = Mapping[str, Any]
_Sources = dict[entries.Path, tuple[str, ...]]


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The tensors of a file, or of a folder with one, and the config beside it, or None.

    Raises:
      ValueError: a file that cannot be read; names it.
      OSError: it is missing.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])
    tensors = files.read_state_dict(path)
    if tensors and all(name.startswith("module.") for name in tensors):  # of a parallel training
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    beside = path.parent / CONFIG_FILE
    return tensors, read_json(beside, dict) if beside.is_file() else None


def usual_pooling(tensors: _Tensors, settings: _Settings | None) -> dict[str, Any]:
    """Fields of `ViTConfig` that every MaMMUT of open_clip has, where there is no config."""
    bare = settings is None and BRIDGE in tensors
    return dict(pool="all", norm_pooled=True) if bare else {}


def encoder_config(
    tensors: _Tensors, settings: _Settings | None, **fields: Any
) -> tuple[ViTConfig, tuple[str, ...]]:
    """The config of an image encoder, and notes of what was assumed.

    Args:
      tensors: names without `visual.`.
      settings: of the whole model, or None.
      **fields: fields of `ViTConfig` to override.

    Raises:
      ValueError: insufficient tensors, or a variant that the ViT does not support.
    """
    block = _BLOCK.format(0)
    needed = (_PATCH, _POSITIONS, "class_embedding", f"{block}mlp.c_fc.weight")
    need({VISUAL + name for name in tensors}, *(VISUAL + name for name in needed))
    model, notes = model_settings(settings), ()
    own = dict(model.get("vision_cfg", {}))
    width, _, patch, _ = tensors[_PATCH].shape
    if settings is None:
        heads = max(1, width // (80 if width == 1280 else 64))
        notes = (f"no {CONFIG_FILE}: {heads} heads in the image encoder, activation gelu",)
    else:
        heads = width // own.get("head_width", 64)
    pool = own.get("pool_type", "tok")
    if pool not in _POOLS:
        raise ValueError(f"pool_type {pool!r} is none of {', '.join(_POOLS)}")
    found = dict(
        image_size=_image_size(tensors[_POSITIONS].shape[0] - 1, patch, own.get("image_size")),
        patch_size=patch,
        pool=_POOLS[pool],
        class_token=True,
        patch_bias=False,
        pre_norm=True,
        norm_pooled=own.get("final_ln_after_pool", False),
        activation=activation_of(model),
        layer_norm_eps=eps_of(own),
    )
    mlp = tensors[f"{block}mlp.c_fc.weight"].shape[0]
    layers = depth(tensors, _BLOCK)
    return ViTConfig(width, layers, heads, mlp, **found | fields), notes


def encoder_sources(config: ViTConfig) -> _Sources:
    """{our path: names without `visual.`} of an image encoder."""
    found: _Sources = {
        ("patch_embedding", "kernel"): (_PATCH,),
        ("position",): (_POSITIONS,),
        ("class_token",): ("class_embedding", _POSITIONS),
        **norm(("embedding_norm",), "ln_pre"),
        **norm(("final_norm",), "ln_post"),
    }
    for i in range(config.num_layers):
        found |= attention((f"block_{i}",), _BLOCK.format(i), "attention")
        found |= mlp((f"block_{i}",), _BLOCK.format(i), "mlp")
    return found


def encoder_from_open_clip(
    tensors: _Tensors,
    settings: _Settings | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    **fields: Any,
) -> Loaded:
    """Our parameters of the image encoder of a CLIP or a MaMMUT, with a `ViTConfig`.

    Args:
      tensors: of the whole model; only `visual.*` is read.
      settings: the model's config, or None.
      image_size: rows and columns of pixels for the model; positions are resized to them. None
        takes the size that it was trained for.
      **fields: fields of `ViTConfig` to override.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: no Vision Transformer of open_clip.
    """
    found = visual(tensors)
    trained, notes = encoder_config(found, settings, **usual_pooling(tensors, settings) | fields)
    config = trained if image_size is None else dataclasses.replace(trained, image_size=image_size)
    unrolled = dataclasses.replace(trained, scan_layers=False)
    shapes = {k: v.shape for k, v in flatten(nn.unbox(vit.abstract_params(unrolled))).items()}
    params, report = entries.match(
        encoder_sources(unrolled), found, shapes, to_ours, unneeded=["proj"], layout=" as ours"
    )
    if not report.ok:
        raise StateDictError(report)
    tree, more = resized(unflatten(params), trained, config)
    return Loaded(config, tree, dataclasses.replace(report, notes=notes + more))


def model_settings(settings: _Settings | None) -> _Settings:
    """The model's part of an `open_clip_config.json`, or a bare model config."""
    return (settings or {}).get("model_cfg", settings or {})


def activation_of(model: _Settings) -> str:
    """Our name of the activation."""
    return "quick_gelu" if model.get("quick_gelu") else "gelu"


def eps_of(tower: _Settings) -> float:
    """The epsilon of a tower's norms."""
    return (tower.get("norm_kwargs") or {}).get("eps", EPS)


def need(tensors: Collection[str], *needed: str) -> None:
    """Raises a ValueError that names the needed tensors that are not there."""
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(f"not a model of open_clip: there is no {', no '.join(missing)}")


def pixels_of(settings: _Settings | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels (0 to 1) that a model was trained on."""
    stated = (settings or {}).get("preprocess_cfg", {})
    return tuple(stated.get("mean", CLIP_MEAN)), tuple(stated.get("std", CLIP_STD))


def visual(tensors: _Tensors) -> dict[str, Any]:
    """The image encoder's tensors, by their names without `visual.`."""
    return {k.removeprefix(VISUAL): v for k, v in tensors.items() if k.startswith(VISUAL)}


def depth(tensors: _Tensors, block: str) -> int:
    """Number of blocks with names like `block`, where {} is the number."""
    numbered = re.compile(re.escape(block).replace(r"\{\}", r"(\d+)"))
    return 1 + max(int(found[1]) for name in tensors if (found := numbered.match(name)))


def _image_size(patches: int, patch: int, stated: Any) -> tuple[int, int]:
    size = tuple(stated) if isinstance(stated, (list, tuple)) else (stated, stated)
    if stated is not None and size[0] // patch * (size[1] // patch) == patches:
        return size
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} positions are no square, and no image_size is stated for them")
    return (side * patch, side * patch)


def norm(ours: entries.Path, theirs: str) -> _Sources:
    """Sources of a layer norm."""
    return {(*ours, "scale"): (f"{theirs}.weight",), (*ours, "bias"): (f"{theirs}.bias",)}


def attention(block: entries.Path, theirs: str, name: str) -> _Sources:
    """Sources of an attention called `name` and of the norm before it."""
    found = norm((*block, f"{name}_norm"), f"{theirs}ln_1")
    for part in _PARTS:
        found[*block, name, part, "kernel"] = (f"{theirs}attn.in_proj_weight",)
        found[*block, name, part, "bias"] = (f"{theirs}attn.in_proj_bias",)
    found[*block, name, "out", "kernel"] = (f"{theirs}attn.out_proj.weight",)
    found[*block, name, "out", "bias"] = (f"{theirs}attn.out_proj.bias",)
    return found


def mlp(block: entries.Path, theirs: str, name: str) -> _Sources:
    """Sources of a feed-forward block called `name` and of the norm before it."""
    found = norm((*block, f"{name}_norm"), f"{theirs}ln_2")
    for ours, module in (("up", "c_fc"), ("down", "c_proj")):
        found[*block, name, ours, "kernel"] = (f"{theirs}mlp.{module}.weight",)
        found[*block, name, ours, "bias"] = (f"{theirs}mlp.{module}.bias",)
    return found


def to_ours(path: entries.Path, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of `shape`.

    Raises:
      ValueError: arrays of the wrong shape.
    """
    array = arrays[0]
    if path[-1] == "class_token":
        array = array + arrays[1][0]
    elif path[-1] == "position" and path[0] != "decoder":
        array = array[1:]  # without the class token's
    elif path[-2:] == ("patch_embedding", "kernel"):
        array = np.transpose(array, (2, 3, 1, 0))  # [D, 3, p, p] -> [p, p, 3, D]
    elif path[-1] in ("kernel", "bias") and path not in _AS_IS:
        if path[-2] in _PARTS:
            array = np.split(array, 3)[_PARTS.index(path[-2])]
        if path[-1] == "kernel":
            array = array.T
            outputs = shape[1:] if path[-2] in _PARTS else shape[-1:]
            if array.shape[1] != int(np.prod(outputs)):
                raise ValueError(array.shape)
    elif array.shape not in (shape, (1, *shape)):
        raise ValueError(array.shape)
    if array.size != int(np.prod(shape)):
        raise ValueError(array.shape)
    return np.ascontiguousarray(array).reshape(shape)


def to_theirs(path: entries.Path, array: np.ndarray) -> np.ndarray:
    """The inverse, of a part of an entry for queries, keys and values."""
    if path[-1] == "class_token":
        return array[0]
    if path[-1] == "position" and path[0] != "decoder":
        return np.pad(array, ((1, 0), (0, 0)))
    if path[-2:] == ("patch_embedding", "kernel"):
        return np.transpose(array, (3, 2, 0, 1))
    if path[-1] == "kernel" and path not in _AS_IS:
        inputs = array.shape[0] if path[-2] in _PARTS else array.size // array.shape[-1]
        return array.reshape(inputs, -1).T
    return array.reshape(-1) if path[-1] == "bias" else array
