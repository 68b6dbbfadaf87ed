"""MaMMUT's published sizes, in the paper's form and in that of open_clip."""

from typing import Any

from twelve_in_one.models.decoder_block import TextDecoderConfig
from twelve_in_one.models.mammut import MammutConfig
from twelve_in_one.models.vit import ViTConfig, named_vit

# The encoder; width, layers, heads and feed-forward width of the decoder. Half of its layers have
# cross-attention.
_PAPER = {
    "large": ("H/14", (1536, 18, 24, 12_288)),
    "ablation": ("B/16", (1024, 8, 16, 4096)),
}
# Encoder: width, layers, heads. Decoder: width, layers, heads. Whether every self-attention has a
# feed-forward block.
_OPEN = {
    "S": ((384, 12, 6), (384, 12, 6), False),
    "M": ((512, 12, 8), (512, 12, 8), False),
    "B": ((768, 12, 12), (512, 12, 8), False),
    "L": ((1024, 24, 16), (768, 12, 12), True),
    "H": ((1280, 32, 16), (1024, 24, 16), True),
}
_OPEN_B16 = ((768, 12, 12), (768, 12, 12), True)
_OPEN_PATCHES = (14, 16, 32)
_PREFIX = "open-"
# Of CLIP's pixels.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def named_mammut(name: str, **fields: Any) -> MammutConfig:
    """A published size.

    Args:
      name: "large" or "ablation", of the paper, or "open-L/14" and the like, of open_clip.
      **fields: any of `MammutConfig`'s; `encoder` and `decoder` are dicts of the fields to change.

    Raises:
      ValueError: no such size, or incompatible fields.
    """
    encoder, decoder = fields.pop("encoder", {}), fields.pop("decoder", {})
    if name in _PAPER:
        vit, (width, layers, heads, mlp) = _PAPER[name]
        found = named_vit(vit, **dict(activation="gelu") | encoder)
        return paper_form(found, (width, layers, heads, mlp), decoder, **fields)
    size, _, patch = name.removeprefix(_PREFIX).partition("/")
    known = name.startswith(_PREFIX) and size in _OPEN and patch.isdecimal()
    if not known or int(patch) not in _OPEN_PATCHES:
        sizes = ", ".join(f"{_PREFIX}{size}/PATCH" for size in _OPEN)
        raise ValueError(
            f"no MaMMUT {name!r}: one of {', '.join(_PAPER)}, {sizes} with PATCH one of "
            f"{', '.join(map(str, _OPEN_PATCHES))}"
        )
    image, text, second = _OPEN_B16 if (size, patch) == ("B", "16") else _OPEN[size]
    encoder = dict(patch_size=int(patch)) | encoder
    return open_form(image, text, second, encoder, decoder, **fields)


def paper_form(
    encoder: ViTConfig, sizes: tuple[int, int, int, int], decoder: dict[str, Any], **fields: Any
) -> MammutConfig:
    """A model in the paper's form; what it leaves open is as in open_clip.

    Args:
      encoder: the Vision Transformer.
      sizes: width, layers, heads and feed-forward width of the decoder.
      decoder: its other fields.
      **fields: of `MammutConfig`.
    """
    width = sizes[0]
    defaults = dict(
        encoder_dim=width,
        cross_every=2,
        cross_mlp="second",
        attention_biases=True,
        norm_encoder=True,
        logits_bias=False,
        activation="gelu",
    )
    return MammutConfig(
        encoder, TextDecoderConfig(*sizes, **defaults | decoder), **dict(embed_dim=width) | fields
    )


def open_form(
    image: tuple[int, int, int],
    text: tuple[int, int, int],
    second: bool,
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    **fields: Any,
) -> MammutConfig:
    """A model in open_clip's form.

    Args:
      image: width, layers and heads of the encoder.
      text: width, layers and heads of the decoder.
      second: whether self-attention in front of a cross-attention has a feed-forward block of its
        own (their `has_mlp`).
      encoder: other fields of the encoder.
      decoder: other fields of the decoder.
      **fields: of `MammutConfig`.
    """
    numerics = dict(activation="gelu", layer_norm_eps=1e-5)
    vit = numerics | dict(
        pool="all", class_token=True, patch_bias=False, pre_norm=True, norm_pooled=True
    )
    width = text[0]
    tower = numerics | dict(
        vocab_size=49_408,
        max_tokens=77,
        encoder_dim=width,
        cross_every=2,
        cross_mlp="second" if second else "own",
        attention_biases=True,
        norm_encoder=True,
        logits_bias=False,
    )
    options = dict(
        embed_dim=width,
        image_projection=True,
        mask_padding=False,
        contrast="softmax",
        skip_same_text=False,
        temperature=0.07,
        scale_limits=(1.0, 100.0),
        caption_weight=2.0,
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
        pad_id=0,
        eos_id=49_407,
        start_id=49_406,
    )
    return MammutConfig(
        ViTConfig(*image, **dict(mlp_dim=4 * image[0]) | vit | encoder),
        TextDecoderConfig(*text, **dict(mlp_dim=4 * width) | tower | decoder),
        **options | fields,
    )


def cross_spacing(num_layers: int, ratio: int) -> int:
    """Layers from one cross-attention to the next in open_clip, from its `cross_attn_ratio`.

    Raises:
      ValueError: a ratio that open_clip refuses for this number of layers.
    """
    count = num_layers // ratio if ratio > 0 else 0
    if not count or -(-num_layers // (num_layers // count)) != count:
        raise ValueError(
            f"cross_attn_ratio {ratio} cannot be spread evenly over {num_layers} layers"
        )
    return num_layers // count
