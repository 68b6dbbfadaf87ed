"""Compares a ViT with a text decoder with arrays recorded from big_vision's CapPa.

Their layout: `param/encoder/*` and `param/decoder/*`, `in/image` and `in/labels`, and outputs,
losses, gradients, written texts and a short training of two variants: "bias" has all of `param/*`,
"nobias" no biases in the decoder's blocks.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import cappa as convert
from twelve_in_one.convert.cappa import CaptionerConfig
from twelve_in_one.models import generate, text_list
from twelve_in_one.models.pre_norm import stack_blocks, unstack_blocks
from twelve_in_one.models.reading import Context, Options
from twelve_in_one.models.text_decoder import TextDecoder, shift_right
from twelve_in_one.models.vit import ViT
from twelve_in_one.optim import adamw, schedules
from twelve_in_one.optim.adafactor import adafactor
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.parity.fixture import LOSS_RTOL, Check, absolute, relative
from twelve_in_one.parity.vit import KEY_BIAS_ATOL, below
from twelve_in_one.tasks.losses import sequence_loss, token_loss

Arrays = Mapping[str, np.ndarray]
VARIANTS = ("bias", "nobias")
LOGITS_ATOL, SCORES_ATOL, GRADIENT_RTOL = 3e-5, 1e-4, 1e-4
# The arrays come with 3e-3. Six updates moved the weights by 1.5e-2; processors differ by 1.2e-5,
# and the moments' rounding to bfloat16, op by op or in one program, makes 9e-5.
TRAINED_ATOL = 3e-5
_PARTS = {
    "LayerNorm1": "self_attention_norm",
    "SelfAttn": "self_attention",
    "LayerNorm2": "cross_attention_norm",
    "CrossAttn": "cross_attention",
    "LayerNorm3": "mlp_norm",
    "MLP": "mlp",
    "out": "out",
}


def is_captioner(arrays: Arrays) -> bool:
    """Whether a fixture is of this kind."""
    return "param/decoder/LogitsDense/kernel" in arrays


def compare(arrays: Arrays, **overrides: Any) -> Iterator[Check]:
    """Every comparison that the fixture's arrays allow.

    Args:
      arrays: of the file.
      **overrides: fields of encoder and decoder to run with (dtype, scan_layers, remat).

    Raises:
      ValueError: parameters that are not a captioner's, or an unknown output.
    """
    facts = json.loads(str(arrays["config_json"]))
    unknown = {name for name in arrays if name.split("/")[0] in ("out", "loss", "grad", "train")}
    if overrides.get("scan_layers"):  # shows no intermediates of blocks
        unknown = {name for name in unknown if not re.match("out/[a-z]+/block", name)}
    for variant in VARIANTS:
        if f"out/{variant}/logits" not in arrays:
            continue
        loaded = _load(below(arrays, "param/"), variant, facts, overrides)
        ours = _outputs(loaded.config, _stacked(loaded), arrays, variant, facts)
        if f"train/{variant}/loss" in arrays:
            ours |= _train(loaded.config, _stacked(loaded), arrays, variant, facts)
        for name in sorted(set(ours) & set(arrays)):
            yield from _checks(name, ours[name], arrays[name])
        unknown -= set(ours)
        for parameter, norm in zip(
            arrays.get(f"grad_norm_names/{variant}", np.empty(0)).tolist(),
            arrays.get(f"grad_norm/{variant}", ()),
            strict=True,
        ):
            gradient = ours[f"grad/{variant}/{parameter}"].astype(np.float64)
            name = f"grad_norm/{variant}/{parameter}"
            yield from _checks(name, np.linalg.norm(gradient), norm)
    if unknown:
        raise ValueError(f"{min(unknown)}: no such output of a captioner")
    if scanned := below(arrays, "scan_param/"):
        params = below(arrays, "param/")
        same = flatten(_load(params, "bias", facts, overrides).params)
        rest = {k: v for k, v in params.items() if "block_" not in k and "EncDecBlock" not in k}
        ours = flatten(_load(rest | scanned, "bias", facts, overrides).params)
        worst = max(float(np.max(np.abs(ours[path] - same[path]))) for path in same)
        yield Check("scan_param", worst, 0.0, "abs")


def _load(
    params: Arrays, variant: str, facts: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Any:
    if variant == "nobias":
        block = "decoder/EncDecBlock"
        params = {
            k: v for k, v in params.items() if not (k.startswith(block) and k.endswith("/bias"))
        }
    return convert.from_big_vision(
        params, image_size=tuple(facts["image"]), encoder=overrides, decoder=overrides
    )


def _stacked(loaded: Any) -> dict[str, Any]:
    """The parameters in the layout of the config, whose blocks may be scanned."""
    return {
        name: stack_blocks(config, loaded.params[name]) if config.scan_layers else params
        for name, config in loaded.config._asdict().items()
        for params in (loaded.params[name],)
    }


def _checks(name: str, ours: Any, theirs: np.ndarray) -> Iterator[Check]:
    kind, leaf = name.split("/")[0], name.split("/")[-1]
    if theirs.dtype.kind in "iu":  # tokens and steps
        yield absolute(name, ours, theirs, 0.0)
    elif name.endswith("key/bias"):
        yield absolute(name, ours, theirs, KEY_BIAS_ATOL)
    elif kind in ("grad", "grad_norm"):
        yield relative(name, ours, theirs, GRADIENT_RTOL)
    elif "param_last" in name:
        yield absolute(name, ours, theirs, TRAINED_ATOL)
    elif kind in ("loss", "train"):
        yield relative(name, ours, theirs, LOSS_RTOL)
    else:
        summed = "score" in leaf or "logprobs" in leaf
        yield absolute(name, ours, theirs, SCORES_ATOL if summed else LOGITS_ATOL)
    if leaf.startswith("candidate_scores"):
        order = [np.argsort(-np.asarray(scores), axis=1) for scores in (ours, theirs)]
        yield absolute(f"{name}: ranking", *order, 0.0)


def _weights(arrays: Arrays, mask: str | None) -> np.ndarray:
    """1 for targets: padding is none, whatever the recorded mask says."""
    real = arrays["in/labels"] != 0
    return real * (1.0 if mask is None else arrays[mask])


def _score(config: CaptionerConfig, params: Any, arrays: Arrays) -> tuple[Any, Any, Any]:
    """Encoder tokens, logits, and the decoder's intermediates."""
    tokens, _ = ViT(config.encoder).apply({"params": params["encoder"]}, arrays["in/image"])
    inputs = shift_right(jnp.asarray(arrays["in/labels"]))
    logits, aux = TextDecoder(config.decoder).apply({"params": params["decoder"]}, inputs, tokens)
    return tokens, logits, aux


def _loss(logits: jax.Array, arrays: Arrays, mask: str | None, **options: Any) -> jax.Array:
    rows = jnp.ones(len(logits), bool)
    labels, weights = jnp.asarray(arrays["in/labels"]), _weights(arrays, mask)
    return sequence_loss(logits, labels, weights, rows, **options).mean_loss()


def _outputs(
    config: CaptionerConfig, params: Any, arrays: Arrays, variant: str, facts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """All our outputs that a file may hold, under its names."""
    smoothing = facts.get("train", {}).get("label_smoothing", 0.1)

    def losses_of(params: Any) -> tuple[jax.Array, Any]:
        tokens, logits, aux = _score(config, params, arrays)
        loss = _loss(logits, arrays, "in/label_mask", label_smoothing=smoothing)
        return loss, (tokens, logits, aux)

    @jax.jit
    def run(params: Any) -> Any:
        value = jax.value_and_grad(losses_of, has_aux=True)
        (_, (tokens, logits, aux)), gradient = value(params)
        labels = jnp.asarray(arrays["in/labels"])
        found = {}
        for suffix in ("", "_empty_row"):
            mask = f"in/label_mask{suffix}"
            if mask not in arrays:
                continue
            options = dict(label_smoothing=smoothing)
            found[f"loss/train{suffix}"] = _loss(logits, arrays, mask, **options)
            weights = _weights(arrays, mask)
            rows = jax.vmap(functools.partial(sequence_loss, **options))(
                logits[:, None], labels[:, None], weights[:, None], jnp.ones((len(labels), 1), bool)
            )
            found[f"loss/per_sequence{suffix}"] = rows.loss
        found["loss/train_no_smoothing"] = _loss(logits, arrays, "in/label_mask")
        found["loss/train_no_mask"] = _loss(logits, arrays, None, label_smoothing=smoothing)
        each, weights = token_loss(logits, labels), _weights(arrays, "in/label_mask")
        found["loss/perplexity_sum"] = total = jnp.sum(each * weights, axis=1)
        found["loss/perplexity_normalized"] = total / jnp.sum(weights, axis=1)
        found |= {"logits": logits, "label_logprobs": -each}
        return found | _written(config, params, tokens, arrays, facts), tokens, aux, gradient

    found, tokens, aux, gradient = run(params)
    inputs = shift_right(jnp.asarray(arrays["in/labels"]))
    # Recorded without positions.
    found["embedded"] = params["decoder"]["token"]["embedding"][inputs]
    found["final_norm"] = aux["states"]
    for i in range(0 if config.decoder.scan_layers else config.decoder.num_layers):
        found |= {f"block{i}/{part}": aux[f"block_{i}/{name}"] for part, name in _PARTS.items()}
    if f"out/{variant}/small/logits" in arrays:
        decoder = params["decoder"]
        small = {
            "position": decoder["position"] * np.float32(2**-8),
            "token": {"embedding": decoder["token"]["embedding"] * np.float32(2**-8)},
        }
        _, found["small/logits"], _ = jax.jit(lambda p: _score(config, p, arrays))(
            params | {"decoder": decoder | small}
        )
    named = {
        f"loss/{variant}/{name[5:]}" if name.startswith("loss/") else f"out/{variant}/{name}": value
        for name, value in found.items()
    }
    flat = convert.to_big_vision(config, _unstacked(config, gradient))
    named |= {f"grad/{variant}/{name}": value for name, value in flat.items()}
    return {name: np.asarray(value) for name, value in (named | {"out/encoded": tokens}).items()}


def _unstacked(config: CaptionerConfig, params: Any) -> dict[str, Any]:
    return {
        name: unstack_blocks(part, params[name]) if part.scan_layers else params[name]
        for name, part in config._asdict().items()
    }


def _written(
    config: CaptionerConfig,
    params: Any,
    tokens: jax.Array,
    arrays: Arrays,
    facts: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Texts after the recorded prompts, and scores of the recorded candidates."""
    options, decoder = Options(end_id=facts.get("eos", 1)), (config.decoder, params["decoder"])
    found = {}
    if "in/prompt" in arrays:
        context = Context(tokens, jnp.asarray(arrays["in/prompt"]))
        greedy = generate.greedy(*decoder, context, options)
        beams = generate.beam_search(*decoder, context, options, beams=4)
        found |= {"greedy_tokens": greedy.tokens, "greedy_logprobs": greedy.log_probabilities}
        found |= {"beam4_tokens": beams.tokens, "beam4_logprobs": beams.log_probabilities}
        found |= {"beam4_score": beams.score, "beam4_steps": beams.steps}
    if "in/candidates" in arrays:
        texts = jnp.asarray(arrays["in/candidates"])
        found["candidate_scores"] = text_list.rank(*decoder, Context(tokens), texts, options)
        if "in/candidate_prompt" in arrays:
            # The recorded scores include that of the prompt.
            prompt = jnp.tile(jnp.asarray(arrays["in/candidate_prompt"])[None], (len(texts), 1))
            prompted = jnp.concatenate([prompt, texts], axis=1)
            found["candidate_scores_prompt"] = text_list.rank(
                *decoder, Context(tokens), prompted, options
            )
    return found


def _train(
    config: CaptionerConfig, params: Any, arrays: Arrays, variant: str, facts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A short training with a frozen encoder."""
    recipe = facts["train"]
    total = recipe["total_steps"]
    warmup = max(1, round(recipe["warmup_percent"] * total))
    optimizer = adafactor(
        recipe["lr"],
        schedules.make("cosine", total, warmup),
        (
            ParamGroup("encoder/.*", 0.0),
            ParamGroup(".*/kernel", 1.0, recipe["wd"]),
            ParamGroup(".*"),
        ),
    )

    @jax.jit
    def step(params: Any, state: Any, clock: jax.Array) -> Any:
        def loss_of(decoder: Any) -> jax.Array:
            _, logits, _ = _score(config, params | {"decoder": decoder}, arrays)
            options = dict(label_smoothing=recipe["label_smoothing"])
            return _loss(logits, arrays, "in/label_mask", **options)

        loss, gradient = jax.value_and_grad(loss_of)(params["decoder"])
        gradient, norm = adamw.clip_by_global_norm(gradient, recipe["grad_clip_norm"])
        zeros = jax.tree.map(jnp.zeros_like, params["encoder"])
        updates, state = optimizer.update(
            {"encoder": zeros, "decoder": gradient}, state, params, clock=clock
        )
        return optax.apply_updates(params, updates), state, loss, norm

    params = jax.tree.map(jnp.asarray, params)
    state, losses, norms = optimizer.init(params), [], []
    for i in range(recipe["steps"]):
        params, state, loss, norm = step(params, state, jnp.int32(i))
        losses.append(loss)
        norms.append(norm)
    where = f"train/{variant}"
    found = {f"{where}/loss": np.asarray(losses), f"{where}/grad_norm": np.asarray(norms)}
    last = convert.to_big_vision(config, _unstacked(config, jax.device_get(params)))
    return found | {f"{where}/param_last/{name}": value for name, value in last.items()}
