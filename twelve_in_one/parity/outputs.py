"""Compares outputs, intermediates and attention maps."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.trunk import TwoStreamModel
from twelve_in_one.parity.fixture import OUTPUT_ATOL, Check, Fixture, absolute, apply

# A padded region's reference score carries an extra -10000, where float32 resolves 1e-3.
PADDED_SCORE_ATOL = 2e-3
PADDED_SCORE = -10000.0

_INPUTS = {"input_ids", "segment_ids", "text_mask", "features", "boxes", "image_mask"}
_HEADS = {
    "vil_prediction": "vqa",
    "vil_prediction_gqa": "gqa",
    "vil_logit": "image_text_match",
    "vil_tri_prediction": "three_way",
    "vision_prediction": "masked_region",
    "vision_logit": "region_score",
    "linguistic_prediction": "masked_language",
    "linguistic_logit": "token_score",
    "prediction_scores_text": "masked_language",
    "prediction_scores_image": "masked_region",
    "seq_relationship_score": "alignment",
}
_INTERMEDIATES = {
    "image_embedding": "visual_embedding",
    "sequence_text": "text",
    "sequence_image": "visual",
    "pooled_text": "text_pooled",
    "pooled_image": "visual_pooled",
}


def _intermediate_name(name: str) -> str:
    name = _INTERMEDIATES.get(name, name).replace("image_layer", "visual_layer")
    name = name.replace("_text_query_image_key", "_text_reads_visual")
    name = name.replace("_image_query_text_key", "_visual_reads_text")
    return name.replace("_image", "_visual") if name.startswith("connection") else name


def _head(output: str, rows: int) -> str:
    """Our head for a released output's name; the pair head falls back to alignment on odd rows."""
    if output == "vil_binary_prediction":
        return "alignment" if rows % 2 else "image_pair"
    if output not in _HEADS:
        raise ValueError(f"out/{output}: no such output; known: {', '.join(_HEADS)}")
    return _HEADS[output]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    config: TwoStreamConfig,
    heads: tuple[str, ...],
    params: Any,
    inputs: Mapping[str, jax.Array],
    task_id: jax.Array | None,
) -> Any:
    return apply(config, params, inputs, heads, task_id, return_attention=True)


@functools.partial(jax.jit, static_argnums=0)
def _pool(config: TwoStreamConfig, params: Any, text: jax.Array, visual: jax.Array) -> Any:
    return TwoStreamModel(config).apply({"params": params}, text, visual, method="pool")


def compare_outputs(fixture: Fixture, prefix: str) -> Iterator[Check]:
    """`out/*`, `inter/*` and `attn/*`; `prefix` may restrict the batch to its first rows."""
    config, inputs = fixture.config, fixture.inputs("in/")
    expected = fixture.inputs(f"{prefix}out/")
    if not expected and not any(fixture.inputs(prefix + kind) for kind in ("inter/", "attn/")):
        return
    if missing := _INPUTS - set(inputs):
        raise ValueError(f"holds outputs, but not in/{', in/'.join(sorted(missing))}")
    rows = len(inputs["input_ids"])
    if prefix and expected:
        rows = len(next(iter(expected.values())))
    inputs = {name: array[:rows] for name, array in inputs.items()}
    heads = {_head(name, rows) for name in expected}
    task_id = inputs["task_ids"][:, 0] if "task_ids" in inputs else None
    out, aux = _forward(config, tuple(sorted(heads)), fixture.params, inputs, task_id)
    for name, theirs in expected.items():
        ours = np.asarray(out[_head(name, rows)], np.float32)
        if name in ("vil_logit", "vision_logit", "linguistic_logit"):
            ours = ours[..., None]
        if name != "vision_logit":
            yield absolute(f"{prefix}out/{name}", ours, theirs)
            continue
        real = inputs["image_mask"].astype(bool)
        yield absolute(f"{prefix}out/{name}", ours[real], theirs[real])
        padded = ours[~real] + np.float32(PADDED_SCORE)
        label = f"{prefix}out/{name} (padded regions)"
        yield absolute(label, padded, theirs[~real], PADDED_SCORE_ATOL)
    for kind, ours_prefix in (("inter/", ""), ("attn/", "attention/")):
        for name, theirs in fixture.inputs(prefix + kind).items():
            ours = aux[ours_prefix + _intermediate_name(name)]
            yield absolute(prefix + kind + name, ours, theirs)
    if not prefix:
        yield from _compare_all_layers(fixture, aux)


def _compare_all_layers(fixture: Fixture, aux: Mapping[str, jax.Array]) -> Iterator[Check]:
    """The reference's mode that returns every encoded layer pools after the last connection."""
    expected = fixture.inputs("all_layers/")
    if not expected:
        return
    text, visual = _behind_last_connection(fixture.config, aux)
    pooled = _pool(fixture.config, fixture.params, text, visual)
    ours = {
        "n": fixture.config.num_connections,
        "pooled_text": pooled.text_pooled,
        "pooled_image": pooled.visual_pooled,
        "last_text_equals_sequence_text": np.array_equal(text, aux["text"]),
    }
    for name, theirs in expected.items():
        atol = OUTPUT_ATOL if name.startswith("pooled") else 0.0
        yield absolute(f"all_layers/{name}", ours[name], theirs, atol)


def _behind_last_connection(
    config: TwoStreamConfig, aux: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Both streams' states there, even if the model's connections do not run."""
    if config.with_coattention:
        name = f"connection_{config.num_connections - 1}"
        return aux[f"{name}_text"], aux[f"{name}_visual"]
    text, visual = config.text_connections[-1], config.visual_connections[-1]
    return (
        aux[f"text_layer_{text - 1}" if text else "text_embedding"],
        aux[f"visual_layer_{visual - 1}" if visual else "visual_embedding"],
    )
