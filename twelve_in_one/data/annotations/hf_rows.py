"""Rows of a Hugging Face dataset, as records that `jsonl` reads.

Columns have the names of the keys of `jsonl`; `image`, `left` and `right` hold pictures or their
paths. Pictures are written to files named by their content, so a picture that many rows share is
kept once. Needs `pip install 'twelve_in_one[hf]'`. No code of a dataset is run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twelve_in_one import atomic
from twelve_in_one.data.annotations.jsonl import ROLES, Part
from twelve_in_one.data.formats.files import RecordError
from twelve_in_one.data.stored.records import DataError

_PICTURES = ("image", "left", "right")


def parts(source: str, folder: Path) -> list[Part]:
    """The splits of a dataset.

    Args:
      source: a folder that `save_to_disk` wrote, or a name on the hub; ":SPLIT" takes one split.
      folder: for its pictures, made if missing.

    Returns:
      One part per split; if there is only one split, its records decide their roles.

    Raises:
      DataError: the library is missing, there is no such dataset or split, or a split has a name
        other than train, val(idation), dev or test.
    """
    found = _load(*_name_and_split(source))
    roles = {name: ROLES.get(name.lower(), "") for name in found}
    if len(found) > 1:
        unknown = [name for name, role in roles.items() if not role]
        if unknown or len(set(roles.values())) < len(roles):
            raise DataError(
                f"{source}: has splits {', '.join(found)}, of which train, validation and test can "
                "be told; take one of the others with hf=NAME:SPLIT"
            )
    else:
        roles = dict.fromkeys(found, "")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        Part(f"{source} {name}", roles[name], _rows(dataset, folder))
        for name, dataset in found.items()
    ]


def _name_and_split(source: str) -> tuple[str, str]:
    if Path(source).exists():
        return source, ""
    name, _, split = source.rpartition(":")
    return (name, split) if name else (source, "")


def _load(name: str, split: str) -> Mapping[str, Any]:
    """The library's datasets by split; their pictures are not decoded."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name}: Hugging Face datasets need their library: pip install 'twelve_in_one[hf]'"
        ) from error
    try:
        # Neither executes anything: arrow files and their description.
        local = Path(name).exists()
        found = datasets.load_from_disk(name) if local else datasets.load_dataset(name)
    except Exception as error:  # of the library, its hub and its file formats
        raise DataError(f"{name}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping):
        if split:
            raise DataError(f"{name}: has no splits, and none is called {split!r}")
        found = {"rows": found}
    if split:
        if split not in found:
            raise DataError(f"{name}: no split {split!r}; there is {', '.join(found)}")
        found = {split: found[split]}
    return {key: _undecoded(dataset, datasets) for key, dataset in found.items()}


def _undecoded(dataset: Any, library: Any) -> Any:
    for key in _PICTURES:
        if isinstance(dataset.features.get(key), library.Image):
            dataset = dataset.cast_column(key, library.Image(decode=False))
    return dataset


def _rows(dataset: Any, folder: Path) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
    names = getattr(dataset.features.get("label"), "names", None)  # of numbered labels
    for number, row in enumerate(dataset, 1):
        record = {key: value for key, value in row.items() if value is not None}
        try:
            for key in _PICTURES:
                if isinstance(record.get(key), Mapping):
                    record[key] = _written(record[key], key, folder)
        except RecordError as error:
            yield f"row {number}", error
            continue
        if names and isinstance(record.get("label"), int):
            # -1 means that the label is not given.
            record["label"] = names[record["label"]] if record["label"] >= 0 else None
        yield f"row {number}", record


def _written(picture: Mapping[str, Any], key: str, folder: Path) -> str:
    """Writes a picture's bytes unchanged; returns the file's name in the folder."""
    content, path = picture.get("bytes"), picture.get("path")
    if content is None:
        try:
            content = Path(path or "").read_bytes()
        except OSError as error:
            raise RecordError(f"{key!r}: no picture at {path!r}: {error}") from error
    name = hashlib.sha256(content).hexdigest()[:24]
    file = folder / f"{name}{Path(path or '').suffix.lower() or '.png'}"
    if not file.exists():
        atomic.write(file, content, sync=False)
    return file.name
