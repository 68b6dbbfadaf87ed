"""Contents of a stored record: one image (or one pair), its regions once, and all its annotations.

A question of VQA shares its image with four others, and the region features of an image
take 0.4 MB, so one record per image makes reading cheap. `example_of` turns a `Record` into
the values that TFDS writes, `record_of` turns the values that TFDS reads back.

Letters: K images (1, or 2 for pairs), N detected regions of all K together, G annotated boxes,
F feature size, C region classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twelve_in_one.data.stored.records import Annotation, DataError, Picture

_MATRICES = ("boxes", "features", "class_probs", "annotated_boxes", "annotated_features")


@dataclasses.dataclass(frozen=True)
class Record:
    """One image, or one pair of images, with all data about it.

    Attributes:
      record_id: the image's id, or the pair's key.
      image_ids: K ids.
      coco_ids: int64[K], the same photos in COCO, -1 if there is none.
      sizes: int32[K, 2], width and height in pixels.
      num_regions: int32[K], how many of the N regions belong to each image.
      boxes: float32[N, 4], corners in pixels.
      features: float16[N, F]; F = 0 without region features.
      class_probs: float16[N, C]; C = 0 if unknown.
      box_ids: int64[G], ascending.
      annotated_boxes: float32[G, 4], corners in pixels.
      annotated_features: float16[G, F], or [G, 0] without.
      annotated_size: int32[2], width and height of the annotated boxes' frame; differs
        from the image's only with `RegionInputs.official_sizes`.
      annotations: in the order of their files.
      pictures: K encoded pictures, in the frame of the boxes; () for data built without them.
    """

    record_id: str
    image_ids: tuple[str, ...]
    coco_ids: np.ndarray
    sizes: np.ndarray
    num_regions: np.ndarray
    boxes: np.ndarray
    features: np.ndarray
    class_probs: np.ndarray
    box_ids: np.ndarray
    annotated_boxes: np.ndarray
    annotated_features: np.ndarray
    annotated_size: np.ndarray
    annotations: tuple[Annotation, ...]
    pictures: tuple[Picture, ...] = ()


def features_dict(pictures: bool = False) -> Any:
    """The `tfds.features.FeaturesDict` of a record, with encoded pictures or without."""
    import tensorflow_datasets as tfds

    def numbers(dtype: type) -> Any:
        # As raw bytes, which cost nothing to decode, and flat: the number of rows is known.
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

    files = {"pictures": tfds.features.Sequence(tfds.features.Text())} if pictures else {}
    return tfds.features.FeaturesDict(
        files
        | {
            "record_id": tfds.features.Text(),
            "image_ids": tfds.features.Sequence(tfds.features.Text()),
            "coco_ids": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "sizes": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
            "num_regions": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "boxes": numbers(np.float32),
            "features": numbers(np.float16),
            "class_probs": numbers(np.float16),
            "box_ids": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "annotated_boxes": numbers(np.float32),
            "annotated_features": numbers(np.float16),
            "annotated_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "annotations": tfds.features.Sequence(
                {
                    "example_id": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "answers": tfds.features.Sequence(tfds.features.Text()),
                    "scores": tfds.features.Sequence(np.float32),
                    "label": np.int32,
                    "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "choice_ids": tfds.features.Sequence(np.int64),
                    "target_id": np.int64,
                }
            ),
        }
    )


def example_of(record: Record) -> dict[str, Any]:
    """A record as the values that `features_dict` encodes."""
    example = {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(record)
        if field.name not in ("annotations", "pictures")
    }
    if record.pictures:
        example["pictures"] = [picture.data for picture in record.pictures]
    for name in _MATRICES:
        example[name] = example[name].reshape(-1)
    example["image_ids"] = list(record.image_ids)
    example["annotations"] = [
        {
            "example_id": annotation.example_id,
            "text": annotation.text,
            "answers": list(annotation.answers),
            "scores": list(annotation.scores),
            "label": annotation.label,
            # No real box has this one's size, so it can mean no box.
            "box": annotation.box or (0.0, 0.0, 0.0, 0.0),
            "choice_ids": list(annotation.choice_ids),
            "target_id": annotation.target_id,
        }
        for annotation in record.annotations
    ]
    return example


def record_of(example: Mapping[str, Any], where: str) -> Record:
    """Turns the values that TFDS read into a checked record.

    Args:
      example: decoded NumPy values of `features_dict`.
      where: dataset and split, for messages.

    Raises:
      DataError: counts disagree, or a feature is not finite: the file is damaged.
    """
    columns = example["annotations"]
    record_id = example["record_id"].decode()
    annotations = tuple(
        Annotation(
            example_id=columns["example_id"][i].decode(),
            image_id=record_id,
            text=columns["text"][i].decode(),
            answers=tuple(answer.decode() for answer in columns["answers"][i]),
            scores=tuple(map(float, columns["scores"][i])),
            label=int(columns["label"][i]),
            box=tuple(map(float, columns["box"][i])) if np.any(columns["box"][i]) else None,
            choice_ids=tuple(map(int, columns["choice_ids"][i])),
            target_id=int(columns["target_id"][i]),
        )
        for i in range(len(columns["example_id"]))
    )
    num_regions = int(example["num_regions"].sum())
    rows = {name: num_regions for name in ("boxes", "features", "class_probs")}
    rows |= {name: len(example["box_ids"]) for name in ("annotated_boxes", "annotated_features")}
    try:
        for name in ("coco_ids", "sizes", "num_regions", "pictures"):
            if name in example and len(example[name]) != len(example["image_ids"]):
                raise ValueError(
                    f"{len(example[name])} {name} of {len(example['image_ids'])} images"
                )
        matrices = {name: _as_rows(name, example[name], count) for name, count in rows.items()}
        record = Record(
            record_id=record_id,
            image_ids=tuple(image_id.decode() for image_id in example["image_ids"]),
            annotations=annotations,
            pictures=tuple(map(Picture, example.get("pictures", ()))),
            **{name: example[name] for name in ("coco_ids", "sizes", "num_regions", "box_ids")},
            # Datasets built before it was stored have one size.
            annotated_size=example.get("annotated_size", example["sizes"][0]),
            **matrices,
        )
    except ValueError as error:
        raise DataError(f"{where}: record {record_id}: {error}; build the dataset again") from error
    for name in ("boxes", "features", "annotated_boxes", "annotated_features"):
        if not np.isfinite(matrices[name]).all():
            raise DataError(
                f"{where}: record {record_id}: {name} are not finite; build the dataset again from "
                "checked region features"
            )
    return record


def _as_rows(name: str, flat: np.ndarray, count: int) -> np.ndarray:
    """[count, width] of stored numbers.

    Raises:
      ValueError: they do not divide into rows.
    """
    if name.endswith("boxes"):
        return flat.reshape(count, 4)
    return flat.reshape(count, -1) if count and flat.size else flat.reshape(count, 0)
