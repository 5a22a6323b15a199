"""Images held in one uint8 array, such as an `.npz`."""

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.prepare import check_size


class ArraySource:
    """Images of an array `x` (N,H,W,C) uint8, C = 1 or 3; `labels` (N,) int64 or None."""

    def __init__(self, name: str, x: npt.NDArray[np.uint8], labels: Tensor | None = None) -> None:
        self.name = name
        self.labels = labels
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def item_name(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int, resolution: int) -> Image.Image:
        pixels = self._x[index]
        check_size((pixels.shape[1], pixels.shape[0]), resolution)
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def open_npz(path: Path) -> ArraySource:
    """An `.npz` with uint8 `x` (N,H,W,C), C = 1 or 3, and optionally integer labels `y` (N,)."""
    expected = "an .npz with uint8 `x` of shape (N, H, W, 1 or 3)"
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            x, y = (file[name] if name in names else None for name in "xy")
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, TypeError) as error:
        raise fail("open_images", "path", expected, f"{path}: {error}") from None
    if x is None:
        held = ", ".join(names) or "nothing"
        raise fail("open_images", "path", expected, f"{path}, which holds {held}")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3):
        raise fail("open_images", "path", expected, f"{path}, `x` {x.dtype} {x.shape}")
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise fail(
            "open_images",
            "path",
            f"an .npz with integer `y` ({len(x)},)",
            f"{path}, `y` {y.dtype} {y.shape}",
        )
    return ArraySource(path.stem, x, None if y is None else torch.from_numpy(y.astype(np.int64)))
