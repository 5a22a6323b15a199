"""CIFAR-10 and CIFAR-100: the official archives, python or binary, their folders, the download."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lddgan_kernels._checks import fail
from lddgan_kernels.data.arrays import ArraySource
from lddgan_kernels.data.download import cache_folder, download
from lddgan_kernels.data.pickles import load_arrays
from lddgan_kernels.data.tar import Member, read_members

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"


class Kind(NamedTuple):
    """One of the official forms: its folder, the files of its training images, and their labels."""

    name: str
    folder: str
    files: tuple[str, ...]
    beside: str
    """A file that lies beside them; names like `train` alone say little."""
    labels: bytes
    """Their key in a python file; in a binary one, as many label bytes precede an image."""


KINDS = (
    Kind(
        "CIFAR-10",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "data_batch_1",
        b"labels",
    ),
    Kind("CIFAR-100", "cifar-100-python", ("train",), "meta", b"fine_labels"),
    Kind(
        "CIFAR-10",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "data_batch_1.bin",
        b"1",
    ),
    Kind("CIFAR-100", "cifar-100-binary", ("train.bin",), "fine_label_names.txt", b"2"),
)

Reader = Callable[[str], bytes]


def download_cifar10() -> ArraySource:
    """The 50,000 training images in the official order; fetches them (170 MB) once."""
    path = download(URL, cache_folder() / "cifar-10-python.tar.gz", md5=MD5)
    source = open_cifar_archive(path, read_members(path)[0])
    if source is None:
        raise fail("open_images", "path", "the archive of CIFAR-10", path)
    return source


def open_cifar_archive(path: Path, members: list[Member]) -> ArraySource | None:
    """The training images of an official archive; None where it is another one."""
    by_name: Mapping[str, Member] = {member.name.removeprefix("./"): member for member in members}
    for kind in KINDS:
        if any(f"{kind.folder}/{name}" in by_name for name in (kind.beside, *kind.files)):
            return _gather(path, kind, _reader_of(by_name, kind))
    return None


def open_cifar_folder(path: Path) -> ArraySource | None:
    """The training images of an extracted archive at `path` or in it; None where there is none."""
    for kind in KINDS:
        for folder in (path, path / kind.folder):
            inside = folder != path or (folder / kind.files[0]).is_file()
            if inside and (folder / kind.beside).is_file():
                return _gather(path, kind, _read_in(folder))
    return None


def _reader_of(members: Mapping[str, Member], kind: Kind) -> Reader:
    return lambda name: members[f"{kind.folder}/{name}"].read()


def _read_in(folder: Path) -> Reader:
    def read(name: str) -> bytes:
        if not (folder / name).is_file():  # a FIFO would block
            raise ValueError(f"{name} is not a file")
        return (folder / name).read_bytes()

    return read


def _gather(path: Path, kind: Kind, read: Reader) -> ArraySource:
    images, labels = [], []
    for name in kind.files:
        try:
            parse = _binary if name.endswith(".bin") else _python
            pixels, classes = parse(read(name), kind.labels)
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise fail(
                "open_images", "path", f"{kind.name} with {name}", f"{path}: {error}"
            ) from None
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(classes)
    name = kind.name.lower().replace("-", "")
    return ArraySource(name, np.concatenate(images), torch.from_numpy(np.concatenate(labels)))


def _python(content: bytes, labels: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(N, 3072) pixels and (N,) classes of a pickled dict."""
    batch = load_arrays(io.BytesIO(content))
    pixels, classes = np.asarray(batch[b"data"]), np.asarray(batch[labels], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(classes), 3072):
        raise ValueError(
            f"`data` must be uint8 ({len(classes)}, 3072), got {pixels.dtype} {pixels.shape}"
        )
    return pixels, classes


def _binary(content: bytes, labels: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(N, 3072) pixels and (N,) classes of records; the last label byte is the finest class."""
    record = int(labels) + 3072
    if not content or len(content) % record:
        raise ValueError(f"records must be of {record} bytes, got {len(content)} bytes")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return rows[:, -3072:], rows[:, -3073].astype(np.int64)
