"""Image-classification sets of the TFDS catalogue, as prepared by TFDS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.data.images.tfrecord import index_records
from twelve_in_one.data.stored.records import DataError


def open_catalogue(
    place: str, labels: Sequence[str] | None = None, data_dir: str | None = None
) -> ImageSet:
    """Opens a split of a prepared set. Pictures stay encoded, in any file format of TFDS.

    Args:
      place: name as TFDS writes it, with the split in brackets: "cifar10[train]",
        "imagenet_v2/topimages[test]", "cifar100[train[:90%]]".
      labels: names of the classes in the order of their numbers; None for TFDS's.
      data_dir: where TFDS keeps its sets; None for its own default.

    Raises:
      DataError: no such set, not prepared, no such split, without a picture or a class, or with
        classes not in `labels`.
    """
    import tensorflow_datasets as tfds

    name, bracket, split = place.partition("[")
    if not bracket or not split.endswith("]"):
        raise DataError(f"tfds:{place}: name the split in brackets: tfds:{name}[train]")
    split = split[:-1]
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has several
        raise DataError(f"tfds:{name}: cannot be opened: {error}") from error
    if not Path(builder.data_dir).is_dir():
        raise DataError(
            f'tfds:{name}: not prepared in {builder.data_dir}; run python -c "import '
            f"tensorflow_datasets as tfds; tfds.builder('{name}', file_format='array_record')"
            '.download_and_prepare()"'
        )
    features = builder.info.features
    image = _only(features, tfds.features.Image, name, "picture")
    label = _only(features, tfds.features.ClassLabel, name, "class")
    try:
        parts = builder.info.splits[split].file_instructions
    except Exception as error:  # of TFDS, which lists what there is
        raise DataError(f"tfds:{name}: split {split!r}: {error}") from error
    names = tuple(features[label].names)
    known = names if labels is None else tuple(labels)
    if unknown := [called for called in names if called not in known]:
        raise DataError(f"tfds:{name}: class {unknown[0]!r} is none of the {len(known)} known ones")
    number_of = [known.index(called) for called in names]
    record = _records(builder, split, parts, image)

    def read(number: int) -> ImageExample:
        try:
            example = record(number)
            return ImageExample(example[image], f"{split}:{number}", number_of[int(example[label])])
        except DataError:
            raise
        except Exception as error:  # of TFDS, protobuf or array_record
            raise DataError(f"tfds:{name}: {split}:{number} cannot be read: {error}") from error

    return ImageSet(f"tfds:{place}", tuple(part.take for part in parts), read, known)


def _records(
    builder: Any, split: str, parts: Sequence[Any], image: str
) -> Callable[[int], dict[str, Any]]:
    """Number -> example, with its picture encoded."""
    import tensorflow_datasets as tfds

    decoders = {image: tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:  # TFRecord files, which TFDS reads from front to back only
        pass
    else:
        return source.__getitem__
    files = [index_records(Path(part.filename)) for part in parts]
    first = np.concatenate([[0], np.cumsum([part.take for part in parts])])

    def record(number: int) -> dict[str, Any]:
        shard = int(np.searchsorted(first, number, side="right")) - 1
        data = files[shard].read(parts[shard].skip + number - int(first[shard]))
        return builder.info.features.deserialize_example_np(data, decoders=decoders)

    return record


def _only(features: Any, kind: type, name: str, what: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        there = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise DataError(f"tfds:{name}: needs one {what}, has {len(found)}: {there}")
    return found[0]
