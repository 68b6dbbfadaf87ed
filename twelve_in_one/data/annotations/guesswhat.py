"""GuessWhat?! pointing: which object of a picture was a dialogue of questions and answers about?

Official files (GuessWhat?! repository, Apache-2.0; no licence of the data is stated), one game per
line, possibly gzipped: `guesswhat.train.jsonl`, `guesswhat.valid.jsonl`, `guesswhat.test.jsonl`.
Pictures and objects are COCO's. Checksums: unknown. The released 12-in-1 code also reads
`cache/image_bbox_list.pkl` (image id -> {"bboxes": object ids}) and `cache/bboxes_dict.pkl` (object
id -> corners); they are not needed here.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.data.annotations.question_answering import number_id, record_name
from twelve_in_one.data.formats import files, safe_pickle
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    MissingFile,
    Skipped,
)

# Rows that the released code has for annotated boxes: 306 minus the global region and 100
# detections is 205; the last one means "no candidate".
MAX_CANDIDATES = 204

_PARTS = {"train": "train", "val": "valid", "test": "test"}
# Larger than any picture; larger values do not fit the type they are stored in.
_MAX_PIXELS = 10**9
_BOX_LIST, _CORNERS = "image_bbox_list.pkl", "bboxes_dict.pkl"
# Two sources may state an object's corners differently, but only by rounding.
_MAX_DIFFERENCE = 1.0

Box = tuple[float, float, float, float]


def read(folder: Path, split: str) -> AnnotationSet:
    """Games of a split in file order, lost and unfinished ones included.

    The text is the dialogue: for every turn "start", the question, "answer", the answer as given
    (Yes, No or N/A) and "stop". It is empty if nothing was asked. Candidates are the objects of
    the game. Image id and COCO id are the same.

    An image's boxes are the objects of all games about it in all existing split files, so each
    split sees the same list. If `folder/cache` has the two pickles, the list and the corners come
    from them instead, as the released code's stores of region features require; a game is skipped
    if its own boxes differ by more than a pixel.

    Args:
      folder: where the files are.
      split: "train", "val" (official valid) or "test".

    Raises:
      MissingFile: no such file.
      DataError: a file cannot be read, or only one of the two pickles is there.
      ValueError: unknown split.
    """
    if split not in _PARTS:
        raise ValueError(f"split must be one of {', '.join(_PARTS)}, got {split!r}")
    path = files.find(folder, _file_name(split))
    cached = _read_cached_boxes(folder / "cache")
    sources = [path] if cached is not None else _present_files(folder)
    boxes = {} if cached is None else cached

    annotations: dict[str, Annotation] = {}
    images: dict[str, AnnotatedImage] = {}
    skipped = []
    for source in sources:
        for line, record in files.read_json_lines(source):
            try:
                game = _parse_game(record)
                known = boxes.get(game.image.image_id, {})
                _check_agreement(game.boxes, known)
                if cached is None:
                    boxes[game.image.image_id] = game.boxes | known
                elif missing := sorted(game.boxes.keys() - known.keys()):
                    raise RecordError(
                        f"object {missing[0]} of image {game.image.image_id} is not in {_BOX_LIST}"
                    )
                if source != path:
                    continue
                if game.game_id in annotations:
                    raise RecordError(f"line {line}: the same id occurred before")
            except RecordError as error:
                # Games of other splits are reported when their split is read.
                if source == path:
                    name = record_name(record, "id", f"line {line}")
                    skipped.append(Skipped(str(path), name, str(error)))
                continue
            images.setdefault(game.image.image_id, game.image)
            annotations[game.game_id] = Annotation(
                game.game_id,
                game.image.image_id,
                game.text,
                box=boxes[game.image.image_id][game.target_id],
                choice_ids=tuple(sorted(game.boxes)),
                target_id=game.target_id,
            )
    for image_id, image in images.items():
        box_ids = tuple(sorted(boxes[image_id]))
        corners = tuple(boxes[image_id][i] for i in box_ids)
        images[image_id] = dataclasses.replace(image, box_ids=box_ids, boxes=corners)
    return AnnotationSet(tuple(annotations.values()), images, skipped=tuple(skipped))


@dataclasses.dataclass(frozen=True, slots=True)
class _Game:
    """One line of a file; `image` has no boxes yet, `boxes` are those of this game."""

    game_id: str
    image: AnnotatedImage
    text: str
    boxes: dict[int, Box]
    target_id: int


def _parse_game(record: Mapping[str, Any] | RecordError) -> _Game:
    if isinstance(record, RecordError):
        raise record
    image = files.field(record, "image", dict)
    image_id = number_id(image, "id")
    width, height = (number_id(image, side) for side in ("width", "height"))
    if not (0 < width < _MAX_PIXELS and 0 < height < _MAX_PIXELS):
        raise RecordError(f"size {width} x {height} is out of range")
    boxes: dict[int, Box] = {}
    for thing in files.field(record, "objects", list):
        object_id = number_id(thing, "id")
        if object_id in boxes:
            raise RecordError(f"object {object_id} is listed twice")
        boxes[object_id] = files.box_from_xywh(thing, "bbox")
    if len(boxes) > MAX_CANDIDATES:
        raise RecordError(f"{len(boxes)} objects, at most {MAX_CANDIDATES} can be candidates")
    target_id = number_id(record, "object_id")
    if target_id not in boxes:
        raise RecordError(f"'object_id' {target_id} is not among the objects of the game")
    return _Game(
        game_id=files.text_id(record, "id"),
        image=AnnotatedImage(
            str(image_id), files.field(image, "file_name", str), width, height, coco_id=image_id
        ),
        text=_dialogue(files.field(record, "qas", list)),
        boxes=boxes,
        target_id=target_id,
    )


def _dialogue(turns: list[Any]) -> str:
    parts = []
    for turn in turns:
        question, answer = (files.field(turn, key, str) for key in ("question", "answer"))
        parts.append(f"start {question} answer {answer} stop")
    return " ".join(parts)


def _check_agreement(boxes: Mapping[int, Box], known: Mapping[int, Box]) -> None:
    """Raises a RecordError if an object's corners differ from the known ones."""
    for object_id in sorted(boxes.keys() & known.keys()):
        box, other = boxes[object_id], known[object_id]
        if max(abs(a - b) for a, b in zip(box, other, strict=True)) > _MAX_DIFFERENCE:
            raise RecordError(f"object {object_id} has corners {box}, elsewhere {other}")


def _read_cached_boxes(folder: Path) -> dict[str, dict[int, Box]] | None:
    """Image id -> object id -> corners, as the pickles state them; None without them."""
    paths = folder / _BOX_LIST, folder / _CORNERS
    present = [path for path in paths if path.is_file()]
    if not present:
        return None
    if len(present) == 1:
        raise DataError(f"{folder}: only {present[0].name}; {_BOX_LIST} and {_CORNERS} are a pair")
    lists, corners = map(safe_pickle.load, paths)
    for path, content in zip(paths, (lists, corners), strict=True):
        if not isinstance(content, dict):
            raise DataError(f"{path}: must hold a dict, holds a {type(content).__name__}")
    boxes: dict[str, dict[int, Box]] = {}
    for image_id, entry in lists.items():
        try:
            key = str(number_id({"image id": image_id}, "image id"))
            object_ids = [number_id({"id": i}, "id") for i in files.field(entry, "bboxes", list)]
            boxes[key] = {object_id: _corners(corners, object_id) for object_id in object_ids}
        except RecordError as error:
            where = f"{folder}: {_BOX_LIST} with {_CORNERS}"
            raise DataError(f"{where}: image {files.shorten(image_id)}: {error}") from error
    return boxes


def _corners(table: Mapping[Any, Any], object_id: int) -> Box:
    value = table.get(object_id)
    try:
        box = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        box = np.zeros(0)
    if box.shape != (4,) or not (abs(box) < _MAX_PIXELS).all():
        raise RecordError(f"corners of object {object_id} are {files.shorten(value)}")
    return tuple(box.tolist())


def _file_name(split: str) -> str:
    return f"guesswhat.{_PARTS[split]}.jsonl"


def _present_files(folder: Path) -> list[Path]:
    present = []
    for split in _PARTS:
        with contextlib.suppress(MissingFile):
            present.append(files.find(folder, _file_name(split)))
    return present
