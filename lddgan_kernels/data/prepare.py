"""One picture of any mode and size -> the uint8 square that a network reads."""

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

# A picture as it is stored: an encoded file, or uint8 pixels (H, W) or (H, W, 1, 3 or 4).
Stored = bytes | npt.NDArray[np.uint8]


def prepare(stored: Stored, resolution: int, channels: int, enlarge: bool) -> Tensor:
    """Decodes, turns, flattens, crops and resizes one picture.

    EXIF orientation is applied, alpha composited on white, 16-bit grey scaled to 8 bits. The
    largest centred square is resized with Lanczos, Pillow's sharpest filter without aliasing
    (its support grows with the reduction), which is also how CelebA-HQ and FFHQ were made.

    Returns: (channels, resolution, resolution) uint8, contiguous; channels 1 (grey) or 3 (RGB).
    Raises whatever the decoder raises for a broken picture, and ValueError for one that is smaller
    than the crop (unless it may be enlarged) or whose range of values is not known.
    """
    image = _open(stored)
    if not enlarge:
        check_size(image.size, resolution)
    # JPEGs far larger than the crop are decoded at a fraction of their size (at least twice the
    # crop's), which is several times as fast and leaves enough for the filter.
    image.draft(None, (2 * resolution, 2 * resolution))
    image = _flatten(ImageOps.exif_transpose(image), image.format)
    image = image.convert("RGB" if channels == 3 else "L")
    width, height = image.size
    if (width, height) != (resolution, resolution):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
    pixels = np.array(image).reshape(resolution, resolution, channels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def check_size(size: tuple[int, int], resolution: int) -> None:
    """Raises ValueError for a (width, height) that would have to be enlarged."""
    if min(size) < resolution:
        raise ValueError(
            f"{size[0]}x{size[1]} pixels, smaller than the crop of {resolution}x{resolution}"
        )


def _open(stored: Stored) -> Image.Image:
    if isinstance(stored, bytes):
        return Image.open(io.BytesIO(stored))
    grey = stored.ndim == 3 and stored.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(stored[:, :, 0] if grey else stored))


def _flatten(image: Image.Image, kind: str | None) -> Image.Image:
    """An 8-bit picture without alpha; `kind` is the format of its file."""
    # Before Pillow 11 a 16-bit PNG had the mode of 32 bits, as a 16-bit PGM has.
    if image.mode == "F" or (image.mode == "I" and kind not in ("PNG", "PPM")):
        of = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"{of} pixels, whose range is not known: store 8 or 16 bits")
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion would clip at 255 instead of scaling.
        values = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode.upper() in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image)
    return image
