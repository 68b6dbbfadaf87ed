"""MaMMUT of open_clip (the LAION fork's `MaMMUT`), in and out; see `open_clip.py`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.convert import entries, open_clip
from twelve_in_one.convert.big_vision import Loaded
from twelve_in_one.convert.hf_vision import resized
from twelve_in_one.models import mammut
from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.models.mammut import MammutConfig
from twelve_in_one.models.mammut_sizes import cross_spacing, open_form
from twelve_in_one.models.pre_norm import unstack_blocks

_TEXT_BLOCK, _CROSS_BLOCK = "text.resblocks.{}.", "text.cross_attn.{}."
_TOKENS, _PROJECTION = "text.token_embedding.weight", "visual.proj"
_Settings = Mapping[str, Any]
_Tensors = Mapping[str, Any]
_Sources = dict[entries.Path, tuple[str, ...]]


def mammut_config(
    tensors: _Tensors,
    settings: _Settings | None,
    *,
    encoder: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    **fields: Any,
) -> tuple[MammutConfig, tuple[str, ...]]:
    """The config of a MaMMUT, and notes of what was assumed; see `from_open_clip`.

    Raises:
      ValueError: insufficient tensors, or a config that does not fit them.
    """
    positions, bridge = "text.positional_embedding", open_clip.BRIDGE
    logits, up = "text.text_projection", f"{_CROSS_BLOCK.format(0)}mlp.c_fc.weight"
    open_clip.need(tensors, bridge, positions, _TOKENS, logits, up, _PROJECTION)
    pooling = open_clip.usual_pooling(tensors, settings)
    image, notes = open_clip.encoder_config(
        open_clip.visual(tensors), settings, **pooling | dict(encoder or {})
    )
    if image.pool != "all":
        raise ValueError("MaMMUT's vector of an image is the mean over all tokens: avg_all")
    model = open_clip.model_settings(settings)
    own, width = model.get("text_cfg", {}), tensors[positions].shape[1]
    layers, crossed = (open_clip.depth(tensors, name) for name in (_TEXT_BLOCK, _CROSS_BLOCK))
    spacing = layers // crossed
    if len(range(0, layers, spacing)) != crossed:
        raise ValueError(f"{crossed} cross-attentions cannot be spread over {layers} layers")
    ratio = own.get("cross_attn_ratio")
    if ratio is not None and cross_spacing(layers, ratio) != spacing:
        raise ValueError(
            f"cross_attn_ratio {ratio} of the config is not that of the file, which has {crossed} "
            f"cross-attentions for {layers} layers"
        )
    heads = own.get("heads", 8) if settings is not None else max(1, width // 64)
    if settings is None:
        notes += (f"no {open_clip.CONFIG_FILE}: {heads} heads in the decoder",)
    vocab = tensors[logits].shape[1]
    tower = dict(
        mlp_dim=tensors[up].shape[0],
        vocab_size=vocab,
        max_tokens=tensors[positions].shape[0],
        encoder_dim=tensors[bridge].shape[1],
        cross_every=spacing,
        activation=open_clip.activation_of(model),
        layer_norm_eps=open_clip.eps_of(own),
    )
    mean, std = open_clip.pixels_of(settings)
    options = dict(
        embed_dim=tensors[_PROJECTION].shape[1],
        pixel_mean=mean,
        pixel_std=std,
        pad_id=own.get("pad_id", 0),
        start_id=vocab - 2,
        eos_id=vocab - 1,
    )
    second = _TEXT_BLOCK.format(0) + "ln_2.weight" in tensors
    config = open_form(
        (image.hidden_dim, image.num_layers, image.num_heads),
        (width, layers, heads),
        second,
        {},
        tower | dict(decoder or {}),
        **options | fields,
    )
    return dataclasses.replace(config, encoder=image), notes


def mammut_sources(config: MammutConfig) -> _Sources:
    """{our path: names} of a whole MaMMUT.

    Raises:
      ValueError: a model that open_clip's MaMMUT cannot hold.
    """
    image, text = config.encoder, config.decoder
    fits = (
        image.class_token and image.pre_norm and image.norm_pooled and image.pool == "all",
        image.stem == "patches" and not (image.patch_bias or image.num_registers),
        text.attention_biases and text.block_biases and text.norm_encoder,
        text.cross_mlp != "shared" and not (text.tied_logits or text.logits_bias),
        config.image_projection and not config.text_projection,
        text.encoder_dim == text.hidden_dim,
    )
    if not all(fits):
        raise ValueError(
            "not of the form of open_clip's MaMMUT, see models/mammut_sizes.py, open_form"
        )
    found: _Sources = {
        ("encoder", *path): tuple(open_clip.VISUAL + name for name in names)
        for path, names in open_clip.encoder_sources(image).items()
    }
    found |= {
        ("log_scale",): ("logit_scale",),
        ("bridge", "kernel"): (open_clip.BRIDGE,),
        ("image_map", "kernel"): (_PROJECTION,),
        ("decoder", "token", "embedding"): (_TOKENS,),
        ("decoder", "position"): ("text.positional_embedding",),
        ("decoder", "logits", "kernel"): ("text.text_projection",),
        **open_clip.norm(("decoder", "final_norm"), "text.ln_final"),
    }
    for i in range(text.num_layers):
        block, theirs = ("decoder", f"block_{i}"), _TEXT_BLOCK.format(i)
        found |= open_clip.attention(block, theirs, "self_attention")
        crossed = i in text.cross_layers
        if not crossed or text.cross_mlp == "second":
            found |= open_clip.mlp(block, theirs, "mlp")
        if crossed:
            theirs = _CROSS_BLOCK.format(text.cross_layers.index(i))
            found |= open_clip.attention(block, theirs, "cross_attention")
            found |= open_clip.norm((*block, "encoder_norm"), f"{theirs}ln_1_kv")
            found |= open_clip.mlp(block, theirs, "cross_mlp")
    return found


def from_open_clip(
    tensors: _Tensors,
    settings: _Settings | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    allow_unexpected: Iterable[str] = (),
    **fields: Any,
) -> Loaded:
    """Our parameters of a MaMMUT, with a `MammutConfig`.

    Args:
      tensors: {name: array}, see `read_tensors`.
      settings: the model's config, or None.
      image_size: see `encoder_from_open_clip`.
      allow_unexpected: regular expressions of entries that need not be known.
      **fields: fields of `MammutConfig` to override; `encoder` and `decoder` are dicts of theirs.

    Returns:
      The model. Rows of the token table beyond the vocabulary are left out; the report notes it.

    Raises:
      StateDictError: missing or unexpected entries or wrong shapes; carries the report.
      ValueError: no MaMMUT, or a config that does not fit it.
    """
    config, notes = mammut_config(tensors, settings, **fields)
    vocab = config.decoder.vocab_size
    surplus = tensors[_TOKENS].shape[0] - vocab
    if surplus > 0:
        tensors = {**tensors, _TOKENS: np.asarray(tensors[_TOKENS])[:vocab]}
        notes += (f"left out {surplus} rows of {_TOKENS} beyond the vocabulary",)
    unrolled = dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, scan_layers=False),
        decoder=dataclasses.replace(config.decoder, scan_layers=False),
    )
    shapes = {k: v.shape for k, v in flatten(nn.unbox(mammut.abstract_params(unrolled))).items()}
    params, report = entries.match(
        mammut_sources(config),
        tensors,
        shapes,
        open_clip.to_ours,
        unneeded=allow_unexpected,
        layout=" as ours",
    )
    if not report.ok:
        raise StateDictError(report)
    tree = unflatten(params)
    if image_size is not None:
        wanted = dataclasses.replace(config.encoder, image_size=image_size)
        tree["encoder"], more = resized(tree["encoder"], config.encoder, wanted)
        config, notes = dataclasses.replace(config, encoder=wanted), notes + more
    return Loaded(config, tree, dataclasses.replace(report, notes=notes))


def to_open_clip(config: MammutConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters as tensors of open_clip's MaMMUT.

    The position of the class token stays added to the token: its row is zero.

    Raises:
      ValueError: a model of another form.
    """
    image = config.encoder
    if image.scan_layers:
        params = {**params, "encoder": unstack_blocks(image, params["encoder"])}
    table, flat = mammut_sources(config), flatten(params)
    if set(table) != set(flat):
        odd = sorted("/".join(path) for path in set(table) ^ set(flat))
        raise ValueError(f"not of the form of open_clip's MaMMUT: {', '.join(odd[:5])}")
    result: dict[str, np.ndarray] = {}
    for path, (name, *_) in table.items():
        array = open_clip.to_theirs(path, np.asarray(flat[path], np.float32))
        if name in result:  # in_proj: the query's part exists, the key's and the value's follow
            array = np.concatenate([result[name], array])
        result[name] = array.copy(order="C")
    return result


def settings_of(config: MammutConfig) -> dict[str, Any]:
    """The `open_clip_config.json` of a MaMMUT.

    Raises:
      ValueError: a setting that open_clip's config cannot express.
    """
    image, text = config.encoder, config.decoder
    rows, columns = image.image_size
    ratios = [r for r in range(1, text.num_layers + 1) if _spacing(text, r) == text.cross_every]
    if not ratios:
        raise ValueError(f"cross_every {text.cross_every}: no cross_attn_ratio of open_clip has it")
    if image.activation != text.activation or image.activation not in ("gelu", "quick_gelu"):
        raise ValueError(
            f"activations {image.activation} and {text.activation} are not open_clip's"
        )
    vision = dict(
        image_size=rows if rows == columns else [rows, columns],
        patch_size=image.patch_size,
        layers=image.num_layers,
        width=image.hidden_dim,
        head_width=image.hidden_dim // image.num_heads,
        mlp_ratio=image.mlp_dim / image.hidden_dim,
        pool_type="avg_all",
        final_ln_after_pool=True,
        output_tokens=True,
    )
    tower = dict(
        context_length=text.max_tokens,
        vocab_size=text.vocab_size,
        width=text.hidden_dim,
        heads=text.num_heads,
        layers=text.num_layers,
        mlp_ratio=text.mlp_dim / text.hidden_dim,
        cross_attn_ratio=ratios[0],
        has_mlp=text.cross_mlp == "second",
        does_full_decoding=True,
        output_tokens=True,
    )
    for part, numbers in ((image, vision), (text, tower)):
        if part.layer_norm_eps != open_clip.EPS:
            numbers["norm_kwargs"] = {"eps": part.layer_norm_eps}
    model: dict[str, Any] = dict(embed_dim=config.embed_dim, vision_cfg=vision, text_cfg=tower)
    if image.activation == "quick_gelu":
        model["quick_gelu"] = True
    pixels = dict(mean=list(config.pixel_mean), std=list(config.pixel_std))
    return {"model_cfg": model, "preprocess_cfg": pixels}


def _spacing(config: TextDecoderConfig, ratio: int) -> int:
    try:
        return cross_spacing(config.num_layers, ratio)
    except ValueError:
        return 0
