"""Compares MaMMUT with arrays recorded from open_clip's (the LAION fork).

Their layout: `param/NAME` of the state dict, `in/image` (NCHW, pixels as the model takes them) and
`in/text` (with its start), outputs of both passes, both losses, gradients of their sum, and texts
written greedily.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.convert import mammut as convert
from twelve_in_one.models import generate
from twelve_in_one.models.mammut import Mammut, MammutConfig
from twelve_in_one.models.pre_norm import stack_blocks
from twelve_in_one.models.reading import Context, Options
from twelve_in_one.parity.fixture import Check, absolute, relative
from twelve_in_one.parity.vit import GRADIENT_RTOL, below
from twelve_in_one.tasks import contrastive, losses

Arrays = Mapping[str, np.ndarray]
TOKENS_ATOL, UNIT_ATOL, LOSS_ATOL = 3e-5, 1e-6, 1e-5
_UNIT = ("image_embed", "text_embed")


def is_mammut(arrays: Arrays) -> bool:
    """Whether a fixture is of this kind."""
    return "param/map_viz2txt_kv" in arrays


def compare(arrays: Arrays, **overrides: Any) -> Iterator[Check]:
    """Every comparison that the fixture's arrays allow.

    Args:
      arrays: of the file.
      **overrides: fields of both towers to run with (dtype, remat; scan_layers only of the encoder,
        as the decoder's blocks differ).

    Raises:
      ValueError: parameters that are not MaMMUT's, or an unknown output.
    """
    settings = json.loads(str(arrays["config_json"]))
    starts = np.unique(arrays["in/text"][:, 0])
    if len(starts) != 1:
        raise ValueError(f"in/text: texts begin with different tokens {starts.tolist()}")
    text = {name: value for name, value in overrides.items() if name != "scan_layers"}
    loaded = convert.from_open_clip(
        below(arrays, "param/"),
        settings,
        encoder=overrides,
        decoder=text,
        # Pixels were recorded as the model takes them.
        pixel_mean=(0.5,) * 3,
        pixel_std=(0.5,) * 3,
        start_id=int(starts[0]),
    )
    ours = _outputs(loaded.config, loaded.params, arrays)
    for name, theirs in arrays.items():
        if name.split("/")[0] in ("out", "grad"):
            if name not in ours:
                raise ValueError(f"{name}: no such output of a MaMMUT")
            yield _check(name, ours[name], theirs)
    names = arrays.get("grad_norm_names", np.empty(0)).tolist()
    for parameter, norm in zip(names, arrays.get("grad_norms", ()), strict=True):
        gradient = ours[f"grad/{parameter}"].astype(np.float64)
        yield _check(f"grad_norm/{parameter}", np.linalg.norm(gradient), norm)


def _check(name: str, ours: Any, theirs: np.ndarray) -> Check:
    kind, leaf = name.split("/")[0], name.split("/")[-1]
    if theirs.dtype.kind in "iu":  # tokens
        return absolute(name, ours, theirs, 0.0)
    if kind in ("grad", "grad_norm"):
        return relative(name, ours, theirs, GRADIENT_RTOL)
    if leaf in _UNIT:
        return absolute(name, ours, theirs, UNIT_ATOL)
    return absolute(name, ours, theirs, LOSS_ATOL if leaf.endswith("_loss") else TOKENS_ATOL)


def _outputs(config: MammutConfig, params: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """All our outputs that a file may hold, under its names; gradients only if it has some."""
    text = jnp.asarray(arrays["in/text"])
    images = jnp.transpose(jnp.asarray(arrays["in/image"]), (0, 2, 3, 1))
    # With a label behind the last, logits are those of the whole text; it does not count.
    labels, rows = jnp.pad(text[:, 1:], ((0, 0), (0, 1))), jnp.ones(len(text), bool)
    real = jnp.pad(text[:, 1:] != config.pad_id, ((0, 0), (0, 1)))

    def passes(model: Mammut) -> Any:
        image = model.encode(images)
        logits = model.score(image.tokens, {"tokens": labels})
        return image, model.embed_text(text[:, 1:]), model.scale(), logits

    def losses_of(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
        (image, vectors, scale, logits), seen = Mammut(config).apply(
            {"params": params},
            method=passes,
            capture_intermediates=lambda _, name: name in ("__call__", "read"),
            mutable=["intermediates"],
        )
        seen = seen["intermediates"]
        (tokens, aux), (written, read) = seen["encoder"]["__call__"][0], seen["decoder"]["read"]
        contrast = contrastive.contrastive_loss(
            image.embedding, vectors, scale, rows, form="softmax"
        ).sums.mean_loss()
        caption = losses.sequence_loss(logits, labels, real, rows, per_token=True).mean_loss()
        found = {
            "image_tokens": tokens,
            "image_pooled": aux["pooled"] @ params["image_map"]["kernel"],
            "image_embed": image.embedding,
            "text_hidden_contrastive": read[0],
            "text_embed": vectors,
            "logits_full": logits,
            "logits_train": logits[:, :-1],
            "labels": labels[:, :-1],
            "logit_scale_exp": scale,
            "similarity": scale * image.embedding @ vectors.T,
            "contrastive_loss": contrast,
            "caption_loss": caption,
        }
        crossed = config.decoder.cross_layers
        for i in range(config.decoder.num_layers):
            found[f"hidden/contrastive/block{i}"] = read[1][f"block_{i}/out"]
            stream = written[1][f"block_{i}/{'before_cross' if i in crossed else 'out'}"]
            found[f"hidden/generative/block{i}"] = stream[:, :-1]
        for j, i in enumerate(crossed):
            found[f"hidden/generative/cross{j}"] = written[1][f"block_{i}/out"][:, :-1]
        return contrast + caption, (found, image.tokens)

    differentiated = any(name.startswith("grad") for name in arrays)

    @jax.jit
    def run(params: Any) -> Any:
        if differentiated:
            gradient, (found, bridged) = jax.grad(losses_of, has_aux=True)(params)
        else:
            gradient, (_, (found, bridged)) = None, losses_of(params)
        if "out/greedy_tokens" in arrays:
            length = arrays["out/greedy_tokens"].shape[1] - 1
            # Recorded without stopping: no token ends a text.
            options = Options(config.start_id, -1, config.pad_id, max_tokens=length)
            texts = generate.greedy(config.decoder, params["decoder"], Context(bridged), options)
            found["greedy_tokens"] = jnp.pad(
                texts.tokens, ((0, 0), (1, 0)), constant_values=config.start_id
            )
        return found, gradient

    vit = config.encoder
    if vit.scan_layers:
        params = params | {"encoder": stack_blocks(vit, params["encoder"])}
    found, gradient = run(params)
    named = {f"out/{name}": np.asarray(value) for name, value in found.items()}
    if not differentiated:
        return named
    flat = convert.to_open_clip(config, gradient)
    # The class token has a position there, which is added to it.
    flat["visual.positional_embedding"][0] = flat["visual.class_embedding"]
    return named | {f"grad/{name}": value for name, value in flat.items()}
