"""Compares losses, scores and gradients, of the tasks and of pretraining."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.config import TwoStreamConfig
from twelve_in_one.parity.fixture import Check, Fixture, apply, relative, released
from twelve_in_one.tasks import losses

GRADIENT_RTOL = 1e-3
# Keys' biases shift all scores of a query alike, so their true gradient is 0 and what is recorded
# is rounding: norms are compared down to this share of the largest norm of the same loss.
GRADIENT_NORM_FLOOR = 1e-6
# In the reference candidates follow 1 global and 100 detected regions.
FIRST_CANDIDATE = 101

# Loss name of the released code -> (task id, head, our loss of logits and the loss's inputs).
_Arrays = Mapping[str, jax.Array]


def _choices(out: jax.Array, x: _Arrays, rows: jax.Array) -> losses.Sums:
    choices = jnp.asarray(x["multiple_choice_ids"], jnp.int32) + FIRST_CANDIDATE
    real = jnp.take_along_axis(jnp.asarray(x["image_mask"], bool), choices, axis=1)
    return losses.choice_loss(out, x["target"][..., 0], choices, real, rows)


_LOSSES: dict[str, tuple[int, str, Callable[[jax.Array, _Arrays, jax.Array], losses.Sums]]] = {
    "vl_classifier": (1, "vqa", lambda out, x, rows: losses.answer_loss(out, x["target"], rows)),
    "vl_classifier_gqa": (
        15, "gqa", lambda out, x, rows: losses.answer_loss(out, x["target"], rows)
    ),
    "vl_tri": (13, "three_way", lambda out, x, rows: losses.verdict_loss(out, x["target"], rows)),
    "vl_logit": (
        7,
        "image_text_match",
        lambda out, x, rows: losses.match_loss(out.reshape(len(rows), -1), x["target"], rows),
    ),
    "v_logit": (
        9,
        "region_score",
        lambda out, x, rows: losses.region_loss(
            out, x["target"][..., 0], jnp.asarray(x["image_mask"], bool), rows
        ),
    ),
    "v_logit_mc": (4, "region_score", _choices),
    "vl_binary": (
        12, "image_pair", lambda out, x, rows: losses.verdict_loss(out, x["target"], rows)
    ),
}  # fmt: skip


def _trunk_rows(name: str, inputs: _Arrays) -> dict[str, jax.Array]:
    """A loss's inputs as rows of the trunk: options unfolded, image pairs split, text repeated."""
    x = {k: jnp.asarray(v) for k, v in inputs.items()}
    text, image = ("input_ids", "segment_ids", "text_mask"), ("features", "boxes", "image_mask")
    if name == "vl_logit":
        # [B, 4, ...] -> [4B, ...]
        x |= {k: x[k].reshape(-1, *x[k].shape[2:]) for k in (*text, *image)}
    elif name == "vl_binary":
        # [B, 2R, ...] -> [2B, R, ...]: left and right image in turn
        half = x["features"].shape[1] // 2
        x |= {k: x[k].reshape(-1, half, *x[k].shape[2:]) for k in image}
        x |= {k: jnp.repeat(x[k], 2, axis=0) for k in text}
    return x


def task_sums(config: TwoStreamConfig, params: Any, name: str, inputs: _Arrays) -> losses.Sums:
    """Loss and score of the released loss `name` on its recorded inputs."""
    task_id, head, loss = _LOSSES[name]
    x = _trunk_rows(name, inputs)
    out, _ = apply(config, params, x, (head,), task_id)
    return loss(out[head], x, jnp.ones(len(inputs["target"]), bool))


def _pretraining_sums(config: TwoStreamConfig, params: Any, name: str, x: _Arrays) -> losses.Sums:
    rows = jnp.ones(len(x["input_ids"]), bool)
    head = {"masked_lm": "masked_language", "alignment": "alignment"}.get(name, "masked_region")
    out = apply(config, params, x, (head,), None)[0][head]
    if name == "masked_lm":
        return losses.masked_language_loss(out, jnp.asarray(x["masked_lm_labels"]), rows)
    if name == "alignment":
        return losses.alignment_loss(out, jnp.asarray(x["next_sentence_label"]), rows)
    chosen, regions = jnp.asarray(x["image_label"]) == 1, out[:, 1:]
    if name == "masked_region_vt0":
        target = jnp.asarray(x["image_target_vt0"])
        return losses.masked_region_class_loss(regions, target, chosen)
    target = jnp.asarray(x["image_target_vt12"])
    if name == "masked_region_vt1":
        return losses.masked_region_feature_loss(regions, target, chosen)
    negatives = jnp.asarray(x["vt2_negative_index"], jnp.int32)
    return losses.masked_region_contrast_loss(regions, target, negatives, chosen)


_PRETRAINING_LOSSES = (
    "masked_lm", "alignment", "masked_region_vt0", "masked_region_vt1", "masked_region_vt2",
)  # fmt: skip


def _compare_loss(
    fixture: Fixture, name: str, value_key: str, sums_of: Callable[[Any], losses.Sums]
) -> Iterator[Check]:
    def mean(params: Any) -> tuple[jax.Array, losses.Sums]:
        sums = sums_of(params)
        return sums.mean_loss(), sums

    (value, sums), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(fixture.params)
    arrays = fixture.arrays
    yield relative(value_key, value, arrays[value_key])
    extras = {
        f"loss/{name}/score": sums.mean_score(),
        f"loss/{name}/val_value": value,
        f"loss/{name}/val_score_sum": sums.score,
    }
    for key, ours in extras.items():
        if key in arrays:
            yield relative(key, ours, arrays[key])
    ours = released(fixture, grads)
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


def compare_losses(fixture: Fixture) -> Iterator[Check]:
    """`loss/*`, `grad/*` and `gradnorm/*`."""
    for name in _LOSSES:
        if f"loss/{name}/value" in fixture.arrays:
            inputs = fixture.inputs(f"loss/{name}/in/")
            yield from _compare_loss(
                fixture,
                name,
                f"loss/{name}/value",
                lambda params, n=name, x=inputs: task_sums(fixture.config, params, n, x),
            )
    inputs = fixture.inputs("in/")
    for name in _PRETRAINING_LOSSES:
        if f"loss/{name}" in fixture.arrays:
            yield from _compare_loss(
                fixture,
                name,
                f"loss/{name}",
                lambda params, n=name: _pretraining_sums(fixture.config, params, n, inputs),
            )
    if "loss/none_masked" in fixture.arrays:
        yield from _compare_none_masked(fixture, inputs)


def _compare_none_masked(fixture: Fixture, inputs: _Arrays) -> Iterator[Check]:
    """With nothing masked the reference's masked losses are 0 / 0; ours are 0."""
    bare = dict(inputs)
    for key in ("masked_lm_labels", "image_label"):
        bare[key] = np.full_like(inputs[key], -1)
    for name, theirs in zip(
        ("masked_lm", "masked_region_vt0", "alignment"),
        fixture.arrays["loss/none_masked"],
        strict=True,
    ):
        ours = _pretraining_sums(fixture.config, fixture.params, name, bare).mean_loss()
        note = " (NaN there, 0 here)" if np.isnan(theirs) else ""
        yield relative(f"loss/none_masked/{name}{note}", ours, np.nan_to_num(theirs))
