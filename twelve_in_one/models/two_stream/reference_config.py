"""The released code's JSON configs, read and written."""

import difflib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.models.two_stream.config import (
    StreamConfig,
    TwoStreamConfig,
    from_json,
    named_size,
)

logger = logging.getLogger(__name__)

# Unused in the released code, or settings of a run rather than the model: accepted, and named in
# one log line.
_INERT_KEYS = ("v_initializer_range", "bi_intermediate_size", "bi_attention_type", "pooling_method")
_RUN_KEYS = (
    "model", "fast_mode", "in_batch_pairs", "objective", "num_negative", "visualization",
    "output_attentions", "output_hidden_states", "torchscript", "pruned_heads", "finetuning_task",
    "num_labels", "layer_norm_eps",
)  # fmt: skip
_STREAM_KEYS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_dim",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
}
_MODEL_KEYS = {
    "t_biattention_id": "text_connections",
    "v_biattention_id": "visual_connections",
    "bi_hidden_size": "coattention_dim",
    "bi_num_attention_heads": "coattention_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_token_types",
    "v_feature_size": "region_feature_dim",
    "v_target_size": "num_region_classes",
    "visual_target": "visual_target",
    "num_labels_vqa": "num_vqa_answers",
    "num_labels_gqa": "num_gqa_answers",
    "fusion_method": "fusion",
    "with_coattention": "with_coattention",
    "dynamic_attention": "dynamic_attention",
    "initializer_range": "initializer_range",
}
_REQUIRED_KEYS = (
    "t_biattention_id",
    "v_biattention_id",
    *_STREAM_KEYS,
    *(f"v_{k}" for k in _STREAM_KEYS),
)
_NUM_TASKS = 20  # rows of the released task table


def from_reference(raw: Mapping[str, Any], **overrides: Any) -> TwoStreamConfig:
    """A `TwoStreamConfig` from the released code's JSON keys.

    Keys that the released code never reads, and settings of a run, are accepted and named in a log
    line.

    Args:
      raw: the JSON object, e.g. of `bert_base_6layer_6conect.json`.
      **overrides: fields of `TwoStreamConfig` to set afterwards (`heads`, `dtype`, ...).

    Raises:
      ValueError: missing keys, unknown keys (with the nearest known name), or inconsistent sizes.
    """
    known = {
        *_STREAM_KEYS,
        *(f"v_{k}" for k in _STREAM_KEYS),
        *_MODEL_KEYS,
        *_INERT_KEYS,
        *_RUN_KEYS,
    }
    known |= {"fixed_t_layer", "fixed_v_layer", "task_specific_tokens"}
    errors = [f"missing key {key!r}" for key in _REQUIRED_KEYS if key not in raw]
    for key in sorted(set(raw) - known):
        near = difflib.get_close_matches(key, known, n=1)
        errors.append(f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if errors:
        raise ValueError("reference config: " + "; ".join(errors))
    ignored = sorted(key for key in (*_INERT_KEYS, *_RUN_KEYS) if key in raw)
    if ignored:
        logger.info("reference config: keys without effect on the model: %s", ", ".join(ignored))

    def stream(prefix: str, frozen: str) -> StreamConfig:
        fields = {ours: raw[prefix + theirs] for theirs, ours in _STREAM_KEYS.items()}
        return StreamConfig(**fields, num_frozen_layers=raw.get(frozen, 0))

    fields = {ours: raw[theirs] for theirs, ours in _MODEL_KEYS.items() if theirs in raw}
    for key in ("text_connections", "visual_connections"):
        fields[key] = tuple(fields[key])
    fields["num_tasks"] = _NUM_TASKS if raw.get("task_specific_tokens", False) else 0
    return TwoStreamConfig(
        text=stream("", "fixed_t_layer"),
        visual=stream("v_", "fixed_v_layer"),
        **(fields | overrides),
    )


def to_reference(config: TwoStreamConfig) -> dict[str, Any]:
    """`config` under the JSON keys of the released code; `from_reference` reads it back."""
    raw: dict[str, Any] = {
        theirs: getattr(config.text, ours) for theirs, ours in _STREAM_KEYS.items()
    }
    raw |= {f"v_{theirs}": getattr(config.visual, ours) for theirs, ours in _STREAM_KEYS.items()}
    raw |= {theirs: getattr(config, ours) for theirs, ours in _MODEL_KEYS.items()}
    raw["t_biattention_id"], raw["v_biattention_id"] = (
        list(config.text_connections),
        list(config.visual_connections),
    )
    raw |= {
        "fixed_t_layer": config.text.num_frozen_layers,
        "fixed_v_layer": config.visual.num_frozen_layers,
    }
    return raw | {"task_specific_tokens": config.num_tasks > 0}


def load(source: str | Path) -> TwoStreamConfig:
    """The config named by `source`: a shipped size, or a JSON file of ours or of the released code.

    Raises:
      ValueError: no such size or file, not JSON, or sizes that do not fit; names the file.
    """
    path = Path(source)
    if path.suffix != ".json":
        return named_size(str(source))
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = json.loads(text)
        if isinstance(raw, dict) and "num_hidden_layers" in raw:
            return from_reference(raw)
        return from_json(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"model config {path}: {error}") from error
