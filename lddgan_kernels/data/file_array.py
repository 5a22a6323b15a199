"""An array in a file, of which items are read as they are needed."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class FileArray:
    """Items of an array (N, ...) that lies in a file in C order, from the byte `offset` on.

    It is read and not mapped: touching a mapping of a file that has been cut short ends the
    process. Reading raises ValueError where the file is not what it was when this was made.

    Args:
        path: of the file.
        shape: of the array.
        dtype: of its elements.
        offset: bytes before it.

    Raises:
        ValueError: the file is too short for it.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], dtype: npt.DTypeLike, offset: int = 0
    ) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.offset = offset
        self._then = _state(os.stat(path))
        size, needed = self._then[0], offset + math.prod(self.shape) * self.dtype.itemsize
        if size < needed:
            raise ValueError(f"{path} is cut short: {size} bytes, {needed} needed")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.items([index])[0]

    def items(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        """(B, ...) of these indices, each in 0..N-1."""
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            if _state(os.fstat(file.fileno())) != self._then:
                raise ValueError(f"{self.path} was changed since it was opened")
            size = math.prod(self.shape[1:]) * self.dtype.itemsize
            for item, index in zip(found.reshape(len(indices), -1), indices, strict=True):
                file.seek(self.offset + index * size)
                if file.readinto(item.data.cast("B")) != size:
                    raise ValueError(f"{self.path} was cut short while it was read")
        return found


def _state(status: os.stat_result) -> tuple[int, int]:
    """What tells a file that was written to, or another one in its place."""
    return status.st_size, status.st_mtime_ns
