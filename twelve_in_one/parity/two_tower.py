"""Compares models of two towers with arrays recorded from big_vision's SigLIP.

Their layout: `param/img/*`, `param/txt/*`, `param/t` and `param/b`, `in/image` and `in/text`,
outputs, both losses with gradients, and the text tower's old layout with two position tables.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.convert import two_tower as convert
from twelve_in_one.models.two_tower import TwoTower, TwoTowerConfig, stack_towers, unstack_towers
from twelve_in_one.parity.fixture import Check, absolute, relative
from twelve_in_one.parity.vit import GRADIENT_RTOL, KEY_BIAS_ATOL, POOLS, below
from twelve_in_one.tasks import losses

Arrays = Mapping[str, np.ndarray]
TOKENS_ATOL, LOGITS_ATOL, UNIT_ATOL, LOSS_ATOL = 3e-5, 1e-5, 3e-6, 1e-6
_TEXT_POOLS = {"last": "last", "first": "first", "gap": "mean", "mean": "mean", "map": "attention"}


def is_two_tower(arrays: Arrays) -> bool:
    """Whether a fixture is of this kind."""
    return {"param/img/embedding/kernel", "param/txt/Embed_0/embedding"} <= set(arrays)


def compare(arrays: Arrays, **overrides: Any) -> Iterator[Check]:
    """Every comparison that the fixture's arrays allow.

    Args:
      arrays: of the file.
      **overrides: fields of both towers to run with (dtype, scan_layers, remat).

    Raises:
      ValueError: parameters that are not those of two towers, or an unknown output.
    """
    facts = json.loads(str(arrays["config_json"]))
    fields = {"image": dict(overrides), "text": dict(overrides)}
    for tower, theirs, known in (("image", "img", POOLS), ("text", "txt", _TEXT_POOLS)):
        pool = facts.get(theirs, {}).get("pool_type")
        if pool:
            fields[tower]["pool"] = known[pool]
    params = below(arrays, "param/")
    loaded = convert.from_big_vision(params, image_size=tuple(facts["image"]), **fields)
    ours = _outputs(loaded.config, stack_towers(loaded.config, loaded.params), arrays)
    for name, theirs in arrays.items():
        if name.split("/")[0] in ("out", "loss", "grad"):
            if name not in ours:
                raise ValueError(f"{name}: no such output of two towers")
            yield _check(name, ours[name], theirs)
    for loss, theirs in below(arrays, "grad_norm/").items():
        for parameter, norm in zip(arrays["grad_norm_names"].tolist(), theirs, strict=True):
            gradient = ours[f"grad/{loss}/{parameter}"]
            name = f"grad_norm/{loss}/{parameter}"
            yield _check(name, np.linalg.norm(gradient.astype(np.float64)), norm)
    yield from _compare_old(arrays, params, fields)


def _check(name: str, ours: Any, theirs: np.ndarray) -> Check:
    kind, _, rest = name.partition("/")
    if name.endswith("key/bias"):
        return absolute(name, ours, theirs, KEY_BIAS_ATOL)
    if kind in ("grad", "grad_norm"):
        return relative(name, ours, theirs, GRADIENT_RTOL)
    unit = UNIT_ATOL if rest in ("zimg", "ztxt") else LOGITS_ATOL
    atol = LOSS_ATOL if kind == "loss" else TOKENS_ATOL if "/" in rest else unit
    return absolute(name, ours, theirs, atol)


def _outputs(config: TwoTowerConfig, params: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """All our outputs that a file may hold, under its names."""
    model = TwoTower(config)

    def losses_of(params: Any) -> tuple[dict[str, jax.Array], Any]:
        vectors, aux = model.apply({"params": params}, arrays["in/image"], arrays["in/text"])
        logits = vectors.logits()
        rows = jnp.ones(len(logits), bool)
        values = {
            "sigmoid": losses.sigmoid_contrast_loss(logits, rows).mean_loss(),
            "softmax": losses.softmax_contrast_loss(logits, rows).mean_loss(),
            "softmax_i2t": jnp.mean(losses.one_way_contrast(logits, rows)),
            "softmax_t2i": jnp.mean(losses.one_way_contrast(logits.T, rows)),
        }
        return values, (vectors, aux)

    @jax.jit
    def run(params: Any) -> Any:
        values, pullback, (vectors, aux) = jax.vjp(losses_of, params, has_aux=True)
        zero = jax.tree.map(jnp.zeros_like, values)
        gradients = {
            name: pullback(zero | {name: jnp.ones_like(values[name])})[0]
            for name in ("sigmoid", "softmax")
        }
        return values, gradients, vectors, aux

    values, gradients, vectors, aux = run(params)
    image = aux["image/logits"] if config.image.num_classes else aux["image/pooled"]
    found = {
        "out/zimg": vectors.image,
        "out/ztxt": vectors.text,
        "out/t": vectors.temperature[None],
        "out/b": vectors.bias[None],
        "out/logits": vectors.logits(),
        "out/img/norm": jnp.linalg.norm(image, axis=1, keepdims=True),
        "out/txt/norm": jnp.linalg.norm(aux["text/vector"], axis=1, keepdims=True),
        "out/img/encoded": aux["image/tokens"],
        "out/img/head_input": aux["image/pooled"],
        "out/txt/embedded": aux["text/embedded"],
        "out/txt/transformed": aux["text/states"],
        "out/txt/pre_logits": aux["text/pooled"],
    }
    found |= {f"loss/{name}": value for name, value in values.items()}
    for name, gradient in gradients.items():
        flat = convert.to_big_vision(config, unstack_towers(config, gradient))
        found |= {f"grad/{name}/{parameter}": value for parameter, value in flat.items()}
    return {name: np.asarray(value) for name, value in found.items()}


def _compare_old(arrays: Arrays, params: Arrays, fields: Mapping[str, Any]) -> Iterator[Check]:
    """Checks that text towers with two position tables are loaded with their sum."""
    old = below(arrays, "old_param/")
    if not old:
        return
    size = tuple(json.loads(str(arrays["config_json"]))["image"])
    loaded = convert.from_big_vision(params | old, image_size=size, **fields)
    ours = convert.to_big_vision(loaded.config, loaded.params)
    for name, theirs in below(arrays, "old_expect/").items():
        yield absolute(f"old_expect/{name}", ours[name], theirs, 0.0)
