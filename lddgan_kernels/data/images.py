"""`open_images`: one map-style dataset over every kind of image source."""

from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.arrays import open_npz
from lddgan_kernels.data.cifar10 import find_cifar10, open_cifar10
from lddgan_kernels.data.digits import open_digits
from lddgan_kernels.data.folder import FolderSource
from lddgan_kernels.data.lmdb import LmdbSource, find_lmdb
from lddgan_kernels.data.prepare import prepare
from lddgan_kernels.data.zip import ZipSource


class Source(Protocol):
    """Where pictures come from: picklable, safe to read from in DataLoader workers."""

    name: str

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64, where the source has them."""

    def __len__(self) -> int: ...

    def item_name(self, index: int) -> str:
        """What a person calls picture `index`."""

    def read(self, index: int, resolution: int) -> Image.Image:
        """The picture; raises for one that is broken or smaller than `resolution`."""


class ImageDataset(torch.utils.data.Dataset[Tensor]):
    """Map-style dataset of (channels, resolution, resolution) uint8 tensors.

    An item that cannot be decoded, or is smaller than the crop, is replaced by the next good one,
    so that batches keep their size; `skipped` lists such items once each, also those that a
    DataLoader's workers met. `labels` is (N,) int64 or None; `name` identifies the data set.
    """

    def __init__(self, source: Source, resolution: int, channels: int, length: int) -> None:
        self.name = source.name
        self.labels = None if source.labels is None else source.labels[:length]
        self.resolution = resolution
        self.channels = channels
        self._source = source
        # 1 marks an item found bad. In shared memory, so that workers' findings are seen here.
        self._bad = torch.zeros(length, dtype=torch.uint8).share_memory_()
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._bad)

    def __getitem__(self, index: int) -> Tensor:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"ImageDataset: index must be below {length}, got {index}")
        for step in range(length):
            candidate = (index + step) % length
            if self._bad[candidate]:
                continue
            try:
                return self._load(candidate)
            except Exception as error:  # a decoder may raise anything on broken data
                self._bad[candidate] = 1
                self._reasons[candidate] = str(error) or type(error).__name__
        first = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
        raise ValueError(
            f"open_images: path must hold an image of at least {self.resolution}x"
            f"{self.resolution} pixels, got {length} files at {self.name}, none usable: {first}"
        )

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of each item met so far that could not be used."""
        found = []
        for index in self._bad.nonzero().flatten().tolist():
            if index not in self._reasons:  # met by a worker
                try:
                    self._load(index)
                    self._reasons[index] = "could not be read for a while"
                except Exception as error:
                    self._reasons[index] = str(error) or type(error).__name__
            found.append((self._source.item_name(index), self._reasons[index]))
        return found

    @property
    def good(self) -> Tensor:
        """(N,) bool: the items not found bad so far."""
        return self._bad == 0

    def _load(self, index: int) -> Tensor:
        image = self._source.read(index, self.resolution)
        return prepare(image, self.resolution, self.channels)


def open_images(
    path: str | Path | None, resolution: int, *, limit: int | None = None, channels: int = 3
) -> ImageDataset:
    """Opens a set of images as a map-style dataset.

    path: None for the embedded handwritten digits (their training split); `cifar10` to download
        CIFAR-10's training images; a folder (searched recursively) or zip of images; an `.npz`
        with uint8 `x` (N,H,W,C) and optional labels `y`; CIFAR-10's python archive or its
        extracted folder; an LMDB as LSUN and CelebA-HQ are shipped.
    resolution: side of the square images returned, in pixels: centre-cropped, resized with an
        antialiasing filter. Smaller images are skipped (only the digits are enlarged).
    limit: at most this many, the first ones in the order of their names.
    channels: 3 (RGB) or 1 (grey).

    Returns: `ImageDataset`. Raises FileNotFoundError for a missing path, ValueError where nothing
    usable is found or the format is not as described, ImportError where LMDB is not installed.
    """
    if resolution < 1:
        raise fail("open_images", "resolution", "at least 1", resolution)
    if channels not in (1, 3):
        raise fail("open_images", "channels", "1 or 3", channels)
    if limit is not None and limit < 1:
        raise fail("open_images", "limit", "at least 1 or None", limit)
    source = _open_source(path, resolution)
    if len(source) == 0:
        raise fail(
            "open_images", "path", "a folder, zip or set that holds images", f"none in {path}"
        )
    length = len(source) if limit is None else min(limit, len(source))
    dataset = ImageDataset(source, resolution, channels, length)
    dataset[0]  # a set without one usable image is refused here, not hours later
    return dataset


def _open_source(path: str | Path | None, resolution: int) -> Source:
    if path is None:
        return open_digits(resolution)
    if str(path) == "cifar10" and not Path(path).exists():
        return open_cifar10(None)
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"open_images: path must be an existing folder or file, got {path} (`cifar10` would "
            "download CIFAR-10; no path means the embedded digits)"
        )
    if path.suffix.lower() == ".npz":
        return open_npz(path)
    if find_cifar10(path):
        return open_cifar10(path)
    database = find_lmdb(path)
    if database is not None:
        return LmdbSource(database)
    if path.is_dir():
        return FolderSource(path)
    if path.suffix.lower() == ".zip":
        return ZipSource(path)
    raise fail(
        "open_images",
        "path",
        "a folder, .zip, .npz, LMDB or cifar-10-python.tar.gz",
        f"the file {path}",
    )
