"""Read-only LMDB files (format version 1, as LMDB 0.9 writes it).

The C library maps the file and trusts every number in it: a truncated copy ends the process with a
bus error, and so do changed bytes (16 of 150 files like those of `test_damaged_trees`). In a
separate process it takes 50 ms to start and 4 times the CPU to hand values over (1200 of 0.5 MB:
0.48 s, here 0.12 s). This reader follows the same pages with every offset checked, and never
writes. It reads only the features that the released stores use: the main database, little-endian,
byte-wise sorted keys, one value per key.

Layout: pages of P bytes; 0 and 1 are meta pages, and the one with the later transaction counts.
A B+ tree of branch and leaf pages holds the keys; values that do not fit in a page follow the
header of a run of overflow pages.
"""

import bisect
import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from twelve_in_one.data.stored.records import DataError

_PAGE = struct.Struct("<QHHHH")  # number, unused, flags, end of the node offsets, begin of nodes
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_TREE = struct.Struct("<IHHQQQQQ")  # page size or unused, flags, depth, page counts, entries, root
_LAST = struct.Struct("<QQ")  # last page, transaction
_NODE = struct.Struct("<HHHH")  # low and high half of the value's size, flags, key size
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG_VALUE = 1
_NO_PAGE = (1 << 64) - 1
_MAX_DEPTH = 32


class LmdbFile:
    """Keys and values of an LMDB environment.

    Attributes:
      num_entries: number of keys, as the file states it.

    Args:
      path: the environment's folder, or its file if there is no folder.

    Raises:
      DataError: missing, not LMDB of version 1, or truncated. All methods raise it if they meet
        an invalid page.
    """

    def __init__(self, path: Path):
        self._path = path / "data.mdb" if path.is_dir() else path
        try:
            with open(self._path, "rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path}: cannot be read: {error}") from error
        self._page_size, _, _, _ = self._meta(0)
        if self._page_size not in (1 << power for power in range(8, 17)):
            raise self._damage(f"page size {self._page_size}")
        metas = self._meta(0), self._meta(self._page_size)
        _, self.num_entries, self._root, _ = max(metas, key=lambda meta: meta[-1])
        if self.num_entries > len(self._map):
            raise self._damage(f"{self.num_entries} entries")

    def _meta(self, offset: int) -> tuple[int, int, int, int]:
        """Page size, number of entries, root page and transaction of a meta page."""
        *_, flags, _, _ = self._unpack(_PAGE, offset)
        magic, version, _, _ = self._unpack(_META, offset + _PAGE.size)
        if magic != _MAGIC or version != _VERSION or not flags & _META_PAGE:
            raise self._damage(f"no LMDB meta page of version {_VERSION} at byte {offset}")
        trees = offset + _PAGE.size + _META.size
        page_size, *_ = self._unpack(_TREE, trees)
        _, flags, *_, entries, root = self._unpack(_TREE, trees + _TREE.size)
        _, transaction = self._unpack(_LAST, trees + 2 * _TREE.size)
        if flags:
            raise self._damage(f"a database of another kind (flags {flags:#x})")
        return page_size, entries, root, transaction

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Start and end in the file of the value of `key`; None if there is none."""
        page = self._root
        if page == _NO_PAGE:
            return None
        for _ in range(_MAX_DEPTH):
            start, is_leaf, count = self._page(page)

            def node_key(index: int, start: int = start) -> bytes:
                return self._node(start, index)[0]

            if is_leaf:
                index = bisect.bisect_left(range(count), key, key=node_key)
                if index == count or node_key(index) != key:
                    return None
                return self._value(start, index)
            # The first key of a branch is empty: it covers all keys less than the second.
            index = bisect.bisect_right(range(count), key, lo=1, key=node_key) - 1
            page = self._child(start, index)
        raise self._damage("the tree does not end")

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`; None if there is none."""
        span = self.find(key)
        return None if span is None else self.read(*span)

    def items(self) -> Iterator[tuple[bytes, tuple[int, int]]]:
        """Keys in ascending order, each with the start and end of its value in the file."""
        if self._root == _NO_PAGE:
            return
        budget = len(self._map) // self._page_size
        stack = [self._root]
        while stack:
            budget -= 1
            if budget < 0:
                raise self._damage("the tree has more pages than the file")
            start, is_leaf, count = self._page(stack.pop())
            if is_leaf:
                for index in range(count):
                    yield self._node(start, index)[0], self._value(start, index)
            else:
                stack.extend(self._child(start, index) for index in reversed(range(count)))

    def read(self, start: int, end: int) -> bytes:
        """Bytes of the file: a value or a part of one."""
        return self._map[start:end]

    @contextlib.contextmanager
    def sparse(self) -> Iterator[None]:
        """Stops the system from reading ahead, for a pass that needs little of each value."""
        self._map.madvise(mmap.MADV_RANDOM)
        try:
            yield
        finally:
            if not self._map.closed:
                self._map.madvise(mmap.MADV_NORMAL)

    def close(self) -> None:
        """Unmaps the file."""
        self._map.close()

    def _page(self, number: int) -> tuple[int, bool, int]:
        """Start of a branch or leaf page, whether it is a leaf, and its number of nodes."""
        start = number * self._page_size
        if start + self._page_size > len(self._map):
            raise self._damage(f"page {number} lies behind the end")
        own_number, _, flags, lower, _ = self._unpack(_PAGE, start)
        if own_number != number or flags not in (_BRANCH, _LEAF):
            raise self._damage(f"page {number} is not a branch or leaf")
        count = (lower - _PAGE.size) // 2
        fewest = 1 if flags == _BRANCH else 0
        if not fewest <= count <= (self._page_size - _PAGE.size) // 2:
            raise self._damage(f"page {number} has {count} nodes")
        return start, flags == _LEAF, count

    def _node(self, start: int, index: int) -> tuple[bytes, int, int, int]:
        """Key, its end, size of the value and flags of a node of the page at `start`."""
        (offset,) = struct.unpack_from("<H", self._map, start + _PAGE.size + 2 * index)
        if offset + _NODE.size > self._page_size:
            raise self._damage(f"a node at {offset} of a page")
        low, high, flags, key_size = _NODE.unpack_from(self._map, start + offset)
        key_start = start + offset + _NODE.size
        key_end = key_start + key_size
        if key_end > start + self._page_size:
            raise self._damage(f"a key of {key_size} bytes in a page")
        return self._map[key_start:key_end], key_end, low | high << 16, flags

    def _child(self, start: int, index: int) -> int:
        _, _, low, high = self._node(start, index)
        return low | high << 32

    def _value(self, start: int, index: int) -> tuple[int, int]:
        key, begin, size, flags = self._node(start, index)
        limit = start + self._page_size
        if flags == _BIG_VALUE:
            (number,) = self._unpack(struct.Struct("<Q"), begin)
            page = number * self._page_size
            _, _, page_flags, _, _ = self._unpack(_PAGE, page)
            if page_flags != _OVERFLOW:
                raise self._damage(f"the value of {key!r} is not where it should be")
            begin, limit = page + _PAGE.size, len(self._map)
        elif flags:
            raise self._damage(f"{key!r} has several values (flags {flags:#x})")
        if begin + size > limit:
            raise self._damage(f"the value of {key!r} ends behind its page or the file")
        return begin, begin + size

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        if offset + layout.size > len(self._map):
            raise self._damage(f"byte {offset} lies behind the end")
        return layout.unpack_from(self._map, offset)

    def _damage(self, what: str) -> DataError:
        return DataError(
            f"{self._path}: truncated or no LMDB file: {what}; it has {len(self._map)} bytes"
        )
