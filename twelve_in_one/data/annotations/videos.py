"""Questions and captions about videos, from the official files of MSRVTT and MSVD.

MSRVTT-QA and MSVD-QA (Xu et al. 2017; 158,581, 12,278 and 72,821 questions; 30,933, 6,415 and
13,157): {train,val,test}_qa.json, lists of {"answer", "id", "question", "video_id": 7}. Videos are
called "video7" and "vid7"; if `youtube_mapping.txt` is there (lines "-4wsuPCjDBc_5_15 vid7"), also
by the name of its first column.

MSRVTT (Xu et al. 2016): *videodatainfo*.json, with {"video_id": "video7", "split": "train"} in the
list "videos" and {"caption", "video_id", "sen_id"} in "sentences", and splits "train", "validate"
and "test".

MSVD (Chen and Dolan 2011): a table *.csv with columns VideoID, Start, End, Language and
Description, of which the English rows count, or AllVideoDescriptions.txt with lines
"-4wsuPCjDBc_5_15 a squirrel eats". Splits are {train,val,test}_list.txt with a name per line; or,
by `youtube_mapping.txt`, the usual 1,200, 100 and 670 videos.
"""

import csv
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import DataError, MissingFile, Skipped, none_usable

SPLITS = ("train", "val", "test")
_MAPPING = "youtube_mapping.txt"
_MSVD_LAST = {"train": 1200, "val": 1300, "test": 1970}
_COLUMNS = ("VideoID", "Start", "End", "Language", "Description")


@dataclasses.dataclass(frozen=True, slots=True)
class VideoText:
    """A question with its answer, or the captions of a video.

    Attributes:
      example_id: unique in its file.
      video: name of the video, without an ending.
      question: "" for captions.
      texts: the answer, or all captions.
    """

    example_id: str
    video: str
    question: str
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class VideoTexts:
    """Usable records in the order of the file, and the others.

    Attributes:
      records: one per question, or per video with captions.
      skipped: records that cannot be used.
      names: other name -> the name in the records, for videos with several.
    """

    records: tuple[VideoText, ...]
    skipped: tuple[Skipped, ...]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_msrvtt_qa(folder: Path, split: str) -> VideoTexts:
    """MSRVTT-QA's questions of a split of `SPLITS`; see the module.

    Raises:
      DataError: a file is missing, broken, or holds no usable question.
    """
    return _questions(folder, split, "video")


def read_msvd_qa(folder: Path, split: str) -> VideoTexts:
    """MSVD-QA's; see `read_msrvtt_qa`."""
    return _questions(folder, split, "vid")


def read_msrvtt_captions(folder: Path, split: str) -> VideoTexts:
    """MSRVTT's captions, one record a video; see `read_msrvtt_qa`."""
    paths = sorted(folder.glob("*videodatainfo*.json"))
    if not paths:
        raise MissingFile(f"{folder}: no *videodatainfo*.json")
    captions: dict[str, list[str]] = {}
    skipped: list[Skipped] = []
    for path in paths:
        try:
            whole = files.read_json(path, dict)
            videos, sentences = (files.field(whole, k, list) for k in ("videos", "sentences"))
        except RecordError as error:
            raise DataError(f"{path}: {error}") from error
        mine = set(_each(path, videos, lambda record: _video_in(record, split), skipped))
        for found in _each(path, sentences, _sentence, skipped):
            if found[0] in mine:
                captions.setdefault(found[0], []).append(found[1])
    return _of_captions(paths[0], captions, skipped)


def read_msvd_captions(folder: Path, split: str) -> VideoTexts:
    """MSVD's captions, one record a video; see `read_msrvtt_qa`."""
    wanted = _msvd_split(folder, split)
    tables = sorted(folder.glob("*.csv"))
    path = tables[0] if tables else files.find(folder, "AllVideoDescriptions.txt")
    captions: dict[str, list[str]] = {}
    skipped: list[Skipped] = []
    rows = _table(path) if tables else _lines(path)
    for found in _each(path, rows, lambda row: row(), skipped):
        if found is not None and found[0] in wanted:
            captions.setdefault(found[0], []).append(found[1])
    return _of_captions(path, captions, skipped)


def _each(
    path: Path, records: Any, read: Callable[[Any], Any], skipped: list[Skipped]
) -> Iterator[Any]:
    """What `read` makes of the records, but for unusable ones."""
    for number, record in enumerate(records):
        try:
            found = read(record)
        except RecordError as error:
            skipped.append(Skipped(str(path), f"record {number}", str(error)))
            continue
        if found is not None:
            yield found


def _questions(folder: Path, split: str, prefix: str) -> VideoTexts:
    _check(split)
    path = files.find(folder, f"{split}_qa.json")
    skipped: list[Skipped] = []
    seen: set[str] = set()

    def read(record: Any) -> VideoText:
        name = files.text_id(record, "id")
        video = files.text_id(record, "video_id")
        question, answer = (_words(record, key) for key in ("question", "answer"))
        if name in seen:
            raise RecordError(f"its id {name} is that of an earlier question")
        seen.add(name)
        video = f"{prefix}{video}" if video.isdecimal() else video
        return VideoText(name, video, question, (answer,))

    records = tuple(_each(path, files.read_json(path, list), read, skipped))
    if not records:
        raise none_usable(path, "question", skipped)
    return VideoTexts(records, tuple(skipped), _mapping(folder))


def _words(record: Any, key: str) -> str:
    text = " ".join(files.field(record, key, str).split())
    if not text:
        raise RecordError(f"{key!r} is empty")
    return text


def _video_in(record: Any, split: str) -> str | None:
    _check(split)
    stated = files.field(record, "split", str)
    video = _words(record, "video_id")
    return video if {"validate": "val"}.get(stated, stated) == split else None


def _sentence(record: Any) -> tuple[str, str]:
    return _words(record, "video_id"), _words(record, "caption")


def _of_captions(
    path: Path, captions: Mapping[str, Sequence[str]], skipped: Sequence[Skipped]
) -> VideoTexts:
    if not captions:
        raise none_usable(path, "caption of this split", skipped)
    records = (VideoText(name, name, "", tuple(texts)) for name, texts in captions.items())
    return VideoTexts(tuple(records), tuple(skipped))


_Row = Callable[[], tuple[str, str] | None]


def _table(path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(files.read_text(path).splitlines())
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}")

    def row_of(row: Mapping[str, Any]) -> _Row:
        def read() -> tuple[str, str] | None:
            video, start, end, language, _ = (row[name] for name in _COLUMNS)
            if language != "English":
                return None
            if not video or not (start or "").isdecimal() or not (end or "").isdecimal():
                raise RecordError(f"is of no part of a video: {video!r}, {start!r} to {end!r}")
            return f"{video}_{start}_{end}", _words(row, "Description")

        return read

    try:
        yield from map(row_of, reader)
    except csv.Error as error:
        raise DataError(f"{path}: not a table after line {reader.line_num}: {error}") from error


def _lines(path: Path) -> Iterator[_Row]:
    for line in files.read_text(path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue

        def read(line: str = line) -> tuple[str, str]:
            name, _, caption = line.strip().partition(" ")
            return name, _words({"caption": caption}, "caption")

        yield read


def _msvd_split(folder: Path, split: str) -> set[str]:
    """Names of the videos of a split."""
    _check(split)
    path = folder / f"{split}_list.txt"
    if path.is_file():
        return set(files.read_text(path).split())
    mapping = _mapping(folder)
    if not mapping:
        raise MissingFile(f"{folder}: neither {split}_list.txt nor {_MAPPING}")
    before = {"train": 0, "val": _MSVD_LAST["train"], "test": _MSVD_LAST["val"]}[split]
    numbers = {name: int(vid.removeprefix("vid")) for name, vid in mapping.items()}
    return {name for name, number in numbers.items() if before < number <= _MSVD_LAST[split]}


def _mapping(folder: Path) -> dict[str, str]:
    """Name on YouTube -> name in MSVD-QA; empty without the file."""
    path = folder / _MAPPING
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(\S+)\s+(vid\d{1,9})", line.strip())
        if not match:
            raise DataError(f"{path}: line {number} is not a name and vidNUMBER: {line[:60]!r}")
        found[match[1]] = match[2]
    return found


def _check(split: str) -> None:
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: {', '.join(SPLITS)}")
