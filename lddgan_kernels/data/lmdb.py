"""LMDB databases of images, as LSUN and CelebA-HQ are shipped."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lddgan_kernels._checks import fail
from lddgan_kernels.data.prepare import check_size, open_checked

# How encoded files begin: JPEG, PNG, WebP (RIFF).
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")


def find_lmdb(path: Path) -> Path | None:
    """The database at `path`, or None where it is something else.

    A database is a folder with `data.mdb` (LSUN: `church_outdoor_train_lmdb`), a folder with such
    a `train.lmdb` in it (CelebA-HQ), or a single `.mdb` or `.lmdb` file.
    """
    if path.is_file():
        return path if path.suffix in (".mdb", ".lmdb") else None
    for candidate in (path, path / "train.lmdb"):
        if (candidate / "data.mdb").exists():
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
    prepared for NVAE and DDGAN).
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name if path.name != "train.lmdb" else path.resolve().parent.name
        self.labels = None
        self._path = path
        with _open(path) as environment, environment.begin() as transaction:
            self._keys = list(transaction.cursor().iternext(keys=True, values=False))

    def __len__(self) -> int:
        return len(self._keys)

    def item_name(self, index: int) -> str:
        return self._keys[index].decode(errors="replace")

    def read(self, index: int, resolution: int) -> Image.Image:
        # Opened for each read: an open environment may not cross a fork into workers, and opening
        # takes a tenth of a millisecond.
        with _open(self._path) as environment, environment.begin() as transaction:
            value = transaction.get(self._keys[index])
        side = math.isqrt(len(value) // 3)
        if value.startswith(MAGIC) or 3 * side * side != len(value):
            return open_checked(io.BytesIO(value), resolution)
        check_size((side, side), resolution)
        return Image.fromarray(np.frombuffer(value, dtype=np.uint8).reshape(side, side, 3))


def _open(path: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            f"open_images: {path} is an LMDB and the package lmdb is not installed: "
            "run pip install 'lddgan_kernels[lmdb]'"
        ) from error
    try:
        return lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise fail("open_images", "path", "a readable LMDB", f"{path}: {error}") from None
