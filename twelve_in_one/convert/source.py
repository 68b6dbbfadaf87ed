"""The source of a conversion: its kind of checkpoint, and the model config for it."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from twelve_in_one.checkpoints import weights
from twelve_in_one.convert import bert, files, names
from twelve_in_one.convert.state_dict import normalise_names, to_state_dict
from twelve_in_one.models.two_stream import reference_config
from twelve_in_one.models.two_stream.config import (
    ALL_HEADS,
    PRETRAINING_HEADS,
    SIZES,
    TwoStreamConfig,
)
from twelve_in_one.systems.vilbert import Vilbert

Kind = Literal["checkpoint", "two_stream", "bert"]
_OFFICIAL_SIZE = "base_6l"  # of both released files
_OFFICIAL_TASKS = 20  # rows of their task table
_TASK_TABLE = "bert.embeddings.task_embeddings.weight"
_FILES = (files.SAFETENSORS_FILE, "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
      kind: one of our checkpoint directories, a two-stream state dict, or a BERT's.
      path: the directory, or the file with the tensors.
      tensors: {normalised name: array}, read lazily from files.
      config: the model's config if the source comes with one.
      bert_config: the BERT's config.json if the source comes with one.
    """

    kind: Kind
    path: Path
    tensors: Mapping[str, Any]
    config: TwoStreamConfig | None = None
    bert_config: Mapping[str, Any] | None = None


def open_source(path: str | os.PathLike[str]) -> Source:
    """Opens one of our directories, a directory with a known file, or a state dict file.

    Raises:
      ValueError: none of these, damaged, or holding neither a two-stream model nor a BERT.
      OSError: it does not exist or cannot be read.
      ImportError: a PyTorch file, and PyTorch is not installed.
    """
    path = Path(path)
    if weights.is_checkpoint(path):
        params, system, unused = weights.load_params(path)
        if system.name != Vilbert.name:
            raise ValueError(f"{path} holds a model of {system.name}, which has no released names")
        config = system.config
        return Source("checkpoint", path, dict(to_state_dict(config, params, unused)), config)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise ValueError(
                f"{path} is neither a checkpoint directory ({weights.CONFIG} and "
                f"{weights.PARAMS}/) nor does it hold {' or '.join(_FILES)}"
            )
        path = found[0]
    tensors = normalise_names(files.read_state_dict(path))
    beside = path.parent / files.CONFIG_FILE
    if bert.is_bert(tensors):
        return Source("bert", path, tensors, bert_config=_read_json(beside))
    if names.WORD_TABLE not in tensors:
        first = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"{path} holds neither a two-stream model nor a BERT: it has {len(tensors)} tensors, "
            f"but no word table; the first are {first}"
        )
    config = reference_config.load(beside) if beside.is_file() else None
    return Source("two_stream", path, tensors, config)


def choose_config(
    source: Source, requested: str | None, model: Literal["downstream", "pretraining"] | None
) -> tuple[TwoStreamConfig, list[str]]:
    """The config of the model to convert to, and how it was chosen.

    Args:
      source: from `open_source`.
      requested: a shipped size or a JSON file; None takes the source's own.
      model: which heads and task tokens to make; None takes those of the source.

    Raises:
      ValueError: no such config, no fitting one, or one that contradicts a BERT's.
    """
    if requested is not None:
        config, notes = reference_config.load(requested), [f"config: {requested}"]
    elif source.config is not None:
        config, notes = source.config, ["config: the one that comes with the source"]
    else:
        config, notes = SIZES[_OFFICIAL_SIZE], [f"config: {_OFFICIAL_SIZE}, as none is given"]

    if source.kind == "bert":
        if source.bert_config is None:
            notes.append("no config.json beside the BERT: its number of heads cannot be checked")
        elif requested is None:
            config = bert.with_bert_text(config, source.bert_config)
            notes.append("text stream: sizes of the BERT's config.json")
        else:
            bert.check_bert_config(config, source.bert_config)
    elif requested is None and source.config is None:
        _check_official_size(source)

    if model is None and source.kind == "bert":
        model = "pretraining"  # a BERT is the start of pretraining
    table = source.tensors.get(_TASK_TABLE)
    if model == "pretraining":
        return dataclasses.replace(config, heads=PRETRAINING_HEADS, num_tasks=0), notes
    if model == "downstream":
        num_tasks = (config.num_tasks or _OFFICIAL_TASKS) if table is None else table.shape[0]
        return dataclasses.replace(config, heads=ALL_HEADS, num_tasks=num_tasks), notes
    if _states_heads(source, requested):
        return config, notes
    # A size or a config of the released code does not list the heads.
    everything = dataclasses.replace(config, heads=ALL_HEADS, num_tasks=_OFFICIAL_TASKS)
    heads = _heads_in(everything, source.tensors)
    notes.append(f"heads, by what the file holds: {', '.join(heads) or 'none'}")
    num_tasks = 0 if table is None else table.shape[0]
    notes.append(f"task tokens, by what the file holds: {num_tasks or 'none'}")
    return dataclasses.replace(config, heads=heads, num_tasks=num_tasks), notes


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a JSON {type(raw).__name__}, not an object")
    return raw


def _states_heads(source: Source, requested: str | None) -> bool:
    if requested is None:
        return source.kind == "checkpoint"
    return requested.endswith(".json") and "heads" in (_read_json(Path(requested)) or {})


def _heads_in(config: TwoStreamConfig, present: Iterable[str]) -> tuple[str, ...]:
    """The heads of `config` with at least one entry in `present`."""
    present = set(present)
    modules = {
        entry.path[1]
        for entry in names.table(config)
        if entry.path is not None and entry.path[0] == "heads" and entry.name in present
    }
    # A head's own module or a related one: "masked_region", "masked_region_logits".
    return tuple(head for head in config.heads if any(m.startswith(head) for m in modules))


def _signature(config: TwoStreamConfig) -> tuple[int, ...]:
    text = (config.vocab_size, config.text.hidden_dim, config.text.num_layers)
    return (*text, config.visual.num_layers, config.num_connections)


def _check_official_size(source: Source) -> None:
    """Raises a ValueError naming the fitting size if it is not that of the released files."""

    def count(kind: str) -> int:
        found = (re.match(rf"bert\.encoder\.{kind}\.(\d+)\.", name) for name in source.tensors)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    layers = (count("layer"), count("v_layer"), count("c_layer"))
    signature = (*source.tensors[names.WORD_TABLE].shape, *layers)
    if signature == _signature(SIZES[_OFFICIAL_SIZE]):
        return
    fitting = [name for name, config in SIZES.items() if _signature(config) == signature]
    advice = f"--config {' or '.join(fitting)} fits" if fitting else "no shipped size fits"
    raise ValueError(
        f"{source.path} is not of the size {_OFFICIAL_SIZE}, which is assumed without a config: it "
        f"has a vocabulary of {signature[0]}, text width {signature[1]}, {layers[0]} text layers, "
        f"{layers[1]} visual layers and {layers[2]} connections; {advice}"
    )
