"""Images held in one uint8 array: `.npz` and `.npy`."""

import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.file_array import FileArray
from lddgan_kernels.data.kinds import readable
from lddgan_kernels.data.source import Skipped

SHAPES = "(N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4"
IN_NPZ = f"an .npz with uint8 `x` of shape {SHAPES}"
IN_NPY = f"a .npy of uint8 {SHAPES}"
COLOURS = (1, 3, 4)


class Header(NamedTuple):
    """What an array is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def is_one_each(self, count: int) -> bool:
        """Whether it holds an integer for each of `count`."""
        return self.dtype.kind in "iu" and math.prod(self.shape) == count


class _Unfit(ValueError):
    """The file is whole, but not of images."""


class ArraySource:
    """Images of an array (N, H, W), (N, H, W, C) or (N, C, H, W); `labels` (N,) int64 or None."""

    def __init__(
        self, name: str, x: npt.NDArray[np.uint8] | FileArray, labels: Tensor | None = None
    ) -> None:
        self.name = name
        self.labels = labels
        self.passed_over: Skipped = []
        self._x = x
        self._channels_first = _is_channels_first(x.shape)

    def __len__(self) -> int:
        return len(self._x)

    def item_name(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        image = np.asarray(self._x[index])
        return image.transpose(1, 2, 0) if self._channels_first else image


def open_npz(path: Path) -> ArraySource:
    """Images `x`, or `arr_0` where there is none, or the only array of images in the file.

    Integers `y`, one for each image in whatever shape, become the labels; any other `y` is ignored.
    """
    labels = None
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array; call it .npy")
            names = list(file.files)
            headers = {name: _peek(file, name) for name in names}
            chosen = [str(name) for name in ("x", "arr_0") if name in names][:1]
            if not chosen:
                chosen = [name for name in names if _is_images(headers[name])]
            x = None
            if len(chosen) == 1:
                _check(path, IN_NPZ, f"`{chosen[0]}` ", headers[chosen[0]])
                x = file[chosen[0]]
            y = headers.get("y")
            if x is not None and y is not None and y.is_one_each(len(x)):
                labels = torch.from_numpy(file["y"].reshape(-1).astype(np.int64))
    except _Unfit:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything
        raise fail("open_images", "path", IN_NPZ, _said(path, error)) from None
    if x is None:
        held = ", ".join(names) or "nothing"
        raise fail("open_images", "path", IN_NPZ, f"{path}, which holds {held}")
    return ArraySource(readable(path.stem), x, labels)


def open_npy(path: Path) -> ArraySource:
    """Images of a `.npy`, read as they are needed."""
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("an archive; call it .npz")
            file.seek(0)
            header, offset = read_header(file), file.tell()
        _check(path, IN_NPY, "", header)
        x: npt.NDArray[np.uint8] | FileArray
        if header.fortran:  # images lie scattered
            x = np.load(path, allow_pickle=False)
        else:
            x = FileArray(path, header.shape, header.dtype, offset)
    except _Unfit:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything
        raise fail("open_images", "path", IN_NPY, _said(path, error)) from None
    return ArraySource(readable(path.stem), x)


def read_header(file: BinaryIO) -> Header:
    """The header of a `.npy`, up to which the file is read."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else read)(
        file
    )
    return Header(shape, dtype, fortran)


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array is (N, C, H, W), not (N, H, W) or (N, H, W, C).

    Where C could be either the second or the last dimension, the images are square.
    """
    if len(shape) == 3:
        return False
    _, second, third, last = shape
    if last in COLOURS and second in COLOURS and (second == third) != (third == last):
        return second != third
    return last not in COLOURS


def _check(path: Path, expected: str, what: str, header: Header | None) -> None:
    if not _is_images(header):
        found = "no array" if header is None else f"{header.dtype} {header.shape}"
        raise _Unfit(str(fail("open_images", "path", expected, f"{path}, {what}{found}")))


def _is_images(header: Header | None) -> bool:
    if header is None or header.dtype != np.uint8 or len(header.shape) not in (3, 4):
        return False
    return len(header.shape) == 3 or header.shape[3] in COLOURS or header.shape[1] in COLOURS


def _peek(file: "np.lib.npyio.NpzFile", name: str) -> Header | None:
    """What an array of the file is, without reading it; None for what is no array."""
    if file.zip is None or f"{name}.npy" not in file.zip.namelist():
        return None
    with file.zip.open(f"{name}.npy") as member:
        return read_header(member)  # type: ignore[arg-type]


def _said(path: Path, error: Exception) -> str:
    return f"{path}: {str(error) or type(error).__name__}"
