"""The embedded default: 1,797 real handwritten digits.

`digits.csv.gz` is the "Optical Recognition of Handwritten Digits" set of E. Alpaydin and
C. Kaynak (UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), the part that
scikit-learn ships, unchanged, under the Creative Commons Attribution 4.0 licence (CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/). One image a line: 8x8 values 0..16, then the digit.
"""

import gzip
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.arrays import ArraySource

HELD_OUT_EVERY = 5


class Digits(NamedTuple):
    """Handwritten digits: `images` (N, 1, resolution, resolution) uint8, `labels` (N,) int64."""

    images: Tensor
    labels: Tensor


def load_digits(split: str | None = None, resolution: int = 8) -> Digits:
    """The embedded digits, white on black, 0..255.

    split: "test" holds every fifth image of each digit in the file's order (355 images), "train"
        the other 1,442, None all 1,797. The split never changes and keeps the digits' shares.
    resolution: 8 or more; above 8 the images are enlarged bicubically.
    """
    if split not in (None, "train", "test"):
        raise fail("load_digits", "split", '"train", "test" or None', repr(split))
    if resolution < 8:
        raise fail("load_digits", "resolution", "at least 8", resolution)
    pixels, labels = _read()
    if split is not None:
        held_out = np.zeros(len(labels), dtype=bool)
        for digit in range(10):
            held_out[np.flatnonzero(labels == digit)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
        chosen = held_out if split == "test" else ~held_out
        pixels, labels = pixels[chosen], labels[chosen]
    if resolution > 8:
        size = (resolution, resolution)
        pixels = np.stack(
            [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pixels]
        )
    return Digits(torch.from_numpy(pixels)[:, None].contiguous(), torch.from_numpy(labels))


def open_digits(resolution: int) -> ArraySource:
    """The training split as an image source at `resolution`."""
    digits = load_digits("train", resolution)
    return ArraySource("digits", digits.images.permute(0, 2, 3, 1).numpy(), digits.labels)


def _read() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(1797, 8, 8) uint8 images 0..255 and (1797,) labels."""
    packed = resources.files("lddgan_kernels.data").joinpath("digits.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split()
    table = np.array([line.split(",") for line in lines], dtype=np.float64)
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return pixels, table[:, 64].astype(np.int64)
