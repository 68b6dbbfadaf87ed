"""Inputs of the official evaluation programs, kept beside the records of a split.

`official-<split>.json.gz` in the folder of a built dataset holds {"program", "records"}, one record
per example by its id. Training never reads it, so it is kept for all splits but "train".

| program | record |
|---|---|
| vqa | "answers" of all people; "question_type" and "answer_type", which other data may lack |
| gqa | the official question, and "choices": {"valid", "plausible"} if there is a choices file |
"""

import dataclasses
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from twelve_in_one import atomic
from twelve_in_one.data.stored.records import DataError, MissingFile

Program = Literal["vqa", "gqa"]
Records = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class OfficialFiles:
    """The source of a dataset's records.

    Attributes:
      program: that scores its answers.
      find: (folder, split) -> a function from example ids to records by id, for those that have
        one. Raises `MissingFile` if the files are missing, or the answers are not published.
    """

    program: Program
    find: Callable[[Path, str], Callable[[frozenset[str]], Records]]


@dataclasses.dataclass(frozen=True)
class OfficialRecords:
    """Inputs of a program for a split.

    Attributes:
      program: that scores its answers.
      records: example id -> record, see the module.
    """

    program: Program
    records: Records


def path_of(folder: Path, split: str) -> Path:
    """Path of a split's records in the folder of a built dataset."""
    return folder / f"official-{split}.json.gz"


def keep(
    files: OfficialFiles, raw: Path, folder: Path, split: str, example_ids: Callable[[], Any]
) -> str:
    """Writes the records of a split's examples, unless they exist.

    Args:
      files: their source.
      raw: folder of the official files.
      folder: of the built dataset.
      split: of it.
      example_ids: called for the ids of all its examples, if they are needed.

    Returns:
      Why there are none, or "".
    """
    path = path_of(folder, split)
    if path.is_file():
        return ""
    try:
        read_records = files.find(raw, split)  # before the ids, which need a pass over the split
    except MissingFile as error:
        return str(error)
    wanted = frozenset(example_ids())
    records = read_records(wanted)
    if len(records) < len(wanted):
        first = min(wanted - records.keys())
        return (
            f"{len(wanted) - len(records):,} of {len(wanted):,} examples, the first {first}, have "
            f"no record in the official files in {raw}"
        )
    text = json.dumps({"program": files.program, "records": records}, ensure_ascii=False)
    # Without the time of day: equal inputs give equal files.
    atomic.write(path, gzip.compress(text.encode(), mtime=0))
    return ""


def read(folder: Path, split: str) -> OfficialRecords | None:
    """Reads the records that `keep` wrote; None if there are none.

    Raises:
      DataError: the file is damaged.
    """
    path = path_of(folder, split)
    if not path.is_file():
        return None
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            raw = json.load(file)
        return OfficialRecords(raw["program"], dict(raw["records"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it and run the build again"
        ) from error
