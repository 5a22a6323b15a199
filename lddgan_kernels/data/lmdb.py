"""LMDB databases of images, as LSUN and CelebA-HQ are shipped.

The file is read here, every offset checked: the lmdb library maps it, and a file that is cut short
or damaged would end the process. Format: data version 1 of LMDB 0.9 on 64-bit little-endian
machines; a B+ tree of pages, values of some size in runs of pages of their own.
"""

import math
import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lddgan_kernels._checks import fail
from lddgan_kernels.data.kinds import check_bytes, is_encoded, readable
from lddgan_kernels.data.prepare import Stored
from lddgan_kernels.data.source import Skipped

PAGE_HEADER = 16
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG_VALUE, SUB_DATABASE, DUPLICATES = 1, 2, 4
MAGIC, VERSION = 0xBEEFC0DE, 1
NO_PAGE = 2**64 - 1


class Value(NamedTuple):
    """A key, and where its value lies in the file; `page` where it has pages of its own, else 0."""

    key: bytes
    offset: int
    size: int
    page: int


def find_lmdb(path: Path) -> Path | None:
    """The database at `path`, or None where it is something else.

    A database is a folder with `data.mdb` (LSUN: `church_outdoor_train_lmdb`), a folder with such
    a `train.lmdb` in it (CelebA-HQ), or a single `.mdb` or `.lmdb` file.
    """
    if path.is_file():
        return path if path.suffix.lower() in (".mdb", ".lmdb") else None
    for candidate in (path, path / "train.lmdb"):
        if (candidate / "data.mdb").is_file():
            return candidate
    inside = sorted(p.parent.name for p in path.glob("*_lmdb/data.mdb"))
    if inside:
        raise fail(
            "open_images", "path", "one LMDB folder", f"{path}, which holds {', '.join(inside)}"
        )
    return None


class LmdbSource:
    """Every value of a database, in the order of its keys.

    A value is an encoded image (LSUN: webp) or the raw RGB bytes of a square one (CelebA-HQ as
    prepared for NVAE and DDGAN): a database is of raw ones where most of its values have one size
    that fits, and do not begin as an encoded image does.
    """

    def __init__(self, path: Path) -> None:
        named = path if path.name != "train.lmdb" else path.resolve().parent
        self.name = readable(named.name)
        self.labels = None
        self.passed_over: Skipped = []
        self._path = path / "data.mdb" if path.is_dir() else path
        self._keys: list[bytes] = []
        # (offset, size, page) of each value: there may be millions.
        self._places = array("Q")
        try:
            with open(self._path, "rb") as file:
                for value in _Tree(file).values():
                    self._keys.append(value.key)
                    self._places.extend(value[1:])
        except (ValueError, struct.error) as error:
            raise fail("open_images", "path", "a readable LMDB", f"{self._path}: {error}") from None
        self._raw_side = self._find_raw_side()

    def __len__(self) -> int:
        return len(self._keys)

    def item_name(self, index: int) -> str:
        return readable(os.fsdecode(self._keys[index]))

    def read(self, index: int) -> Stored:
        content = self._content(index)
        side = self._raw_side
        if side is not None and len(content) == 3 * side * side:
            return np.frombuffer(content, dtype=np.uint8).reshape(side, side, 3)
        return content

    def _content(self, index: int) -> bytes:
        offset, size, page = self._places[3 * index : 3 * index + 3]
        check_bytes(size)
        with open(self._path, "rb") as file:
            file.seek(offset - PAGE_HEADER)
            header, content = file.read(PAGE_HEADER), file.read(size)
        if len(content) < size:
            raise ValueError("the database was cut short since it was opened")
        if page:
            number, _, kind, _ = struct.unpack("<QHHI", header)
            if number != page or not kind & OVERFLOW:
                raise ValueError(f"page {page} of the database is damaged")
        return content

    def _find_raw_side(self) -> int | None:
        """The side of the raw images; None where the values are encoded ones."""
        sizes = self._places[1::3]
        for size, count in Counter(sizes).most_common(1):
            side = math.isqrt(size // 3)
            if side > 0 and 3 * side * side == size and 2 * count > len(sizes):
                some = [index for index, other in enumerate(sizes) if other == size][:9]
                encoded = sum(self._begins_encoded(index) for index in some)
                return None if 2 * encoded > len(some) else side
        return None

    def _begins_encoded(self, index: int) -> bool:
        try:
            return is_encoded(self._content(index)[:16])
        except ValueError:
            return False


class _Tree:
    """The main database of an LMDB file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.file_size = os.fstat(file.fileno()).st_size
        self.page_size, first = self._meta(0)
        _, second = self._meta(self.page_size)
        # Of the two descriptions the later transaction's holds.
        self.root = max(first, second)[1]

    def _meta(self, offset: int) -> tuple[int, tuple[int, int]]:
        """(page size, (transaction, root)) of the description at `offset`."""
        content = self._bytes(offset + PAGE_HEADER, 136)
        magic, version = struct.unpack_from("<II", content)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError(f"no LMDB of version {VERSION}")
        (page_size,) = struct.unpack_from("<I", content, 24)
        root, _, transaction = struct.unpack_from("<QQQ", content, 112)
        if page_size not in (1 << n for n in range(9, 17)):
            raise ValueError(f"pages of {page_size} bytes")
        return page_size, (transaction, root)

    def values(self) -> Iterator[Value]:
        """Every key in order with the place of its value."""
        pages = [] if self.root == NO_PAGE else [self.root]
        met = set()
        while pages:
            page = pages.pop()
            if page in met:
                raise ValueError(f"page {page} is reached twice")
            met.add(page)
            content = self._bytes(page * self.page_size, self.page_size)
            number, _, flags, lower = struct.unpack_from("<QHHH", content)
            if number != page or lower < PAGE_HEADER or lower > self.page_size:
                raise ValueError(f"page {page} is damaged")
            nodes = struct.unpack_from(f"<{(lower - PAGE_HEADER) // 2}H", content, PAGE_HEADER)
            if flags & BRANCH:
                pages += [self._child(content, node) for node in reversed(nodes)]
            elif flags & LEAF:
                for node in nodes:
                    yield self._value(page, content, node)
            else:
                raise ValueError(f"page {page} is of kind {flags}")

    def _child(self, content: bytes, node: int) -> int:
        low, high, top = struct.unpack_from("<HHH", content, node)
        return low | high << 16 | top << 32

    def _value(self, page: int, content: bytes, node: int) -> Value:
        low, high, flags, key_size = struct.unpack_from("<HHHH", content, node)
        if flags & (SUB_DATABASE | DUPLICATES):
            raise ValueError("it holds databases inside a database, which are not read")
        size, start = low | high << 16, node + 8
        key = content[start : start + key_size]
        if not flags & BIG_VALUE:
            if start + key_size + size > self.page_size:
                raise ValueError(f"page {page} is damaged")
            return Value(key, page * self.page_size + start + key_size, size, 0)
        (number,) = struct.unpack_from("<Q", content, start + key_size)
        offset = number * self.page_size + PAGE_HEADER
        if number == 0 or offset + size > self.file_size:
            raise ValueError(f"it is cut short: page {number} lies past its end")
        return Value(key, offset, size, number)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > self.file_size:
            raise ValueError(f"it is cut short: {self.file_size} bytes, {offset + size} needed")
        self.file.seek(offset)
        return self.file.read(size)
