"""Sizes and numerics of the two-stream model, the order in which its layers run, and the reference's JSON configs.

Everything here is plain data: frozen dataclasses in, frozen dataclasses out, no JAX.

Shape letters used throughout `models/`:
B batch, T text tokens before the task slot, S text positions (T + 1 with a task token, else T), R regions,
D text width, V visual width, C co-attention width, F region feature size, N heads, H head size, L labels.
"""

import dataclasses
import difflib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

# Heads of the downstream model, spec of the released `VILBertForVLTasks`; the last three are the pretraining heads.
TASK_HEADS = ("vqa", "gqa", "image_pair", "image_text_match", "three_way", "region_score", "token_score")
PRETRAINING_HEADS = ("masked_language", "masked_region", "alignment")
ALL_HEADS = TASK_HEADS + PRETRAINING_HEADS

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "swish")
DTYPES = ("float32", "bfloat16", "float16", "float64")
REMAT_POLICIES = ("none", "full", "dots")


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One transformer stream.

    Attributes:
      num_layers: self-attention layers of the stream.
      hidden_dim: width of the stream (D for text, V for vision).
      num_heads: attention heads; must divide `hidden_dim`.
      mlp_dim: width of the feed-forward block.
      activation: one of `ACTIVATIONS`; "gelu" is the exact erf form.
      dropout_rate: dropout on sub-layer outputs.
      attention_dropout_rate: dropout on attention probabilities.
      num_frozen_layers: the first this many layers (and the embedding) receive no gradient.
    """

    num_layers: int
    hidden_dim: int
    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    num_frozen_layers: int = 0


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What every layer of a model has in common; three reference families differ in each of these.

    Attributes:
      dtype: compute dtype.
      layer_norm_eps: added to the variance inside the square root.
      initializer_range: standard deviation of the normal initialiser.
    """

    dtype: str
    layer_norm_eps: float
    initializer_range: float


@dataclasses.dataclass(frozen=True)
class TwoStreamConfig:
    """The two-stream (ViLBERT) model of 12-in-1.

    Attributes:
      text: the text stream.
      visual: the visual stream.
      text_connections: ids of the text layers that connections precede (the reference's `t_biattention_id`): connection c
        runs once text layers 0 .. text_connections[c] - 1 and visual layers 0 .. visual_connections[c] - 1 have run.
      visual_connections: likewise for the visual stream (`v_biattention_id`).
      coattention_dim: width C of the joint queries, keys and values.
      coattention_heads: heads of the co-attention; also C is the width of the pooled vectors.
      vocab_size: word pieces.
      max_positions: rows of the position table.
      position_offset: first row of the position table that is used (2 for weights trained as RoBERTa).
      num_token_types: rows of the token-type table.
      num_tasks: rows of the task-token table, indexed by the task ids of the reference (1 VQA ... 17 GuessWhat);
        0 leaves the task token out (paper section 3.2).
      region_feature_dim: size F of a region feature.
      num_region_classes: classes of the masked-region head when `visual_target` is 0.
      visual_target: what a masked region predicts: 0 its class distribution, 1 its feature, 2 its feature by contrast (NCE).
      num_vqa_answers: labels of the head that VQA and Visual Genome QA share.
      num_gqa_answers: labels of the GQA head.
      fusion: how the pooled vectors meet: "mul" or "sum".
      with_coattention: False skips every connection layer.
      dynamic_attention: text gates the queries and keys of the visual self-attention.
      heads: heads that exist in the model; any subset can be computed in a call.
      layer_norm_eps: added to the variance inside the square root.
      initializer_range: standard deviation of the normal initialiser of every matrix and table.
      dtype: compute dtype; parameters, softmax and layer-norm statistics are always float32 or wider.
      scan_layers: run repeated layers with `lax.scan` (same numbers, shorter compilation, stacked parameters).
      remat: "none", "full" (keep only layer inputs) or "dots" (also keep matmul outputs without batch dimensions).
    """

    text: StreamConfig
    visual: StreamConfig
    text_connections: tuple[int, ...]
    visual_connections: tuple[int, ...]
    coattention_dim: int = 1024
    coattention_heads: int = 8
    vocab_size: int = 30522
    max_positions: int = 512
    position_offset: int = 0
    num_token_types: int = 2
    num_tasks: int = 20
    region_feature_dim: int = 2048
    num_region_classes: int = 1601
    visual_target: Literal[0, 1, 2] = 0
    num_vqa_answers: int = 3129
    num_gqa_answers: int = 1533
    fusion: Literal["mul", "sum"] = "mul"
    with_coattention: bool = True
    dynamic_attention: bool = False
    heads: tuple[str, ...] = ALL_HEADS
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"

    def __post_init__(self) -> None:
        errors = _config_errors(self)
        if errors:
            raise ValueError("TwoStreamConfig: " + "; ".join(errors))

    @property
    def numerics(self) -> Numerics:
        """The settings that every layer shares."""
        return Numerics(self.dtype, self.layer_norm_eps, self.initializer_range)

    @property
    def num_connections(self) -> int:
        """Connection layers that exist in the parameters (also when `with_coattention` is False)."""
        return len(self.text_connections)

    @property
    def masked_region_dim(self) -> int:
        """Outputs of the masked-region head: classes, or the feature size when the target is a feature."""
        return self.num_region_classes if self.visual_target == 0 else self.region_feature_dim


def _config_errors(config: TwoStreamConfig) -> list[str]:
    errors = []
    for name, stream, ids in (
        ("text", config.text, config.text_connections),
        ("visual", config.visual, config.visual_connections),
    ):
        if stream.hidden_dim % stream.num_heads:
            errors.append(f"{name}.hidden_dim {stream.hidden_dim} is not a multiple of {stream.num_heads} heads")
        if stream.activation not in ACTIVATIONS:
            errors.append(f"{name}.activation {stream.activation!r} is not one of {ACTIVATIONS}")
        for rate in ("dropout_rate", "attention_dropout_rate"):
            if not 0.0 <= getattr(stream, rate) < 1.0:
                errors.append(f"{name}.{rate} {getattr(stream, rate)} is outside [0, 1)")
        if list(ids) != sorted(ids) or any(i < 0 or i >= stream.num_layers for i in ids):
            errors.append(f"{name}_connections {ids} must be ascending layer ids below {stream.num_layers}")
        first = ids[0] if ids else stream.num_layers
        if not 0 <= stream.num_frozen_layers <= first:
            errors.append(
                f"{name}.num_frozen_layers {stream.num_frozen_layers} must lie in 0..{first}: "
                "freezing past the first connection would also cut the other stream's gradient"
            )
    if len(config.text_connections) != len(config.visual_connections):
        errors.append(
            f"text_connections has {len(config.text_connections)} entries, "
            f"visual_connections {len(config.visual_connections)}; they pair up one to one"
        )
    if config.coattention_dim % config.coattention_heads:
        errors.append(f"coattention_dim {config.coattention_dim} is not a multiple of {config.coattention_heads} heads")
    if config.visual_target not in (0, 1, 2):
        errors.append(f"visual_target {config.visual_target!r} is not 0, 1 or 2")
    for field, allowed in (("fusion", ("mul", "sum")), ("dtype", DTYPES), ("remat", REMAT_POLICIES)):
        if getattr(config, field) not in allowed:
            errors.append(f"{field} {getattr(config, field)!r} is not one of {allowed}")
    unknown = [head for head in config.heads if head not in ALL_HEADS]
    if unknown:
        errors.append(f"unknown heads {unknown}; known: {ALL_HEADS}")
    return errors


# ------------------------------------------------------------------------------------------------ execution order


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of the execution order: the layers of `pattern` once, or `repeats` times over.

    Attributes:
      pattern: kinds in order of execution, of "text", "visual", "connection".
      first: for each kind, the id of its first layer in this segment.
      repeats: how often the pattern runs; each repeat advances the ids by the pattern's count of that kind.
    """

    pattern: tuple[str, ...]
    first: Mapping[str, int]
    repeats: int

    def layers(self, repeat: int) -> list[tuple[str, int]]:
        """The (kind, layer id) pairs that repeat number `repeat` runs, in order."""
        seen: dict[str, int] = {}
        result = []
        for kind in self.pattern:
            offset = seen.get(kind, 0)
            seen[kind] = offset + 1
            result.append((kind, self.first[kind] + repeat * self.pattern.count(kind) + offset))
        return result


def segments(config: TwoStreamConfig) -> tuple[Segment, ...]:
    """The execution order, compressed into repeated patterns.

    For connection c the layers of both streams up to the ids of c run first (text, then visual), then the connection;
    after the last one the remaining visual layers, then the remaining text layers (released code, `BertEncoder`).
    Layers before the first connection, and frozen layers, form segments of their own.
    """
    runs: list[tuple[tuple[str, ...], dict[str, int]]] = []

    def single(kind: str, start: int, stop: int) -> None:
        runs.extend(((kind,), {kind: i}) for i in range(start, stop))

    text_at = visual_at = 0
    for c, (text_stop, visual_stop) in enumerate(zip(config.text_connections, config.visual_connections, strict=True)):
        connection = ("connection",) if config.with_coattention else ()
        if c == 0:
            single("text", 0, text_stop)
            single("visual", 0, visual_stop)
            if connection:
                runs.append((connection, {"connection": 0}))
        else:
            pattern = ("text",) * (text_stop - text_at) + ("visual",) * (visual_stop - visual_at) + connection
            if pattern:
                runs.append((pattern, {"text": text_at, "visual": visual_at, "connection": c}))
        text_at, visual_at = text_stop, visual_stop
    single("visual", visual_at, config.visual.num_layers)
    single("text", text_at, config.text.num_layers)

    # A segment must not run across the point where gradients stop, nor across the point just before
    # the first connection, where the retrieval fast path pairs captions with images.
    boundaries = {("text", config.text.num_frozen_layers), ("visual", config.visual.num_frozen_layers)}
    if config.text_connections:
        boundaries |= {("text", config.text_connections[0]), ("visual", config.visual_connections[0])}
    merged: list[Segment] = []
    for pattern, first in runs:
        previous = merged[-1] if merged else None
        if (
            previous is not None
            and previous.pattern == pattern
            and all(previous.first[k] + previous.repeats * pattern.count(k) == first[k] for k in pattern)
            and not any((k, first[k]) in boundaries for k in pattern)
        ):
            merged[-1] = dataclasses.replace(previous, repeats=previous.repeats + 1)
        else:
            merged.append(Segment(pattern, first, 1))
    return tuple(merged)


def execution_order(config: TwoStreamConfig) -> tuple[tuple[str, int], ...]:
    """All layers in the order in which they run, as (kind, layer id)."""
    return tuple(layer for s in segments(config) for r in range(s.repeats) for layer in s.layers(r))


def order_string(config: TwoStreamConfig) -> str:
    """The execution order as text, e.g. "T0 T1 T2 T3 T4 T5 C0 T6 V0 C1 ..."."""
    letters = {"text": "T", "visual": "V", "connection": "C"}
    return " ".join(f"{letters[kind]}{i}" for kind, i in execution_order(config))


# --------------------------------------------------------------------------------------------------- shipped sizes


def _base_text(**overrides: Any) -> StreamConfig:
    return dataclasses.replace(StreamConfig(num_layers=12, hidden_dim=768, num_heads=12, mlp_dim=3072), **overrides)


def _large_text() -> StreamConfig:
    return StreamConfig(num_layers=24, hidden_dim=1024, num_heads=16, mlp_dim=4096)


def _connected(text: StreamConfig, num_visual_layers: int, **overrides: Any) -> TwoStreamConfig:
    """The last `num_visual_layers` text layers each get a connection; the visual stream starts at the first of them."""
    n = num_visual_layers
    return TwoStreamConfig(
        text=text,
        visual=StreamConfig(num_layers=n, hidden_dim=1024, num_heads=8, mlp_dim=1024),
        text_connections=tuple(range(text.num_layers - n, text.num_layers)),
        visual_connections=tuple(range(n)),
        **overrides,
    )


# RoBERTa's own position table starts at row 2 (its padding id + 1). The released code looked up rows from 0.
_ROBERTA = dict(vocab_size=50265, max_positions=514, num_token_types=1, position_offset=2)

SIZES: Mapping[str, TwoStreamConfig] = {
    **{f"base_{n}l": _connected(_base_text(), n) for n in (2, 4, 6, 8)},
    **{f"large_{n}l": _connected(_large_text(), n) for n in (2, 4, 6)},
    **{f"roberta_base_{n}l": _connected(_base_text(), n, **_ROBERTA) for n in (2, 4, 6, 8)},
    "tiny": TwoStreamConfig(
        text=StreamConfig(num_layers=3, hidden_dim=64, num_heads=4, mlp_dim=128),
        visual=StreamConfig(num_layers=2, hidden_dim=64, num_heads=4, mlp_dim=64),
        text_connections=(1, 2),
        visual_connections=(0, 1),
        coattention_dim=64,
        coattention_heads=4,
        vocab_size=512,
        max_positions=64,
        region_feature_dim=32,
        num_region_classes=16,
        num_vqa_answers=32,
        num_gqa_answers=24,
    ),
}


def named_size(name: str) -> TwoStreamConfig:
    """The shipped configuration `name`.

    Raises:
      ValueError: unknown name; the message lists the near ones.
    """
    if name not in SIZES:
        near = difflib.get_close_matches(name, SIZES, n=3) or sorted(SIZES)
        raise ValueError(f"unknown model size {name!r}; did you mean {', '.join(near)}? All: {', '.join(sorted(SIZES))}")
    return SIZES[name]


# ---------------------------------------------------------------------------------------- JSON of the released code

# Read by nothing in the released code, or settings of a run and not of the model. Accepted, named in one log line.
_INERT_KEYS = ("v_initializer_range", "bi_intermediate_size", "bi_attention_type", "pooling_method")
_RUN_KEYS = (
    "model", "fast_mode", "in_batch_pairs", "objective", "num_negative", "visualization", "output_attentions",
    "output_hidden_states", "torchscript", "pruned_heads", "finetuning_task", "num_labels", "layer_norm_eps",
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
_REQUIRED_KEYS = ("t_biattention_id", "v_biattention_id", *_STREAM_KEYS, *(f"v_{k}" for k in _STREAM_KEYS))
_NUM_TASKS = 20  # rows of the released task table


def from_reference(raw: Mapping[str, Any], **overrides: Any) -> TwoStreamConfig:
    """A `TwoStreamConfig` from the released code's JSON keys.

    Keys that the released code never reads, and settings of a run, are accepted and named in a log line.

    Args:
      raw: the JSON object, e.g. of `bert_base_6layer_6conect.json`.
      **overrides: fields of `TwoStreamConfig` to set afterwards (`heads`, `dtype`, ...).

    Raises:
      ValueError: missing keys, unknown keys (with the nearest known name), or inconsistent sizes.
    """
    known = {*_STREAM_KEYS, *(f"v_{k}" for k in _STREAM_KEYS), *_MODEL_KEYS, *_INERT_KEYS, *_RUN_KEYS}
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

    # The visual embedding takes its dropout from the text stream (see `TwoStreamTrunk`), so nothing is lost here.
    fields = {ours: raw[theirs] for theirs, ours in _MODEL_KEYS.items() if theirs in raw}
    for key in ("text_connections", "visual_connections"):
        fields[key] = tuple(fields[key])
    fields["num_tasks"] = _NUM_TASKS if raw.get("task_specific_tokens", False) else 0
    return TwoStreamConfig(
        text=stream("", "fixed_t_layer"), visual=stream("v_", "fixed_v_layer"), **(fields | overrides)
    )


def to_reference(config: TwoStreamConfig) -> dict[str, Any]:
    """The JSON keys of the released code for `config`, the inverse of `from_reference` for all model keys."""
    raw: dict[str, Any] = {theirs: getattr(config.text, ours) for theirs, ours in _STREAM_KEYS.items()}
    raw |= {f"v_{theirs}": getattr(config.visual, ours) for theirs, ours in _STREAM_KEYS.items()}
    raw |= {theirs: getattr(config, ours) for theirs, ours in _MODEL_KEYS.items()}
    raw["t_biattention_id"], raw["v_biattention_id"] = list(config.text_connections), list(config.visual_connections)
    raw |= {"fixed_t_layer": config.text.num_frozen_layers, "fixed_v_layer": config.visual.num_frozen_layers}
    return raw | {"task_specific_tokens": config.num_tasks > 0}


def to_json(config: TwoStreamConfig) -> str:
    """`config` as the JSON text that `from_json` reads."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> TwoStreamConfig:
    """The inverse of `to_json`.

    Raises:
      ValueError: not a JSON object, unknown or missing fields, or inconsistent sizes.
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f"a model config is a JSON object, got {type(raw).__name__}")
    known = {field.name for field in dataclasses.fields(TwoStreamConfig)}
    unknown = sorted(set(raw) - known)
    missing = sorted({"text", "visual", "text_connections", "visual_connections"} - set(raw))
    if unknown or missing:
        raise ValueError(f"model config: unknown fields {unknown}, missing fields {missing}")
    raw = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    try:
        raw["text"], raw["visual"] = StreamConfig(**raw["text"]), StreamConfig(**raw["visual"])
    except TypeError as error:
        raise ValueError(f"model config: {error}") from error
    return TwoStreamConfig(**raw)


def load(source: str | Path) -> TwoStreamConfig:
    """The config that `source` names: a shipped size, our `config.json`, or a JSON file of the released code.

    Raises:
      ValueError: no such size or file, not JSON, or a config that does not hold together; names the file.
    """
    path = Path(source)
    if path.suffix != ".json":
        return named_size(str(source))
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
        if isinstance(raw, dict) and "num_hidden_layers" in raw:
            return from_reference(raw)
        return from_json(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"model config {path}: {error}") from error
