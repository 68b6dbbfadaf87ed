"""The order in which layers run, divided into repeated stretches."""

import dataclasses
from collections.abc import Mapping

from twelve_in_one.models.two_stream.config import TwoStreamConfig


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of the execution order: the layers of `pattern` once, or `repeats` times over.

    Attributes:
      pattern: kinds in order of execution, of "text", "visual", "connection".
      first: for each kind, the id of its first layer in this segment.
      repeats: how often the pattern runs; each repeat advances the ids of a kind by its number of
        occurrences in the pattern.
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

    For connection c the layers of both streams up to the ids of c run first (text, then visual),
    then the connection; after the last one the remaining visual layers, then the remaining text
    layers (released code, `BertEncoder`). Layers before the first connection, and frozen layers,
    form separate segments.
    """
    runs: list[tuple[tuple[str, ...], dict[str, int]]] = []

    def single(kind: str, start: int, stop: int) -> None:
        runs.extend(((kind,), {kind: i}) for i in range(start, stop))

    text_at = visual_at = 0
    for c, (text_stop, visual_stop) in enumerate(
        zip(config.text_connections, config.visual_connections, strict=True)
    ):
        connection = ("connection",) if config.with_coattention else ()
        if c == 0:
            single("text", 0, text_stop)
            single("visual", 0, visual_stop)
            if connection:
                runs.append((connection, {"connection": 0}))
        else:
            pattern = (
                ("text",) * (text_stop - text_at)
                + ("visual",) * (visual_stop - visual_at)
                + connection
            )
            if pattern:
                runs.append((pattern, {"text": text_at, "visual": visual_at, "connection": c}))
        text_at, visual_at = text_stop, visual_stop
    single("visual", visual_at, config.visual.num_layers)
    single("text", text_at, config.text.num_layers)

    # A segment must not run across the point where gradients stop, nor across the point just before
    # the first connection, where the retrieval fast path pairs captions with images.
    boundaries = {
        ("text", config.text.num_frozen_layers),
        ("visual", config.visual.num_frozen_layers),
    }
    if config.text_connections:
        boundaries |= {
            ("text", config.text_connections[0]),
            ("visual", config.visual_connections[0]),
        }
    merged: list[Segment] = []
    for pattern, first in runs:
        previous = merged[-1] if merged else None
        if (
            previous is not None
            and previous.pattern == pattern
            and all(
                previous.first[k] + previous.repeats * pattern.count(k) == first[k] for k in pattern
            )
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
