"""Some examples of a run's evaluations, with the model's answers, by what its inputs are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data import own
from twelve_in_one.report.examples import example_pictures, pictures_of
from twelve_in_one.report.image_examples import image_examples
from twelve_in_one.report.pictures import ExamplePicture


def _of_regions(inputs: Any, stream: Any, predictions: Any) -> list[ExamplePicture]:
    name, folder, run = stream.task.name, inputs.folder, inputs.run
    if name in folder.own:
        files = own.read_pictures(folder.path, name)
    else:
        raw = Path(run.data.raw_dir) if run.data.raw_dir else None
        files = pictures_of(folder.source(name).domain, raw)
    return example_pictures(stream, predictions, files, run.evaluation.pictures)


def _of_pictures(inputs: Any, stream: Any, predictions: Any) -> list[ExamplePicture]:
    return image_examples(stream, predictions, inputs.run.evaluation.pictures)


# `RunInputs.kind` -> (inputs, evaluated stream, its predictions) -> `evaluation.pictures` examples;
# a ValueError if they cannot be made.
EXAMPLES: Mapping[str, Callable[[Any, Any, Any], list[ExamplePicture]]] = {
    "regions": _of_regions,
    "pictures": _of_pictures,
}
