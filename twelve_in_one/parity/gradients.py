"""Compares losses, scores and gradients of the tasks and of pretraining."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.parity.fixture import Check, Fixture, apply, relative, released
from twelve_in_one.tasks import losses

GRADIENT_RTOL = 1e-3
# Keys' biases shift all scores of a query equally, so their true gradient is 0 and the recorded one
# is rounding: norms are compared down to this share of the largest norm of the same loss.
GRADIENT_NORM_FLOOR = 1e-6
# In the reference, candidates follow 1 global and 100 detected regions.
FIRST_CANDIDATE = 101

_Arrays = Mapping[str, jax.Array]
_TEXT = ("input_ids", "segment_ids", "text_mask")
_IMAGE = ("features", "boxes", "image_mask")


class _Loss(NamedTuple):
    """A released loss: the task id of its rows, the head, and our loss of logits, inputs, rows."""

    task_id: int | None
    head: str
    sums: Callable[[jax.Array, _Arrays, jax.Array], losses.Sums]


def _choices(out: jax.Array, x: _Arrays, rows: jax.Array) -> losses.Sums:
    choices = jnp.asarray(x["multiple_choice_ids"], jnp.int32) + FIRST_CANDIDATE
    real = jnp.take_along_axis(x["image_mask"].astype(bool), choices, axis=1)
    return losses.choice_loss(out, x["target"][..., 0], choices, real, rows)


def _chosen(x: _Arrays) -> jax.Array:
    return x["image_label"] == 1


_LOSSES = {
    "vl_classifier": _Loss(
        1, "vqa", lambda out, x, rows: losses.answer_loss(out, x["target"], rows)
    ),
    "vl_classifier_gqa": _Loss(
        15, "gqa", lambda out, x, rows: losses.answer_loss(out, x["target"], rows)
    ),
    "vl_tri": _Loss(
        13, "three_way", lambda out, x, rows: losses.verdict_loss(out, x["target"], rows)
    ),
    "vl_logit": _Loss(
        7,
        "image_text_match",
        lambda out, x, rows: losses.match_loss(out.reshape(len(rows), -1), x["target"], rows),
    ),
    "v_logit": _Loss(
        9,
        "region_score",
        lambda out, x, rows: losses.region_loss(
            out, x["target"][..., 0], x["image_mask"].astype(bool), rows
        ),
    ),
    "v_logit_mc": _Loss(4, "region_score", _choices),
    "vl_binary": _Loss(
        12, "image_pair", lambda out, x, rows: losses.verdict_loss(out, x["target"], rows)
    ),
}
_PRETRAINING_LOSSES = {
    "masked_lm": _Loss(
        None,
        "masked_language",
        lambda out, x, rows: losses.masked_language_loss(out, x["masked_lm_labels"], rows),
    ),
    "alignment": _Loss(
        None,
        "alignment",
        lambda out, x, rows: losses.alignment_loss(out, x["next_sentence_label"], rows),
    ),
    "masked_region_vt0": _Loss(
        None,
        "masked_region",
        lambda out, x, rows: losses.masked_region_class_loss(
            out[:, 1:], x["image_target_vt0"], _chosen(x)
        ),
    ),
    "masked_region_vt1": _Loss(
        None,
        "masked_region",
        lambda out, x, rows: losses.masked_region_feature_loss(
            out[:, 1:], x["image_target_vt12"], _chosen(x)
        ),
    ),
    "masked_region_vt2": _Loss(
        None,
        "masked_region",
        lambda out, x, rows: losses.masked_region_contrast_loss(
            out[:, 1:], x["image_target_vt12"], x["vt2_negative_index"], _chosen(x)
        ),
    ),
}  # fmt: skip


class Value(NamedTuple):
    """A mean loss (float32 []), its sums, and its gradients in our layout."""

    loss: jax.Array
    sums: losses.Sums
    grads: Any


def _trunk_rows(name: str, x: _Arrays) -> dict[str, jax.Array]:
    """Inputs of the trunk: options unfolded, image pairs split, text repeated."""
    rows = {k: x[k] for k in (*_TEXT, *_IMAGE)}
    if name == "vl_logit":
        # [B, 4, ...] -> [4B, ...]
        rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in rows.items()}
    elif name == "vl_binary":
        # [B, 2R, ...] -> [2B, R, ...]: left and right image in turn
        half = x["features"].shape[1] // 2
        rows |= {k: x[k].reshape(-1, half, *x[k].shape[2:]) for k in _IMAGE}
        rows |= {k: jnp.repeat(x[k], 2, axis=0) for k in _TEXT}
    return rows


def _recorded(fixture: Fixture) -> dict[str, tuple[_Loss, dict[str, jax.Array], str]]:
    """Losses in the file: name -> the loss, its inputs and the array of its value."""

    def inputs(prefix: str) -> dict[str, jax.Array]:
        return {k: jnp.asarray(v) for k, v in fixture.inputs(prefix).items()}

    found = {}
    for name, loss in _LOSSES.items():
        if f"loss/{name}/value" in fixture.arrays:
            found[name] = loss, inputs(f"loss/{name}/in/"), f"loss/{name}/value"
    for name, loss in _PRETRAINING_LOSSES.items():
        if f"loss/{name}" in fixture.arrays:
            found[name] = loss, inputs("in/"), f"loss/{name}"
    return found


def loss_function(fixture: Fixture) -> Callable[..., Value]:
    """`value(name, params, **inputs)`: a recorded loss; `inputs` replace recorded ones.

    Losses with inputs of equal shapes share one compiled program of the trunk and all their heads;
    each loss itself is a small program after it.
    """
    recorded = _recorded(fixture)
    rows = {name: _trunk_rows(name, x) for name, (_, x, _) in recorded.items()}
    shapes = {name: tuple(v.shape for v in x.values()) for name, x in rows.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def forward(heads: tuple[str, ...], params: Any, x: _Arrays, task_id: int | None) -> Any:
        return jax.vjp(lambda params: apply(fixture.config, params, x, heads, task_id)[0], params)

    @jax.jit
    def backward(pull: Callable[..., Any], cotangents: Any) -> Any:
        return pull(cotangents)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def mean(name: str, out: jax.Array, x: _Arrays) -> Any:
        def loss(out: jax.Array) -> tuple[jax.Array, losses.Sums]:
            batch = x["target"] if "target" in x else x["input_ids"]
            sums = recorded[name][0].sums(out, x, jnp.ones(len(batch), bool))
            return sums.mean_loss(), sums

        return jax.value_and_grad(loss, has_aux=True)(out)

    def value(name: str, params: Any, **inputs: jax.Array) -> Value:
        loss, x, _ = recorded[name]
        alike = {recorded[other][0].head for other in recorded if shapes[other] == shapes[name]}
        out, pull = forward(tuple(sorted(alike)), params, rows[name], loss.task_id)
        (value, sums), cotangent = mean(name, out[loss.head], x | inputs)
        # Zeros of NumPy, for which nothing is compiled.
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), out)
        cotangents = zeros | {loss.head: cotangent}
        return Value(value, sums, backward(pull, cotangents))

    return value


def _compare_loss(fixture: Fixture, name: str, value_key: str, value: Value) -> Iterator[Check]:
    arrays = fixture.arrays
    yield relative(value_key, value.loss, arrays[value_key])
    extras = {
        f"loss/{name}/score": value.sums.mean_score(),
        f"loss/{name}/val_value": value.loss,
        f"loss/{name}/val_score_sum": value.sums.score,
    }
    for key, ours in extras.items():
        if key in arrays:
            yield relative(key, ours, arrays[key])
    ours = released(fixture, value.grads)
    for parameter, theirs in fixture.inputs(f"grad/{name}/").items():
        yield relative(f"grad/{name}/{parameter}", ours[parameter], theirs, GRADIENT_RTOL)
    if f"gradnorm/{name}" in arrays:
        yield _gradient_norms(fixture, name, ours)


def _gradient_norms(fixture: Fixture, name: str, ours: Mapping[str, np.ndarray]) -> Check:
    """All gradient norms at once; the check carries the worst parameter's name."""
    theirs = np.asarray(fixture.arrays[f"gradnorm/{name}"], np.float64)
    floor = GRADIENT_NORM_FLOOR * float(theirs.max(initial=0.0))
    worst = Check(f"gradnorm/{name}", 0.0, GRADIENT_RTOL, "rel")
    for parameter, reference in zip(
        fixture.arrays["meta/param_names"].tolist(), theirs, strict=True
    ):
        norm = np.linalg.norm(ours[parameter].astype(np.float64)) if parameter in ours else 0.0
        error = abs(norm - reference) / max(reference, floor / GRADIENT_RTOL, 1e-30)
        if not error <= worst.error:
            worst = Check(f"gradnorm/{name} (worst: {parameter})", error, GRADIENT_RTOL, "rel")
    return worst


def compare_losses(fixture: Fixture, value: Callable[..., Value]) -> Iterator[Check]:
    """`loss/*`, `grad/*` and `gradnorm/*`; `value` is `loss_function(fixture)`."""
    for name, (_, _, key) in _recorded(fixture).items():
        yield from _compare_loss(fixture, name, key, value(name, fixture.params))
    if "loss/none_masked" in fixture.arrays:
        yield from _compare_none_masked(fixture, value)


def _compare_none_masked(fixture: Fixture, value: Callable[..., Value]) -> Iterator[Check]:
    """Without masks the reference's masked losses are 0 / 0; ours are 0."""
    bare = {
        key: jnp.full_like(fixture.arrays[f"in/{key}"], -1)
        for key in ("masked_lm_labels", "image_label")
    }
    for name, theirs in zip(
        ("masked_lm", "masked_region_vt0", "alignment"),
        fixture.arrays["loss/none_masked"],
        strict=True,
    ):
        ours = value(name, fixture.params, **bare).loss
        note = " (NaN there, 0 here)" if np.isnan(theirs) else ""
        yield relative(f"loss/none_masked/{name}{note}", ours, np.nan_to_num(theirs))
