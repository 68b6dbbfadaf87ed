"""What the official evaluation programs know of a question, kept beside the records of a split.

`official-<split>.json.gz` in the folder of a built dataset holds {"program", "records"}, a record
an example by its id. Nothing that trains reads it, so that it is kept of all splits but "train".

| program | record |
|---|---|
| vqa | "answers" of all people; "question_type" and "answer_type", which other data may lack |
| gqa | the official question, and "choices": {"valid", "plausible"} where there is a choices file |
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
    """Where the records of a dataset come from.

    Attributes:
      program: that scores its answers.
      find: (folder, split) -> a function from example ids to records by id, of those that have
        one. Raises `MissingFile` where the files are not there, or nobody published the answers.
    """

    program: Program
    find: Callable[[Path, str], Callable[[frozenset[str]], Records]]


@dataclasses.dataclass(frozen=True)
class OfficialRecords:
    """What a program needs to know of a split.

    Attributes:
      program: that scores its answers.
      records: example id -> record, see the module.
    """

    program: Program
    records: Records


def path_of(folder: Path, split: str) -> Path:
    """Where the records of a split lie in the folder of a built dataset."""
    return folder / f"official-{split}.json.gz"


def keep(
    files: OfficialFiles, raw: Path, folder: Path, split: str, example_ids: Callable[[], Any]
) -> str:
    """Writes the records of a split's examples, unless they are there.

    Args:
      files: where they come from.
      raw: folder of the official files.
      folder: of the built dataset.
      split: of it.
      example_ids: called for the ids of all its examples, where they are needed.

    Returns:
      Why there are none, or "".
    """
    path = path_of(folder, split)
    if path.is_file():
        return ""
    try:
        read_records = files.find(raw, split)  # before the ids, which take reading the split
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
    # Without the time of day: the same files are built alike.
    atomic.write(path, gzip.compress(text.encode(), mtime=0))
    return ""


def read(folder: Path, split: str) -> OfficialRecords | None:
    """Reads what `keep` wrote; None if nothing was kept.

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
