"""Region features of images, in common formats.

`open_store` gives a `RegionStore` (see `store`) for any of them; `checks` reports its faults,
`rows` turns regions into the model's input.
"""

import contextlib
import os
from pathlib import Path

from twelve_in_one.config.paths import expand
from twelve_in_one.data.regions.concap_lmdb import ConcapStore
from twelve_in_one.data.regions.grid import GRID_SUFFIXES, GridStore
from twelve_in_one.data.regions.hdf5 import Hdf5Store
from twelve_in_one.data.regions.lmdb import LmdbStore
from twelve_in_one.data.regions.npy import SUFFIXES, NpyStore
from twelve_in_one.data.regions.records import RecordStore, is_shard_name
from twelve_in_one.data.regions.several import SeveralStores
from twelve_in_one.data.regions.store import NoRegions, RegionStore
from twelve_in_one.data.regions.tsv import TsvStore
from twelve_in_one.data.stored.records import DataError

_FORMATS = {
    "lmdb": LmdbStore,
    "npy": NpyStore,
    "tsv": TsvStore,
    "hdf5": Hdf5Store,
    "concap": ConcapStore,
    "grid": GridStore,
    "records": RecordStore,
}
_ARCHIVES = (
    (b"PK\x03\x04", "zip", "unzip"),
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ", "xz", "unxz"),
    (b"7z\xbc\xaf", "7-zip", "7z x"),
)
FORMATS_HELP = (
    "lmdb:PATH (the released stores), npy:FOLDER (one .npy or .npz file an image, of the released "
    "extraction script, MMF or bottom-up-attention.pytorch), tsv:FILE (bottom-up attention, "
    "LXMERT, VinVL), grid:FOLDER (one .pth file an image, of grid-feats-vqa), hdf5:FILE, "
    "concap:PATH (Conceptual Captions, tensorpack), records:FOLDER (our shards), "
    "none (no regions), or a path of one of these kinds; several with commas between them, in "
    "order of search"
)


def open_store(spec: str) -> RegionStore:
    """Opens a store of region features.

    Args:
      spec: "<format>:<path>", "none", or a path whose name or content shows its format; see
        `FORMATS_HELP`. In a comma-separated list, the first store that has an image provides it.

    Raises:
      DataError: no such file, an unknown format, or a damaged store.
    """
    if spec == "none":
        return NoRegions()
    kind, _, rest = spec.partition(":")
    if "," in spec and not Path(rest if kind in _FORMATS else spec).exists():
        return _open_several(spec.split(","))
    if kind not in _FORMATS:
        kind, rest = _recognise(Path(expand(spec))), spec
    path = Path(expand(rest))
    if not rest or not path.exists():
        raise DataError(f"region store {spec!r}: no such file or folder; formats: {FORMATS_HELP}")
    _refuse_archive(path)
    return _FORMATS[kind](path)


def _open_several(specs: list[str]) -> RegionStore:
    if "none" in specs or "" in specs:
        raise DataError(f"region stores {','.join(specs)!r}: each must be one; {FORMATS_HELP}")
    with contextlib.ExitStack() as opened:
        stores = [opened.enter_context(open_store(spec)) for spec in specs]
        opened.pop_all()
    return SeveralStores(stores)


def _refuse_archive(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as stream:
        start = stream.read(8)
    for magic, what, command in _ARCHIVES:
        if start.startswith(magic):
            raise DataError(
                f"region store {str(path)!r}: packed with {what}; unpack it ({command} {path}) and "
                "name what comes out"
            )


def _recognise(path: Path) -> str:
    """Format of a file or folder."""
    if not path.exists():
        raise DataError(
            f"region store {str(path)!r}: no such file or folder; formats: {FORMATS_HELP}"
        )
    _refuse_archive(path)
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "lmdb"
        with os.scandir(path) as entries:
            for entry in entries:
                if is_shard_name(entry.name):
                    return "records"
                if entry.name.endswith(SUFFIXES):
                    return "npy"
                if entry.name.endswith(GRID_SUFFIXES):
                    return "grid"
    kinds = {
        ".lmdb": "lmdb", ".mdb": "lmdb", ".tsv": "tsv", ".h5": "hdf5", ".hdf5": "hdf5",
    }  # fmt: skip
    if path.is_file() and path.suffix in kinds:
        return kinds[path.suffix]
    raise DataError(f"region store {str(path)!r}: unknown format; formats: {FORMATS_HELP}")
