"""A plain BERT as the start of the text stream, as in pretraining."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twelve_in_one.convert.names import WORD_TABLE, Entry
from twelve_in_one.convert.state_dict import Loaded, from_state_dict, normalise_names
from twelve_in_one.models.two_stream.config import StreamConfig, TwoStreamConfig

_MLM_BIAS, _MLM_BIAS_COPY = "cls.predictions.bias", "cls.predictions.decoder.bias"
_BARE_PREFIXES = ("embeddings.", "encoder.", "pooler.")
# Further parts of BERT: the released code also leaves out its pooler and next-sentence head.
_NOT_USED = (r"bert\.pooler\..*", r"cls\..*", r"bert\.embeddings\.position_ids")
_TEXT_STREAM = r"bert\.embeddings\.(?!task_embeddings)|bert\.encoder\.layer\."
# Libraries' names of the activations; the two kinds of GELU give different numbers.
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
    "silu": "swish", "swish": "swish",
}  # fmt: skip
_KEYS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "vocab_size", "max_position_embeddings",
    "type_vocab_size",
)  # fmt: skip
# Settings that must agree for the weights to mean the same; dropout is the user's choice.
_TEXT_FIELDS = ("num_layers", "hidden_dim", "num_heads", "mlp_dim", "activation")


def is_bert(names: Iterable[str]) -> bool:
    """Whether normalised `names` are those of a BERT, and not of a two-stream model."""
    names = set(names)
    tables = {WORD_TABLE, WORD_TABLE.removeprefix("bert.")}
    return bool(names & tables) and not any("v_embeddings." in name for name in names)


def bert_text_stream(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A BERT's tensors under the two-stream model's names for them.

    Names may come with or without "bert." and "module.", and with "gamma" and "beta".

    Args:
      tensors: {name: array} of a BERT or of a model around it.

    Raises:
      ValueError: two names for one entry.
    """
    renamed = {
        f"bert.{name}" if name.startswith(_BARE_PREFIXES) else name: tensor
        for name, tensor in normalise_names(tensors).items()
    }
    if _MLM_BIAS not in renamed and _MLM_BIAS_COPY in renamed:
        renamed[_MLM_BIAS] = renamed.pop(_MLM_BIAS_COPY)
    return renamed


def from_bert(
    config: TwoStreamConfig,
    tensors: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter,
) -> Loaded:
    """Parameters whose text stream is a BERT's, and whose other parts are initialised.

    Text embeddings and layers must all be present. The masked-language head is used if the file
    has one. See `from_state_dict` for the arguments.

    Raises:
      StateDictError: the text stream is incomplete or of another size; carries the report.
      ValueError: see `from_state_dict`.
    """
    renamed = bert_text_stream(tensors)
    has_head = any(name.startswith("cls.predictions.transform.") for name in renamed)
    required = _TEXT_STREAM + (r"|cls\.predictions\." if has_head else "")
    return from_state_dict(
        config,
        renamed,
        allow_missing=(*allow_missing, f"(?!{required}).*"),
        allow_unexpected=(*allow_unexpected, *_NOT_USED),
        seed=seed,
        progress=progress,
    )


def with_bert_text(base: TwoStreamConfig, raw: Mapping[str, Any]) -> TwoStreamConfig:
    """`base` with the text stream of a BERT.

    The connections keep their distance from the last text layer.

    Args:
      base: everything but the text stream.
      raw: the BERT's config.json.

    Raises:
      ValueError: missing keys, a kind of BERT that the text stream does not support, or
        connections that do not fit its layers.
    """
    fields = _text_fields(raw)
    num_layers = fields["text"].num_layers
    connections = tuple(i + num_layers - base.text.num_layers for i in base.text_connections)
    if connections and connections[0] < 0:
        raise ValueError(
            f"connections that precede text layers {base.text_connections} of "
            f"{base.text.num_layers} do not fit the {num_layers} layers of the BERT: give a config "
            "with fewer connections"
        )
    return dataclasses.replace(base, text_connections=connections, **fields)


def check_bert_config(config: TwoStreamConfig, raw: Mapping[str, Any]) -> None:
    """Compares the text stream of `config` with a BERT's config.json.

    Weights alone do not show the number of heads, the activation or the layer norm's epsilon.

    Raises:
      ValueError: they differ; lists every difference.
    """
    fields = _text_fields(raw)
    text = fields.pop("text")
    pairs = [(f"text.{f}", getattr(config.text, f), getattr(text, f)) for f in _TEXT_FIELDS]
    pairs += [(name, getattr(config, name), theirs) for name, theirs in fields.items()]
    errors = [f"{name} is {ours}, the BERT has {its}" for name, ours, its in pairs if ours != its]
    if errors:
        raise ValueError("the config does not fit the BERT: " + "; ".join(errors))


def _text_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `TwoStreamConfig` set by a BERT's config.json.

    Raises:
      ValueError: missing or unsupported keys; lists them.
    """
    errors = [f"missing key {key!r}" for key in _KEYS if key not in raw]
    for key, accepted in (
        ("model_type", ("bert",)),
        ("position_embedding_type", ("absolute",)),
        ("hidden_act", tuple(_ACTIVATIONS)),
    ):
        if raw.get(key, accepted[0]) not in accepted:
            errors.append(f"{key} {raw[key]!r} is not one of {accepted}")
    if errors:
        raise ValueError("config of the BERT: " + "; ".join(errors))
    text = StreamConfig(
        num_layers=raw["num_hidden_layers"],
        hidden_dim=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        mlp_dim=raw["intermediate_size"],
        activation=_ACTIVATIONS[raw["hidden_act"]],
        dropout_rate=raw["hidden_dropout_prob"],
        attention_dropout_rate=raw["attention_probs_dropout_prob"],
    )
    return {
        "text": text,
        "vocab_size": raw["vocab_size"],
        "max_positions": raw["max_position_embeddings"],
        "num_token_types": raw["type_vocab_size"],
        "layer_norm_eps": raw.get("layer_norm_eps", 1e-12),
    }
