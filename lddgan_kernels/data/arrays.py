"""Images held in one uint8 array: `.npz` and `.npy`."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.kinds import readable
from lddgan_kernels.data.source import Skipped

SHAPES = "(N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4"
IN_NPZ = f"an .npz with uint8 `x` of shape {SHAPES}"
IN_NPY = f"a .npy of uint8 {SHAPES}"
COLOURS = (1, 3, 4)


class ArraySource:
    """Images of an array (N, H, W, C) or (N, H, W); `labels` (N,) int64 or None."""

    def __init__(self, name: str, x: npt.NDArray[np.uint8], labels: Tensor | None = None) -> None:
        self.name = name
        self.labels = labels
        self.passed_over: Skipped = []
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def item_name(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return np.asarray(self._x[index])


def open_npz(path: Path) -> ArraySource:
    """Images `x`, or `arr_0` where there is none, or the only array of images in the file.

    Integers `y`, one for each image in whatever shape, become the labels; any other `y` is ignored.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array; call it .npy")
            names = list(file.files)
            chosen = [str(name) for name in ("x", "arr_0") if name in names][:1]
            if not chosen:
                chosen = [name for name in names if _is_images(_try(file, name))]
            x = file[chosen[0]] if len(chosen) == 1 else None
            y = _try(file, "y") if "y" in names else None
    except Exception as error:  # a damaged or hostile file may raise anything
        raise fail("open_images", "path", IN_NPZ, _said(path, error)) from None
    if x is None:
        held = ", ".join(names) or "nothing"
        raise fail("open_images", "path", IN_NPZ, f"{path}, which holds {held}")
    labels = None
    if y is not None and y.dtype.kind in "iu" and y.size == len(x):
        labels = torch.from_numpy(y.reshape(-1).astype(np.int64))
    return ArraySource(
        readable(path.stem), _channels_last(path, IN_NPZ, f"`{chosen[0]}` ", x), labels
    )


def open_npy(path: Path) -> ArraySource:
    """Images of a `.npy`, read as they are needed."""
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(x, np.ndarray):
            raise ValueError("an archive; call it .npz")
    except Exception as error:  # a damaged or hostile file may raise anything
        raise fail("open_images", "path", IN_NPY, _said(path, error)) from None
    return ArraySource(readable(path.stem), _channels_last(path, IN_NPY, "", x))


def _channels_last(
    path: Path, expected: str, what: str, x: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """The array as (N, H, W) or (N, H, W, C).

    Where C could be either the second or the last dimension, the images are square.
    """
    if not _is_images(x):
        raise fail("open_images", "path", expected, f"{path}, {what}{x.dtype} {x.shape}")
    if x.ndim == 3:
        return x
    last, second = x.shape[3] in COLOURS, x.shape[1] in COLOURS
    if last and second and (x.shape[1] == x.shape[2]) != (x.shape[2] == x.shape[3]):
        last = x.shape[1] == x.shape[2]
    return x if last else x.transpose(0, 2, 3, 1)


def _is_images(x: npt.NDArray[np.uint8] | None) -> bool:
    if x is None or x.dtype != np.uint8 or x.ndim not in (3, 4):
        return False
    return x.ndim == 3 or x.shape[3] in COLOURS or x.shape[1] in COLOURS


def _try(file: "np.lib.npyio.NpzFile", name: str) -> npt.NDArray[np.uint8] | None:
    """An array of the file; None where it cannot be read without running code."""
    try:
        return file[name]
    except ValueError:
        return None


def _said(path: Path, error: Exception) -> str:
    return f"{path}: {str(error) or type(error).__name__}"
