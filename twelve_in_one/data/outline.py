"""What is known of a run whose data is not there: sizes from its settings, and what is missing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from twelve_in_one.config import check
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data.image_inputs import ImageInputs, built_dataset
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.mixing.mixed import Size
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import Facts, System


class Outline(NamedTuple):
    """A run without its data.

    Attributes:
      system: with the vocabulary's size of the settings, where the data would decide it.
      sizes: task -> size of its training set, as found, or else as published; others are left out.
      missing: what cannot be opened, and how to get it.
    """

    system: System
    sizes: Mapping[str, Size]
    missing: tuple[str, ...]


def outline(run: RunConfig, workdir: Path, why: Exception) -> Outline:
    """The outline of a run that cannot be opened.

    Args:
      run: the settings.
      workdir: of the run.
      why: the error of opening it.

    Raises:
      ConfigError: a size in the settings does not fit.
    """
    kind = SYSTEMS[run.system.name]
    facts = Facts(vocab_size=run.text.vocab_size, answers={}, num_tasks=len(run.tasks))
    sizes: dict[str, Size] = {}
    missing = [str(why)]
    if not kind.pixels:  # its vocabulary is not made of the settings
        facts = dataclasses.replace(facts, vocab_size=0)
        return Outline(kind.resolve(run.model, facts), sizes, tuple(missing))
    inputs = ImageInputs(run, check.task_runs(run), workdir)
    for task in inputs.tasks:
        name, options = task.task.name, task.options
        try:
            sizes[name] = inputs.images(task, options.first_split).size
        except DataError as error:
            if not built_dataset(options.source) and str(error) not in missing:
                missing.append(str(error))  # `why` names all that are not built
            if options.published_pairs:
                sizes[name] = Size(options.published_pairs, options.published_images)
    return Outline(kind.resolve(run.model, facts), sizes, tuple(missing))
