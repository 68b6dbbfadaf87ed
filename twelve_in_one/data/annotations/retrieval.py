"""Captions of COCO and Flickr30k, for retrieval: each caption is one example of its image.

A folder holds one or more of these layouts; the first that is complete for the split is read.
Checksums of all of them are unknown here.

COCO (captions: CC-BY-4.0)
  1. `dataset_coco.json`, Karpathy's file (licence unknown): 113,287 images for training, his parts
     "train" and "restval", and 5,000 each for validation and testing.
  2. `captions_train2014.json` and `captions_val2014.json` of the COCO 2014 annotations, with
     `karpathy_val_images.txt` and `karpathy_test_images.txt` (peteanderson80/bottom-up-attention,
     MIT; lines "val2014/COCO_val2014_000000253964.jpg 253964"). Images in neither list are for
     training; the parts are the same as in layout 1.
  3. `all_data_final_{train,val_set0,test_set0}_2014.jsonline` of the reference (licence unknown):
     lines {"sentences", "id", "img_path"}. Its test part has 1,000 of the 5,000 images; only the
     file tells which, so the other layouts give all.
  4. `{train,valid,test}_ann.jsonl` of VOLTA (licence unknown): lines of the same form.

Flickr30k (free for non-commercial research and education; no licence is stated)
  1. `dataset_flickr30k.json`, Karpathy's file: 29,000, 1,014 and 1,000 images, as in the paper.
  2. `results_20130124.token` with `train.txt`, `val.txt` and `test.txt` (one id per line,
     BryanPlummer/flickr30k_entities): 29,783, 1,000 and 1,000 images.
  3. `results.csv`, Kaggle's copy of these captions ("image_name| comment_number| comment"), with
     the same lists.
  4. and 5. as 3. and 4. of COCO.

An image of COCO is identified by its decimal id, one of Flickr30k by the number in its file name.
"""

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from twelve_in_one.data.formats import files, json_stream
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    MissingFile,
    Skipped,
)

SPLITS = ("train", "val", "test")
_KARPATHY_PARTS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_REFERENCE_LINES = {
    "train": "all_data_final_train_2014.jsonline",
    "val": "all_data_final_val_set0_2014.jsonline",
    "test": "all_data_final_test_set0_2014.jsonline",
}
_TABLE_HEADER = ["image_name", "comment_number", "comment"]
_VOLTA_LINES = {
    "train": "train_ann.jsonl",
    "val": "valid_ann.jsonl",
    "test": "test_ann.jsonl",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Caption:
    """A caption as found: `number` is its position within the image, counting unusable ones."""

    file: Path
    image: AnnotatedImage
    number: int
    text: str

    @property
    def example_id(self) -> str:
        return f"{self.image.image_id}#{self.number}"


_Found = Iterator[_Caption | Skipped]
_ImageOf = Callable[[Any], AnnotatedImage]


def read_coco(folder: Path, split: str) -> AnnotationSet:
    """Captions of COCO in Karpathy's split, in the order of the file.

    Args:
      folder: holds one of the layouts that the module lists.
      split: "train", "val" or "test".

    Returns:
      One annotation per caption; `example_id` is "<image id>#<position within the image>". Captions
      without text or repeating an id, and listed images without captions, are skipped.

    Raises:
      ValueError: there is no such split.
      MissingFile: no layout is complete for the split.
      DataError: a file or a list of ids is broken.
    """
    _check_split(split)
    # Karpathy took his test images from val2014 and left its rest for training.
    held_out = ("val", "test") if split == "train" else (split,)
    lists = tuple(f"karpathy_{name}_images.txt" for name in held_out)
    years = ("train2014", "val2014") if split == "train" else ("val2014",)
    captions = tuple(f"captions_{year}.json" for year in years)
    by_cocoid, by_id = _coco_image("cocoid", "filename"), _coco_image("id", "img_path")
    return _read_first(
        folder,
        {
            ("dataset_coco.json",): lambda path: _karpathy(path, split, by_cocoid),
            lists + captions: lambda *paths: _coco_captions(
                paths[: len(lists)], paths[len(lists) :], split
            ),
            (_REFERENCE_LINES[split],): lambda path: _json_lines(path, by_id),
            (_VOLTA_LINES[split],): lambda path: _json_lines(path, by_id),
        },
    )


def read_coco_file(path: Path) -> AnnotationSet:
    """All captions of one file of the official COCO form, in its order; see `read_coco`.

    Raises:
      DataError: the file is missing or is not what it should be.
    """
    return _collect(_coco_captions((), (path,), "train"))


def read_flickr30k(folder: Path, split: str) -> AnnotationSet:
    """Captions of Flickr30k, in the order of the file; see `read_coco`.

    `AnnotatedImage.coco_id` stays -1, and in layouts 2 and 3 the position within the image is the
    number that the file states.
    """
    _check_split(split)
    by_filename, by_path = _flickr_image("filename"), _flickr_image("img_path")
    return _read_first(
        folder,
        {
            ("dataset_flickr30k.json",): lambda path: _karpathy(path, split, by_filename),
            (f"{split}.txt", "results_20130124.token"): _flickr_tokens,
            (f"{split}.txt", "results.csv"): _flickr_table,
            (_REFERENCE_LINES[split],): lambda path: _json_lines(path, by_path),
            (_VOLTA_LINES[split],): lambda path: _json_lines(path, by_path),
        },
    )


def text_of(record: Any, key: str) -> str:
    """Text under `key`, unchanged.

    Raises:
      RecordError: missing, not a text, or blank.
    """
    text = files.field(record, key, str)
    if not text.strip():
        raise RecordError(f"{key!r} is empty")
    return text


def parse_number(text: str) -> int:
    """An id written in decimal digits, perhaps with leading zeros.

    Raises:
      RecordError: it has other characters or does not fit in 63 bits.
    """
    digits = text.lstrip("0") or text[:1]
    if not (text.isascii() and text.isdecimal() and len(digits) <= 19 and int(digits) < 1 << 63):
        raise RecordError(f"an id must be a number of decimal digits, is {files.shorten(text)}")
    return int(digits)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def _read_first(
    folder: Path, layouts: Mapping[tuple[str, ...], Callable[..., _Found]]
) -> AnnotationSet:
    """Reads the first layout all of whose files exist; its reader gets their paths."""
    for names, read in layouts.items():
        try:
            paths = [files.find(folder, name) for name in names]
        except MissingFile:
            continue
        return _collect(read(*paths))
    needed = ", or ".join(" with ".join(names) for names in layouts)
    raise MissingFile(f"{folder}: no layout is complete; needs {needed} (each may be a .gz)")


def _collect(found: _Found) -> AnnotationSet:
    annotations: dict[str, Annotation] = {}
    images: dict[str, AnnotatedImage] = {}
    skipped: list[Skipped] = []
    for item in found:
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        if item.example_id in annotations:
            fault = "a caption of this image and position has been read before"
            skipped.append(Skipped(str(item.file), item.example_id, fault))
            continue
        image_id = item.image.image_id
        annotations[item.example_id] = Annotation(item.example_id, image_id, item.text)
        images.setdefault(image_id, item.image)
    return AnnotationSet(tuple(annotations.values()), images, skipped=tuple(skipped))


def _karpathy(path: Path, split: str, image_of: _ImageOf) -> _Found:
    records = json_stream.elements(files.read_text(path), str(path), "images")
    for position, record in enumerate(records):
        try:
            part = files.field(record, "split", str)
            if part not in _KARPATHY_PARTS:
                raise RecordError(
                    f"'split' must be in {list(_KARPATHY_PARTS)}, is {files.shorten(part)}"
                )
        except RecordError as error:
            yield Skipped(str(path), f"record {position}", str(error))
            continue
        if _KARPATHY_PARTS[part] == split:
            yield from _sentences(path, f"record {position}", record, image_of, "raw")


def _json_lines(path: Path, image_of: _ImageOf) -> _Found:
    for number, record in files.read_json_lines(path):
        if isinstance(record, RecordError):
            yield Skipped(str(path), f"line {number}", str(record))
        else:
            yield from _sentences(path, f"line {number}", record, image_of)


def _sentences(
    path: Path, name: str, record: Any, image_of: _ImageOf, raw_key: str | None = None
) -> _Found:
    """The captions in the record of one image: under `raw_key` of objects, or plain text."""
    try:
        image = image_of(record)
        sentences = files.field(record, "sentences", list)
        if not sentences:
            raise RecordError("'sentences' is empty")
    except RecordError as error:
        yield Skipped(str(path), name, str(error))
        return
    for number, sentence in enumerate(sentences):
        try:
            if raw_key is None:
                text = text_of({"sentence": sentence}, "sentence")
            else:
                text = text_of(sentence, raw_key)
        except RecordError as error:
            yield Skipped(str(path), f"{image.image_id}#{number}", str(error))
            continue
        yield _Caption(path, image, number, text)


def _coco_captions(lists: Sequence[Path], captions: Sequence[Path], split: str) -> _Found:
    """The official COCO files: captions of listed images, for training those of all others."""
    listed = {image_id: path for path in lists for image_id in _read_ids(path)}
    counts: dict[int, int] = {}
    for path in captions:
        content = files.read_text(path)
        images, skipped = _coco_images(content, path)
        yield from skipped
        for position, record in enumerate(json_stream.elements(content, str(path), "annotations")):
            name = f"annotation {position}"
            try:
                image_id = parse_number(files.text_id(record, "image_id"))
                if (image_id in listed) == (split == "train"):
                    continue
                number = counts[image_id] = counts.get(image_id, -1) + 1
                name = f"{image_id}#{number}"
                if image_id not in images:
                    raise RecordError(f"no usable image {image_id} in 'images'")
                text = text_of(record, "caption")
            except RecordError as error:
                yield Skipped(str(path), name, str(error))
                continue
            yield _Caption(path, images[image_id], number, text)
    if split != "train":
        yield from _without_captions(listed, counts, captions[0])


def _coco_images(content: str, path: Path) -> tuple[dict[int, AnnotatedImage], list[Skipped]]:
    image_of = _coco_image("id", "file_name")
    images, skipped = {}, []
    for position, record in enumerate(json_stream.elements(content, str(path), "images")):
        try:
            image = image_of(record)
            width, height = (files.field(record, key, int) for key in ("width", "height"))
            if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
                raise RecordError(f"no image size: {files.shorten([width, height])}")
        except RecordError as error:
            skipped.append(Skipped(str(path), f"image {position}", str(error)))
            continue
        images[image.coco_id] = dataclasses.replace(image, width=width, height=height)
    return images, skipped


def _flickr_tokens(ids: Path, path: Path) -> _Found:
    """The official Flickr30k file of lines "36979.jpg#0<tab>caption"."""

    def parse(line: str) -> tuple[str, str, str]:
        key, tab, text = line.partition("\t")
        name, _, number = key.partition("#")
        if not tab:
            raise RecordError(f"must be 'name#number<tab>caption', is {files.shorten(line)}")
        return name, number, text

    return _flickr_lines(ids, path, parse)


def _flickr_table(ids: Path, path: Path) -> _Found:
    """Kaggle's copy of the captions: a header, then lines "36979.jpg| 0| caption"."""

    def parse(line: str) -> tuple[str, str, str] | None:
        cells = [cell.strip() for cell in line.split("|", 2)]
        if cells == _TABLE_HEADER:
            return None
        if len(cells) != 3:
            wanted = "| ".join(_TABLE_HEADER)
            raise RecordError(f"must be '{wanted}', is {files.shorten(line)}")
        return cells[0], cells[1], cells[2]

    return _flickr_lines(ids, path, parse)


def _flickr_lines(
    ids: Path, path: Path, parse: Callable[[str], tuple[str, str, str] | None]
) -> _Found:
    """Captions of listed images; `parse` extracts name, number and caption from a line."""
    image_of = _flickr_image("name")
    listed = dict.fromkeys(_read_ids(ids), ids)
    seen: set[int] = set()
    # Captions may contain the other characters at which `str.splitlines` cuts.
    for position, line in enumerate(files.read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parts = parse(line.rstrip("\r"))
            if parts is None:
                continue
            image, number = image_of({"name": parts[0]}), parse_number(parts[1])
            text = text_of({"caption": parts[2]}, "caption")
        except RecordError as error:
            yield Skipped(str(path), f"line {position}", str(error))
            continue
        if int(image.image_id) in listed:
            seen.add(int(image.image_id))
            yield _Caption(path, image, number, text)
    yield from _without_captions(listed, seen, path)


def _without_captions(listed: Mapping[int, Path], seen: Container[int], captions: Path) -> _Found:
    for image_id, path in listed.items():
        if image_id not in seen:
            yield Skipped(str(path), str(image_id), f"listed, but no caption in {captions}")


def _read_ids(path: Path) -> list[int]:
    """Ids, one per line, perhaps after the name of the image's file.

    A broken line fails the whole list: leaving one out would move a test image into training.
    """
    ids = []
    for position, line in enumerate(files.read_text(path).split("\n"), start=1):
        if words := line.split():
            try:
                if len(words) > 2:
                    raise RecordError(f"must be 'id' or 'name id', is {files.shorten(line)}")
                ids.append(parse_number(words[-1]))
            except RecordError as error:
                raise DataError(f"{path}: line {position}: {error}") from error
    return ids


def _coco_image(id_key: str, name_key: str) -> _ImageOf:
    def image_of(record: Any) -> AnnotatedImage:
        coco_id = parse_number(files.text_id(record, id_key))
        return AnnotatedImage(str(coco_id), text_of(record, name_key), coco_id=coco_id)

    return image_of


def _flickr_image(name_key: str) -> _ImageOf:
    def image_of(record: Any) -> AnnotatedImage:
        name = text_of(record, name_key)
        return AnnotatedImage(str(parse_number(PurePosixPath(name).stem)), name)

    return image_of
