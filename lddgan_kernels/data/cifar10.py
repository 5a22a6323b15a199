"""CIFAR-10's official python archive, its extracted folder, or its download."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lddgan_kernels._checks import fail
from lddgan_kernels.data.arrays import ArraySource
from lddgan_kernels.data.download import cache_folder, download

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


def find_cifar10(path: Path) -> bool:
    """Whether `path` is a tar archive or an extracted folder of CIFAR-10."""
    if path.is_file():
        return path.name.endswith((".tar.gz", ".tgz", ".tar"))
    return any((path / folder / BATCHES[0]).is_file() for folder in (".", FOLDER))


def open_cifar10(path: Path | None) -> ArraySource:
    """The 50,000 training images, in the official order; None downloads them (170 MB) once."""
    if path is None:
        path = download(URL, cache_folder() / "cifar-10-python.tar.gz", md5=MD5)
    if path.is_dir():
        folder = path if (path / BATCHES[0]).is_file() else path / FOLDER
        return _gather(path, lambda name: (folder / name).read_bytes())
    try:
        with tarfile.open(path) as archive:
            return _gather(path, lambda name: _member(archive, name))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise fail(
            "open_images", "path", "a whole cifar-10-python.tar.gz", f"{path}: {error}"
        ) from None


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"{FOLDER}/{name}")
    if file is None:
        raise KeyError(name)
    return file.read()


def _gather(path: Path, read: Callable[[str], bytes]) -> ArraySource:
    images, labels = [], []
    for name in BATCHES:
        try:
            batch = _SafeUnpickler(io.BytesIO(read(name)), encoding="bytes").load()
            data, digits = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], dtype=np.int64)
        except FileNotFoundError as error:
            raise fail("open_images", "path", f"CIFAR-10 with {name}", f"{path}") from error
        except (KeyError, TypeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
            raise fail("open_images", "path", f"CIFAR-10 with {name}", f"{path}: {error}") from None
        if data.dtype != np.uint8 or data.shape != (len(digits), 3072):
            raise fail(
                "open_images",
                "path",
                f"CIFAR-10 with {name} uint8 ({len(digits)}, 3072)",
                f"{path}, {data.dtype} {data.shape}",
            )
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(digits)
    return ArraySource("cifar10", np.concatenate(images), torch.from_numpy(np.concatenate(labels)))


class _SafeUnpickler(pickle.Unpickler):
    """Reads the official batches and nothing that could run code."""

    ALLOWED = frozenset(
        [("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"a CIFAR-10 batch has no use for {module}.{name}")
        if name == "_reconstruct":  # the official files name it where it was before NumPy 1.26
            module = "numpy._core.multiarray"
        return super().find_class(module, name)
