"""Compares the Vision Transformer with arrays recorded from big_vision.

Handles files with a ViT under `param/` (all poolings at once). Their layout: `param/*`, `in/image`,
`out/POOL/*`, and, if a file has them, the scanned and the AugReg layouts of the same weights,
resized positions, losses and gradients.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import big_vision
from twelve_in_one.models.pre_norm import stack_blocks, unstack_blocks
from twelve_in_one.models.vit import ViT, ViTConfig, resize_positions
from twelve_in_one.parity.fixture import Check, absolute, relative

Arrays = Mapping[str, np.ndarray]
Load = Callable[..., big_vision.Loaded]
TOKENS_ATOL = 5e-5
GRADIENT_RTOL = 5e-5
# A key's bias changes no output (softmax cancels it): its gradient is only rounding.
KEY_BIAS_ATOL = 1e-5
POOLS = {"tok": "class", "gap": "mean", "map": "attention", "0": "first", "none": "none"}
_PARTS = {"sa": "attention", "+sa": "after_attention", "mlp": "mlp", "+mlp": "after_mlp"}


def is_vit(arrays: Arrays) -> bool:
    """Whether a fixture is of this kind."""
    return "param/embedding/kernel" in arrays


def compare(arrays: Arrays, **overrides: Any) -> Iterator[Check]:
    """Every comparison that the fixture's arrays allow.

    Args:
      arrays: of the file.
      **overrides: fields of `ViTConfig` to run with (dtype, scan_layers, remat).

    Raises:
      ValueError: parameters that are not those of a ViT.
    """
    facts = json.loads(str(arrays["config_json"]))
    size = tuple(facts["image"])
    params = below(arrays, "param/")
    load = functools.partial(_load, image_size=size, **overrides)
    for theirs, pool in POOLS.items():
        yield from _compare_outputs(load(params, pool), arrays, f"out/{theirs}/")
    yield from _compare_outputs(load(params, "mean"), arrays, "out/")
    yield from _compare_layouts(arrays, load)
    yield from _compare_resizing(arrays, load)
    for theirs in ("gap", "map"):
        yield from _compare_gradients(load(params, POOLS[theirs]), arrays, theirs)


def below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The entries that start with `prefix`, without it."""
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def _load(params: Arrays, pool: str, **fields: Any) -> big_vision.Loaded:
    fields = dict(pool=pool, class_token=pool == "class", representation=False) | fields
    return big_vision.from_big_vision(params, **fields)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: ViTConfig, params: Any, images: jax.Array) -> Any:
    return ViT(config).apply({"params": params}, images)


def _run(loaded: big_vision.Loaded, images: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = loaded.params
    if loaded.config.scan_layers:
        params = stack_blocks(loaded.config, params)
    return _forward(loaded.config, params, images)


def _compare_outputs(loaded: big_vision.Loaded, arrays: Arrays, where: str) -> Iterator[Check]:
    """Compares outputs and intermediates of one pooling."""
    tokens, aux = _run(loaded, arrays["in/image"])
    ours = {
        "encoded": tokens,
        "head_input": aux.get("pooled"),
        "logits": aux["logits"],
        "stem": aux["patches"],
        "with_posemb": aux["embedded"],
    }
    layers = 0 if loaded.config.scan_layers else loaded.config.num_layers
    for i in range(layers):
        for part, name in _PARTS.items():
            ours[f"block{i:02d}/{part}"] = aux[f"block_{i}/{name}"]
    for name, value in ours.items():
        if where + name in arrays:
            yield absolute(where + name, value, arrays[where + name], TOKENS_ATOL)


def _compare_layouts(arrays: Arrays, load: Load) -> Iterator[Check]:
    """The tanh layer, tiny embeddings (which show the norms' epsilon), scanned and old layouts."""
    params = below(arrays, "param/")
    if "out/tok_rep/logits" in arrays:
        _, aux = _run(load(params, "class", representation=True), arrays["in/image"])
        for theirs, ours in (("pre_logits", "representation"), ("logits", "logits")):
            name = f"out/tok_rep/{theirs}"
            yield absolute(name, aux[ours], arrays[name], TOKENS_ATOL)
    if "out/small/encoded" in arrays:
        tiny = ("embedding/kernel", "embedding/bias", "pos_embedding")
        small = {k: v * np.float32(2**-8) if k in tiny else v for k, v in params.items()}
        tokens, _ = _run(load(small, "mean"), arrays["in/image"])
        yield absolute("out/small/encoded", tokens, arrays["out/small/encoded"], TOKENS_ATOL)
    scanned = below(arrays, "scan_param/")
    if scanned:
        rest = {k: v for k, v in params.items() if "encoderblock" not in k}
        ours = flatten(load(rest | scanned, "mean").params)
        same = flatten(load(params, "mean").params)
        worst = max(float(np.max(np.abs(ours[path] - same[path]))) for path in same)
        yield Check("scan_param", worst, 0.0, "abs")
    old = below(arrays, "augreg_param/")
    if old:
        loaded = load(old, "class")
        cls, positions = loaded.params["class_token"], loaded.params["position"]
        yield absolute("augreg_expect/cls", cls[None], arrays["augreg_expect/cls"], 1e-6)
        expected = arrays["augreg_expect/pos_embedding"]
        yield absolute("augreg_expect/pos_embedding", positions[None], expected, 0.0)
        tokens, aux = _run(loaded, arrays["in/image"])
        for name, value in (("encoded", tokens), ("logits", aux["logits"])):
            where = f"out/augreg/{name}"
            yield absolute(where, value, arrays[where], TOKENS_ATOL)
    for name, raw in below(arrays, "bf16_param/").items():
        wide = big_vision.plain(raw).astype(np.float32)
        yield absolute(f"bf16_expect/{name}", wide, arrays[f"bf16_expect/{name}"], 0.0)


def _compare_resizing(arrays: Arrays, load: Load) -> Iterator[Check]:
    if "resize/old" not in arrays:
        return
    old = arrays["resize/old"][0]
    side = round(len(old) ** 0.5)
    for name in ("resize/new", "resize/new_down"):
        new = round(arrays[name].shape[1] ** 0.5)
        ours = resize_positions(old, (side, side), (new, new))
        yield absolute(name, ours, arrays[name][0], 1e-6)
    images, params = arrays["in/image_resized_grid"], below(arrays, "param/")
    loaded = load(
        params | {"pos_embedding": arrays["resize/old"]}, "mean", image_size=images.shape[1:3]
    )
    tokens, aux = _run(loaded, images)
    for name, value in (("encoded", tokens), ("logits", aux["logits"])):
        where = f"out/resized_grid/{name}"
        yield absolute(where, value, arrays[where], TOKENS_ATOL)


def _compare_gradients(loaded: big_vision.Loaded, arrays: Arrays, theirs: str) -> Iterator[Check]:
    """Of sum(tokens * cot_tokens) + sum(logits * cot_logits); for "map" only of the latter."""
    if f"loss/{theirs}" not in arrays:
        return
    config, params = loaded.config, loaded.params
    model = ViT(config)
    if config.scan_layers:
        params = stack_blocks(config, params)

    def loss(params: Any) -> jax.Array:
        tokens, aux = model.apply({"params": params}, arrays["in/image"])
        total = jnp.sum(aux["logits"] * arrays["in/cot_logits"])
        return total + (jnp.sum(tokens * arrays["in/cot_tokens"]) if theirs == "gap" else 0.0)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    if config.scan_layers:
        gradient = unstack_blocks(config, gradient)
    yield absolute(f"loss/{theirs}", value, arrays[f"loss/{theirs}"], TOKENS_ATOL)
    ours = big_vision.to_big_vision(config, gradient)
    for name, expected in below(arrays, f"grad/{theirs}/").items():
        label = f"grad/{theirs}/{name}"
        if name.endswith("key/bias"):
            yield absolute(label, ours[name], expected, KEY_BIAS_ATOL)
        else:
            yield relative(label, ours[name], expected, GRADIENT_RTOL)
