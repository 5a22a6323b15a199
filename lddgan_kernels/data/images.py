"""`open_images`: one map-style dataset over every kind of image source."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data import source as sources
from lddgan_kernels.data.arrays import open_npy, open_npz
from lddgan_kernels.data.cifar import download_cifar10, open_cifar_archive, open_cifar_folder
from lddgan_kernels.data.digits import open_digits
from lddgan_kernels.data.folder import FolderSource
from lddgan_kernels.data.kinds import readable
from lddgan_kernels.data.lmdb import LmdbSource, find_lmdb
from lddgan_kernels.data.parquet import ParquetSource, training_files
from lddgan_kernels.data.prepare import prepare
from lddgan_kernels.data.source import Skipped, Source
from lddgan_kernels.data.tar import SUFFIXES as TAR_SUFFIXES
from lddgan_kernels.data.tar import TarSource, open_shards, read_members
from lddgan_kernels.data.zip import ZipSource


class ImageDataset(torch.utils.data.Dataset[Tensor]):
    """Map-style dataset of (channels, resolution, resolution) uint8 tensors.

    An item that cannot be decoded, or is smaller than the crop, is replaced by the next good one,
    so that batches keep their size; `skipped` lists such items once each, also those that a
    DataLoader's workers met. `name` is for people, `identity` tells the set from any other.
    """

    def __init__(
        self, source: Source, resolution: int, channels: int, length: int, enlarge: bool = False
    ) -> None:
        self.name = source.name
        self.resolution = resolution
        self.channels = channels
        self.enlarge = enlarge
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
    def labels(self) -> Tensor | None:
        """(N,) int64 classes or None: of the picture that comes for an index, as far as is known.

        For a picture found bad, another comes.
        """
        labels = self._source.labels
        if labels is None:
            return None
        labels = labels[: len(self)]
        return labels[self.stand_ins] if self._bad.any() else labels

    @property
    def stand_ins(self) -> Tensor:
        """(N,) int64: which picture comes for each index, as far as is known."""
        good = self.good.nonzero().flatten()
        after = torch.searchsorted(good, torch.arange(len(self)))
        return good[after % len(good)]

    @cached_property
    def identity(self) -> str:
        """A hash of the pictures and of how they are prepared; reads the set once."""
        how = f"{self.resolution} {self.channels}" + " enlarged" * self.enlarge
        return f"{sources.identity(self._source, len(self))} {how}"

    @property
    def skipped(self) -> Skipped:
        """(name, reason) of each file and item met so far that could not be used."""
        found = list(self._source.passed_over)
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

    def mark_bad(self, bad: Tensor) -> None:
        """Takes (N,) bool: items that another process could not use."""
        self._bad[bad] = 1

    def _load(self, index: int) -> Tensor:
        stored = self._source.read(index)
        return prepare(stored, self.resolution, self.channels, self.enlarge)


def open_images(
    path: str | Path | None,
    resolution: int,
    *,
    limit: int | None = None,
    channels: int = 3,
    enlarge: bool = False,
) -> ImageDataset:
    """Opens a set of images as a map-style dataset.

    path: None for the embedded handwritten digits (their training split); `cifar10` to download
        CIFAR-10's training images; a folder (searched recursively), zip or tar of images; a folder
        of tar archives (WebDataset) or parquet files (Hugging Face), or one of them; an `.npz` or
        `.npy` of uint8 (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1, 3 or 4 (`x` or `arr_0`; labels
        `y`); CIFAR-10's or CIFAR-100's archive, python or binary, or its folder; an LMDB as LSUN
        and CelebA-HQ are shipped.
    resolution: side of the square images returned, in pixels: centre-cropped, resized with an
        antialiasing filter. Smaller images are skipped (only the digits are enlarged).
    limit: at most this many, the first ones in the order of their names.
    channels: 3 (RGB) or 1 (grey).
    enlarge: use smaller images too, enlarged.

    Labels, where all pictures have one: `y`, CIFAR's, the digits, a parquet file's column `label`,
    WebDataset's `.cls`; else a `dataset.json` as StyleGAN has it, beside the pictures of a folder
    or zip; else the folders, in the order of their names.

    Returns: `ImageDataset`. Raises FileNotFoundError for a missing path, ValueError where nothing
    usable is found or the format is not as described, ImportError where pyarrow is not installed.
    """
    if resolution < 1:
        raise fail("open_images", "resolution", "at least 1", resolution)
    if channels not in (1, 3):
        raise fail("open_images", "channels", "1 or 3", channels)
    if limit is not None and limit < 1:
        raise fail("open_images", "limit", "at least 1 or None", limit)
    source = _open_source(path, resolution)
    if len(source) == 0:
        met = "".join(f"; {name}: {reason}" for name, reason in source.passed_over[:3])
        raise fail(
            "open_images",
            "path",
            "a folder, archive or set that holds images",
            f"none in {path}{met}",
        )
    length = len(source) if limit is None else min(limit, len(source))
    dataset = ImageDataset(source, resolution, channels, length, enlarge)
    dataset[0]  # a set without one usable image is refused here, not hours later
    return dataset


def _open_source(path: str | Path | None, resolution: int) -> Source:
    """The one place that decides what a path is."""
    if path is None:
        return open_digits(resolution)
    if str(path) == "cifar10" and not Path(path).exists():
        return download_cifar10()
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"open_images: path must be an existing folder or file, got {path} (`cifar10` would "
            "download CIFAR-10; no path means the embedded digits)"
        )
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        name, suffix = path.name.lower(), path.suffix.lower()
        if suffix == ".npz":
            return open_npz(path)
        if suffix == ".npy":
            return open_npy(path)
        if suffix == ".zip":
            return ZipSource(path)
        if suffix == ".parquet":
            return ParquetSource(readable(path.stem), [path])
        if name.endswith(TAR_SUFFIXES):
            members, passed_over = read_members(path)
            cifar = open_cifar_archive(path, members)
            if cifar is not None:
                return cifar
            return TarSource(readable(path.name.split(".")[0]), members, passed_over)
        if find_lmdb(path) is not None:
            return LmdbSource(path)
    raise fail(
        "open_images",
        "path",
        "a folder, .zip, .npz, LMDB, .npy, .tar, .parquet or cifar-10-python.tar.gz",
        f"the file {path}",
    )


def _open_folder(path: Path) -> Source:
    database = find_lmdb(path)
    if database is not None:
        return LmdbSource(database)
    cifar = open_cifar_folder(path)
    if cifar is not None:
        return cifar
    source = FolderSource(path)
    if len(source) == 0:
        parquet = [file for file in source.sets if file.suffix.lower() == ".parquet"]
        shards = [file for file in source.sets if file.name.lower().endswith(TAR_SUFFIXES)]
        if parquet:
            return ParquetSource(source.name, training_files(parquet))
        if shards:
            return open_shards(source.name, shards)
    source.passed_over += [
        (readable(file.name), "an archive beside pictures: give its own path to use it")
        for file in source.sets
    ]
    return source
