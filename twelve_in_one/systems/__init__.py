"""The systems that the package trains: models with the interface that the trainer needs."""

import json
from collections.abc import Mapping
from typing import Any

from twelve_in_one.systems.base import System
from twelve_in_one.systems.image_classifier import ImageClassifierSystem
from twelve_in_one.systems.lit_decoder import LitDecoderSystem
from twelve_in_one.systems.mammut import MammutSystem
from twelve_in_one.systems.mammut_detector import MammutDetectorSystem
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.systems.vilbert_grid import GridVilbert

SYSTEMS: Mapping[str, type[System]] = {
    "vilbert": Vilbert,
    "vilbert_grid": GridVilbert,
    "image_classifier": ImageClassifierSystem,
    "lit_decoder": LitDecoderSystem,
    "mammut": MammutSystem,
    "mammut_detector": MammutDetectorSystem,
}


def from_json(text: str) -> System:
    """Reads the output of `System.to_json`; earlier formats without a system mean `Vilbert`.

    Raises:
      ValueError: not a JSON object, an unknown system or version, or fields that do not fit.
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f"a model config is a JSON object, got {type(raw).__name__}")
    return from_dict(raw)


def from_dict(raw: Mapping[str, Any]) -> System:
    """See `from_json`."""
    name, version = raw.get("system", Vilbert.name), raw.get("version", 1)
    if name not in SYSTEMS:
        raise ValueError(
            f"system {name!r} is none of {', '.join(SYSTEMS)}; is the package too old?"
        )
    system = SYSTEMS[name]
    if not isinstance(version, int) or version > system.version:
        raise ValueError(
            f"version {version!r} of {name}, this package knows {system.version}: use a newer one"
        )
    fields = {key: value for key, value in raw.items() if key not in ("system", "version")}
    return system.from_fields(fields)
