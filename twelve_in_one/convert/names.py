"""The place and layout of each tensor of a released checkpoint in our parameters.

One table, made from a config, serves reading, writing, parity and parameter counts.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import flax.linen as nn
import numpy as np

from twelve_in_one.checkpoints.trees import Path, flatten
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.trunk import abstract_params

WORD_TABLE = "bert.embeddings.word_embeddings.weight"
TIED_DECODER = "cls.predictions.decoder.weight"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a released state dict.

    Attributes:
      name: its name there, without a `module.` prefix.
      shape: its shape there; a linear weight is (out, in).
      path: our parameter below "params"; None for an entry that our model does not use (an unused
        layer, or the decoder that shares the word table).
      our_shape: the shape of our parameter; () if `path` is None.
      transpose: True for linear weights.
    """

    name: str
    shape: tuple[int, ...]
    path: Path | None
    our_shape: tuple[int, ...] = ()
    transpose: bool = False

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The tensor in our layout (a view where possible)."""
        return (array.T if self.transpose else array).reshape(self.our_shape)

    def from_ours(self, array: np.ndarray) -> np.ndarray:
        """Our parameter in the released layout (a view where possible)."""
        if self.transpose:
            return array.reshape(self.shape[::-1]).T
        return array.reshape(self.shape)


def _layer(prefix: str, path: Path) -> Iterator[tuple[str, Path]]:
    """A self-attention layer: (released module, our module)."""
    for name in ("query", "key", "value"):
        yield f"{prefix}.attention.self.{name}", (*path, "attention", name)
    yield f"{prefix}.attention.output.dense", (*path, "attention", "out")
    yield f"{prefix}.attention.output.LayerNorm", (*path, "attention_norm")
    yield from _feed_forward(prefix, "", (*path, "feed_forward"))


def _feed_forward(prefix: str, stream: str, path: Path) -> Iterator[tuple[str, Path]]:
    yield f"{prefix}.{stream}intermediate.dense", (*path, "up")
    yield f"{prefix}.{stream}output.dense", (*path, "down")
    yield f"{prefix}.{stream}output.LayerNorm", (*path, "norm")


def _connection(prefix: str, path: Path) -> Iterator[tuple[str, Path]]:
    """A connection layer. Suffix 1 is vision, 2 is text; the outputs are crossed over."""
    text, visual = (*path, "text_reads_visual"), (*path, "visual_reads_text")
    yield f"{prefix}.biattention.query1", (*visual, "query")
    yield f"{prefix}.biattention.key1", (*text, "key")
    yield f"{prefix}.biattention.value1", (*text, "value")
    yield f"{prefix}.biattention.query2", (*text, "query")
    yield f"{prefix}.biattention.key2", (*visual, "key")
    yield f"{prefix}.biattention.value2", (*visual, "value")
    yield f"{prefix}.biOutput.dense1", (*visual, "out")
    yield f"{prefix}.biOutput.LayerNorm1", (*path, "visual_norm")
    yield f"{prefix}.biOutput.dense2", (*text, "out")
    yield f"{prefix}.biOutput.LayerNorm2", (*path, "text_norm")
    yield from _feed_forward(prefix, "v_", (*path, "visual_feed_forward"))
    yield from _feed_forward(prefix, "t_", (*path, "text_feed_forward"))


def _trunk_modules(config: TwoStreamConfig) -> Iterator[tuple[str, Path]]:
    text = ("trunk", "text_embedding")
    yield "bert.embeddings.word_embeddings", (*text, "word")
    yield "bert.embeddings.position_embeddings", (*text, "position")
    yield "bert.embeddings.token_type_embeddings", (*text, "token_type")
    yield "bert.embeddings.LayerNorm", (*text, "norm")
    if config.num_tasks:
        yield "bert.embeddings.task_embeddings", (*text, "task")
    visual = ("trunk", "visual_embedding")
    yield "bert.v_embeddings.image_embeddings", (*visual, "feature")
    yield "bert.v_embeddings.image_location_embeddings", (*visual, "box")
    yield "bert.v_embeddings.LayerNorm", (*visual, "norm")
    encoder = ("trunk", "encoder")
    for i in range(config.text.num_layers):
        yield from _layer(f"bert.encoder.layer.{i}", (*encoder, f"text_layer_{i}"))
    for i in range(config.visual.num_layers):
        prefix, path = f"bert.encoder.v_layer.{i}", (*encoder, f"visual_layer_{i}")
        if config.dynamic_attention:
            yield f"{prefix}.attention.self.dyLinear_q", (*path, "query_gate")
            yield f"{prefix}.attention.self.dyLinear_k", (*path, "key_gate")
        yield from _layer(prefix, path)
    for i in range(config.num_connections):
        yield from _connection(f"bert.encoder.c_layer.{i}", (*encoder, f"connection_{i}"))
    yield "bert.t_pooler.dense", ("trunk", "text_pooler")
    yield "bert.v_pooler.dense", ("trunk", "visual_pooler")


def _head_modules(head: str) -> Iterator[tuple[str, Path]]:
    path = ("heads", head)
    classifiers = {
        "vqa": "vil_prediction",
        "gqa": "vil_prediction_gqa",
        "image_pair": "vil_binary_prediction",
    }
    linears = {
        "image_text_match": "vil_logit",
        "three_way": "vil_tri_prediction",
        "region_score": "vision_logit",
        "token_score": "linguisic_logit",  # the released files' spelling
        "alignment": "cls.bi_seq_relationship",
    }
    if head in classifiers:
        for number, part in (("0", "hidden"), ("2", "norm"), ("3", "logits")):
            yield f"{classifiers[head]}.logit_fc.{number}", (*path, part)
    elif head in linears:
        yield linears[head], path
    elif head == "masked_language":
        yield "cls.predictions.transform.dense", (*path, "dense")
        yield "cls.predictions.transform.LayerNorm", (*path, "norm")
    elif head == "masked_region":
        yield "cls.imagePredictions.transform.dense", (*path, "dense")
        yield "cls.imagePredictions.transform.LayerNorm", (*path, "norm")
        yield "cls.imagePredictions.decoder", ("heads", "masked_region_logits")


@functools.lru_cache(maxsize=8)  # half a second each, and conversions call it repeatedly
def table(config: TwoStreamConfig) -> tuple[Entry, ...]:
    """All entries of the released state dict for `config`, dead and shared ones included.

    Paths are always those of the unrolled layout, regardless of `config.scan_layers`.
    """
    # A model that skips its connections has no parameters for them; a released file still does.
    unrolled = dataclasses.replace(config, scan_layers=False, with_coattention=True)
    shapes = {p: leaf.shape for p, leaf in flatten(nn.unbox(abstract_params(unrolled))).items()}
    entries = []
    modules = list(_trunk_modules(config))
    for head in config.heads:
        modules += _head_modules(head)
    for name, path in modules:
        if (*path, "embedding") in shapes:
            leaf = (*path, "embedding")
            entries.append(Entry(f"{name}.weight", shapes[leaf], leaf, shapes[leaf]))
            continue
        bias_shape = shapes[*path, "bias"]
        features = math.prod(bias_shape)
        if (*path, "kernel") in shapes:
            leaf = (*path, "kernel")
            shape = (features, math.prod(shapes[leaf]) // features)
            entries.append(Entry(f"{name}.weight", shape, leaf, shapes[leaf], transpose=True))
        else:
            leaf = (*path, "scale")
            entries.append(Entry(f"{name}.weight", shapes[leaf], leaf, shapes[leaf]))
        entries.append(Entry(f"{name}.bias", (features,), (*path, "bias"), bias_shape))

    if not config.with_coattention:
        entries = [
            Entry(e.name, e.shape, None) if e.name.startswith("bert.encoder.c_layer.") else e
            for e in entries
        ]

    # Declared, saved and never used: each connection's q_dense1 and q_dense2.
    dim = config.coattention_dim
    for i in range(config.num_connections):
        for number, width in (("1", config.visual.hidden_dim), ("2", config.text.hidden_dim)):
            name = f"bert.encoder.c_layer.{i}.biOutput.q_dense{number}"
            entries.append(Entry(f"{name}.weight", (width, dim), None))
            entries.append(Entry(f"{name}.bias", (width,), None))
    if "masked_language" in config.heads:
        leaf = ("heads", "masked_language_bias")
        entries.append(Entry("cls.predictions.bias", shapes[leaf], leaf, shapes[leaf]))
        tied = (config.vocab_size, config.text.hidden_dim)
        entries.append(Entry(TIED_DECODER, tied, None))
    return tuple(entries)


def count_released(config: TwoStreamConfig) -> int:
    """Parameters in the released code's accounting: unused layers count, shared ones once."""
    return sum(math.prod(e.shape) for e in table(config) if e.name != TIED_DECODER)
