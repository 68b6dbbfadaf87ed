"""12-in-1 on pixels: its two-stream model, with a grid of a picture's cells beside boxes.

Tasks, losses and heads are those of `vilbert.py`. A task with `max_regions` 1 reads the whole
picture and the cells; with more, also candidate boxes, each as the map shows it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp

from twelve_in_one.config.settings import ConfigError, OfficialOptions, OptimizerOptions
from twelve_in_one.models.two_stream.grid import PICTURE_KEYS, GridTwoStreamConfig
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.systems import fields
from twelve_in_one.systems.base import Batch, ExportedInput, Facts
from twelve_in_one.systems.vilbert import IMAGE_KEYS, Vilbert
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import Task

SYSTEM = "vilbert_grid"


@dataclasses.dataclass(frozen=True)
class GridVilbert(Vilbert):
    """The two-stream model on an image encoder, with its config."""

    config: GridTwoStreamConfig

    name = SYSTEM
    config_type = GridTwoStreamConfig
    may_be_zero = (*Vilbert.may_be_zero, *fields.OF_ENCODERS)
    reads_pictures = True
    image_keys = (*IMAGE_KEYS, *PICTURE_KEYS)

    @classmethod
    def from_fields(cls, fields_: Mapping[str, Any]) -> Self:
        return cls(fields.build(GridTwoStreamConfig, fields_))

    @classmethod
    def resolve(cls, fields_: Mapping[str, Any], facts: Facts) -> Self:
        if fields_["grid"]["region_features"]:
            if not facts.feature_dim:
                raise ConfigError(["model.grid.region_features: the data has none"])
            return super().resolve(fields_, facts)
        found = super().resolve(fields_, dataclasses.replace(facts, feature_dim=0))
        return cls(dataclasses.replace(found.config, region_feature_dim=0))

    @classmethod
    def misfits(
        cls, fields_: Mapping[str, Any], tasks: Mapping[str, tuple[Task, Any]]
    ) -> list[str]:
        return super().misfits(fields_, tasks) + [
            f"task.{key}: {task.name} hides regions, which pictures would show: pretrain with "
            "system.name vilbert"
            for key, (task, _) in tasks.items()
            if KINDS[task.kind].pretrains
        ]

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("encoder/.*",) if self.config.grid.freeze_encoder else ()

    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        rate, others = self.config.grid.encoder_learning_rate, super().groups(options, official)
        encoder = (
            # Only kernels decay, as in all systems of pictures.
            ParamGroup("encoder/.*/kernel", rate, options.weight_decay),
            ParamGroup("encoder/.*", rate),
        )
        own = len(options.groups)
        return (*others[:own], *encoder, *others[own:])

    def sizes(self, task: Task) -> dict[str, Any]:
        return super().sizes(task) | {"picture": self.config.grid.picture}

    def _completed(self, inputs: Batch) -> Batch:
        if "regions" in inputs:
            return inputs
        return {**inputs, "regions": jnp.zeros((*inputs["boxes"].shape[:2], 0))}

    def _exported_inputs(self, task: Task) -> dict[str, ExportedInput]:
        found, grid = super()._exported_inputs(task), self.config.grid
        images = found["regions"].shape[0]
        if not grid.region_features:
            del found["regions"]
        low, high = grid.picture["low"], grid.picture["high"]
        fit = "with its proportions, in the upper left corner" if grid.letterbox else "squeezed"
        found["images"] = ExportedInput(
            (images, grid.side, grid.side, 3),
            "float32",
            f"pixels in RGB, black {low:g}, white {high:g}; the picture {fit}",
        )
        found["picture_size"] = ExportedInput(
            (images, 2), "int32", f"rows and columns of pixels that are of it, {grid.side} at most"
        )
        return found
