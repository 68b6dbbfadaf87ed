"""Region features of images, in the formats in which they are passed around.

`open_store` gives a `RegionStore` (see `store`) for any of them; `checks` says what is wrong with
one, `rows` turns regions into what the model takes.
"""

import os
from pathlib import Path

from twelve_in_one.data.records import DataError
from twelve_in_one.data.regions.concap_lmdb import ConcapStore
from twelve_in_one.data.regions.hdf5 import Hdf5Store
from twelve_in_one.data.regions.lmdb import LmdbStore
from twelve_in_one.data.regions.npy import SUFFIX, NpyStore
from twelve_in_one.data.regions.records import RecordStore, is_shard_name
from twelve_in_one.data.regions.store import NoRegions, RegionStore
from twelve_in_one.data.regions.tsv import TsvStore
from twelve_in_one.paths import expand

_FORMATS = {
    "lmdb": LmdbStore,
    "npy": NpyStore,
    "tsv": TsvStore,
    "hdf5": Hdf5Store,
    "concap": ConcapStore,
    "records": RecordStore,
}
FORMATS_HELP = (
    "lmdb:PATH (the released stores), npy:FOLDER (of the released extraction script), tsv:FILE "
    "(bottom-up attention, LXMERT), hdf5:FILE, concap:PATH (Conceptual Captions, tensorpack), "
    "records:FOLDER (our shards), none (no regions), or a path of one of these kinds"
)


def open_store(spec: str) -> RegionStore:
    """Opens a store of region features.

    Args:
      spec: "<format>:<path>", "none", or a path whose format its name or content shows; see
        `FORMATS_HELP`.

    Raises:
      DataError: no such file, an unknown format, or a damaged store.
    """
    if spec == "none":
        return NoRegions()
    kind, _, rest = spec.partition(":")
    if kind not in _FORMATS:
        kind, rest = _recognise(Path(expand(spec))), spec
    path = Path(expand(rest))
    if not rest or not path.exists():
        raise DataError(f"region store {spec!r}: no such file or folder; formats: {FORMATS_HELP}")
    return _FORMATS[kind](path)


def _recognise(path: Path) -> str:
    """Format of a file or folder."""
    if not path.exists():
        raise DataError(
            f"region store {str(path)!r}: no such file or folder; formats: {FORMATS_HELP}"
        )
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "lmdb"
        with os.scandir(path) as entries:
            for entry in entries:
                if is_shard_name(entry.name):
                    return "records"
                if entry.name.endswith(SUFFIX):
                    return "npy"
    kinds = {
        ".lmdb": "lmdb", ".mdb": "lmdb", ".tsv": "tsv", ".h5": "hdf5", ".hdf5": "hdf5",
    }  # fmt: skip
    if path.is_file() and path.suffix in kinds:
        return kinds[path.suffix]
    raise DataError(f"region store {str(path)!r}: unknown format; formats: {FORMATS_HELP}")
