"""Sizes and numerics of the two-stream model, as plain data.

Shape letters used throughout `models/`: B batch, T text tokens before the task slot, S text
positions (T + 1 with a task token, else T), R regions, D text width, V visual width, C co-attention
width, F region feature size, N heads, H head size, L labels.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

# The heads of the released downstream model, which also holds the pretraining heads.
TASK_HEADS = (
    "vqa",
    "gqa",
    "image_pair",
    "image_text_match",
    "three_way",
    "region_score",
    "token_score",
)
PRETRAINING_HEADS = ("masked_language", "masked_region", "alignment")
ALL_HEADS = TASK_HEADS + PRETRAINING_HEADS
# Names of heads' parameters, not allowed for a user's own heads.
RESERVED_HEADS = (*ALL_HEADS, "masked_region_logits", "masked_language_bias")

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "swish")
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
      activation: one of `ACTIVATIONS`; "gelu" is the exact erf form. The text stream's is also used
        by both masked-modelling heads.
      dropout_rate: dropout on sub-layer outputs. The text stream's also applies to both embeddings.
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
    """Settings shared by all layers of a model; three reference families differ in each of these.

    Attributes:
      dtype: compute dtype.
      layer_norm_eps: added to the variance inside the square root.
      initializer_range: standard deviation of the normal initialiser; None draws kernels as
        Xavier-uniform instead (big_vision).
    """

    dtype: str
    layer_norm_eps: float
    initializer_range: float | None


@dataclasses.dataclass(frozen=True)
class TwoStreamConfig:
    """The two-stream (ViLBERT) model of 12-in-1.

    Attributes:
      text: the text stream.
      visual: the visual stream.
      text_connections: connection c runs once text layers 0 .. text_connections[c] - 1 and visual
        layers 0 .. visual_connections[c] - 1 have run (the reference's `t_biattention_id`).
      visual_connections: the same for the visual stream (`v_biattention_id`).
      coattention_dim: width C of its joint queries, keys and values, and of the pooled vectors.
      coattention_heads: heads of the co-attention.
      vocab_size: word pieces.
      max_positions: rows of the position table.
      position_offset: first row of the position table that is used (2 for RoBERTa's weights).
      num_token_types: rows of the token-type table.
      num_tasks: rows of the task-token table, indexed by the task ids of the reference (1 VQA ...
        17 GuessWhat); 0 omits the task token (paper section 3.2).
      region_feature_dim: size F of a region feature.
      num_region_classes: classes of the masked-region head when `visual_target` is 0.
      visual_target: target of a masked region: 0 its class distribution, 1 its feature, 2 its
        feature by contrast (NCE).
      num_vqa_answers: labels of the head that VQA and Visual Genome QA share.
      num_gqa_answers: labels of the GQA head.
      fusion: combines the pooled vectors: "mul" or "sum".
      with_coattention: False skips every connection layer.
      dynamic_attention: text gates the queries and keys of the visual self-attention.
      heads: heads that exist in the model; any subset can be computed in a call.
      own_heads: additional heads, for the user's own datasets with labels that no head of `heads`
        has: (name, labels L, images per example: 1 or 2) each.
      head_dropout_rate: dropout on the heads' inputs: the fused vector, and the states of scored
        regions and tokens. The released code sets 0.1, regardless of its config.
      layer_norm_eps: added to the variance inside the square root.
      initializer_range: standard deviation of the normal initialiser of every matrix and table.
      answer_bias: initial bias of the answer heads' labels. Of thousands of answers with a sigmoid
        each, nearly all are wrong: starting at the log odds of being right, -6.5, saves small
        models the time to learn that. 0 in the released code.
      dtype: compute dtype; parameters, softmax and layer-norm statistics are float32 or wider.
      scan_layers: run repeated layers with `lax.scan`: the same numbers, shorter compilation,
        stacked parameters.
      remat: "none", "full" (keep only layer inputs) or "dots" (also keep matmul outputs that have
        no batch dimension).
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
    own_heads: tuple[tuple[str, int, int], ...] = ()
    head_dropout_rate: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    answer_bias: float = 0.0
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"

    # No field: only `grid.GridTwoStreamConfig` reads pictures.
    grid: ClassVar[Any] = None

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
        """Connection layers in the parameters, whether or not `with_coattention` runs them."""
        return len(self.text_connections)

    @property
    def num_answers(self) -> Mapping[str, int]:
        """Labels of each head with its own answers."""
        own = {name: labels for name, labels, _ in self.own_heads}
        return {"vqa": self.num_vqa_answers, "gqa": self.num_gqa_answers} | own

    @property
    def all_heads(self) -> tuple[str, ...]:
        """Names of `heads` and `own_heads`."""
        return (*self.heads, *(name for name, *_ in self.own_heads))

    @property
    def masked_region_dim(self) -> int:
        """Outputs of the masked-region head: classes, or the feature size if that is predicted."""
        return self.num_region_classes if self.visual_target == 0 else self.region_feature_dim


def _config_errors(config: TwoStreamConfig) -> list[str]:
    errors = []
    for name, stream, ids in (
        ("text", config.text, config.text_connections),
        ("visual", config.visual, config.visual_connections),
    ):
        if stream.hidden_dim % stream.num_heads:
            errors.append(
                f"{name}.hidden_dim {stream.hidden_dim} is not a multiple of "
                f"{stream.num_heads} heads"
            )
        if stream.activation not in ACTIVATIONS:
            errors.append(f"{name}.activation {stream.activation!r} is not one of {ACTIVATIONS}")
        for rate in ("dropout_rate", "attention_dropout_rate"):
            if not 0.0 <= getattr(stream, rate) < 1.0:
                errors.append(f"{name}.{rate} {getattr(stream, rate)} is outside [0, 1)")
        if list(ids) != sorted(ids) or any(i < 0 or i >= stream.num_layers for i in ids):
            errors.append(
                f"{name}_connections {ids} must be ascending layer ids below {stream.num_layers}"
            )
        first = ids[0] if ids else stream.num_layers
        if not 0 <= stream.num_frozen_layers <= first:
            errors.append(
                f"{name}.num_frozen_layers {stream.num_frozen_layers} must lie in 0..{first}: "
                "freezing past the first connection would also cut the other stream's gradient"
            )
    if not config.text_connections:
        errors.append("text_connections is empty: the two streams need at least one connection")
    if len(config.text_connections) != len(config.visual_connections):
        errors.append(
            f"text_connections has {len(config.text_connections)} entries, "
            f"visual_connections {len(config.visual_connections)}; they pair up one to one"
        )
    if config.coattention_dim % config.coattention_heads:
        errors.append(
            f"coattention_dim {config.coattention_dim} is not a multiple of "
            f"{config.coattention_heads} heads"
        )
    if not 0.0 <= config.head_dropout_rate < 1.0:
        errors.append(f"head_dropout_rate {config.head_dropout_rate} is outside [0, 1)")
    if config.visual_target not in (0, 1, 2):
        errors.append(f"visual_target {config.visual_target!r} is not 0, 1 or 2")
    for field, allowed in (
        ("fusion", ("mul", "sum")),
        ("dtype", DTYPES),
        ("remat", REMAT_POLICIES),
    ):
        if getattr(config, field) not in allowed:
            errors.append(f"{field} {getattr(config, field)!r} is not one of {allowed}")
    unknown = [head for head in config.heads if head not in ALL_HEADS]
    if unknown:
        errors.append(f"unknown heads {unknown}; known: {ALL_HEADS}")
    for own in config.own_heads:
        if len(own) != 3 or own[0] in RESERVED_HEADS or own[1] < 1 or own[2] not in (1, 2):
            errors.append(f"own head {own} must be (a new name, labels from 1 on, 1 or 2 images)")
    if len(set(config.all_heads)) < len(config.all_heads):
        errors.append(f"heads {config.all_heads} must differ")
    return errors


def _base_text(**overrides: Any) -> StreamConfig:
    return dataclasses.replace(
        StreamConfig(num_layers=12, hidden_dim=768, num_heads=12, mlp_dim=3072), **overrides
    )


def _large_text() -> StreamConfig:
    return StreamConfig(num_layers=24, hidden_dim=1024, num_heads=16, mlp_dim=4096)


def _connected(text: StreamConfig, num_visual_layers: int, **overrides: Any) -> TwoStreamConfig:
    """Puts a connection before each of the last `num_visual_layers` text layers."""
    n = num_visual_layers
    return TwoStreamConfig(
        text=text,
        visual=StreamConfig(num_layers=n, hidden_dim=1024, num_heads=8, mlp_dim=1024),
        text_connections=tuple(range(text.num_layers - n, text.num_layers)),
        visual_connections=tuple(range(n)),
        **overrides,
    )


# RoBERTa was trained with positions from row 2 (its padding id + 1). The released two-stream
# code looks them up from row 0; `reference_config.from_reference` keeps this.
_ROBERTA = dict(vocab_size=50265, max_positions=514, num_token_types=1, position_offset=2)

SYSTEM = "vilbert"  # name of the system that trains it

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
        initializer_range=0.1,  # 0.02 suits a width of 768; signals of narrow models would vanish
    ),
}


def named_size(name: str) -> TwoStreamConfig:
    """The shipped configuration `name`.

    Raises:
      ValueError: unknown name; the message lists similar ones.
    """
    if name not in SIZES:
        near = difflib.get_close_matches(name, SIZES, n=3) or sorted(SIZES)
        raise ValueError(
            f"unknown model size {name!r}; did you mean {', '.join(near)}? "
            f"All: {', '.join(sorted(SIZES))}"
        )
    return SIZES[name]


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
    # Which a model folder's config.json names as well.
    if raw.get("system", SYSTEM) != SYSTEM:
        raise ValueError(f"the config is of a model of {raw['system']!r}, not of {SYSTEM!r}")
    return from_dict({key: x for key, x in raw.items() if key not in ("system", "version")})


def from_dict(raw: Mapping[str, Any]) -> TwoStreamConfig:
    """The inverse of `dataclasses.asdict`; lists may stand for tuples.

    Raises:
      ValueError: unknown or missing fields, or inconsistent sizes.
    """
    known = {field.name for field in dataclasses.fields(TwoStreamConfig)}
    unknown = sorted(set(raw) - known)
    missing = sorted({"text", "visual", "text_connections", "visual_connections"} - set(raw))
    if unknown or missing:
        raise ValueError(f"model config: unknown fields {unknown}, missing fields {missing}")
    values = {k: tuple(value) if isinstance(value, list) else value for k, value in raw.items()}
    if "own_heads" in values:
        values["own_heads"] = tuple(map(tuple, values["own_heads"]))
    try:
        values["text"] = StreamConfig(**values["text"])
        values["visual"] = StreamConfig(**values["visual"])
    except TypeError as error:
        raise ValueError(f"model config: {error}") from error
    return TwoStreamConfig(**values)
