"""Images as bytes, and grids of them."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 48  # pixels: smaller images are enlarged in grids, whole times


def to_uint8(images: Tensor) -> Tensor:
    """Images of about [-1, 1] as uint8, on the CPU."""
    levels = images.float().clamp(-1, 1).add(1).mul(127.5).round()
    return levels.to(torch.uint8).cpu().contiguous()


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """(N, C, H, W) uint8 images in rows of `columns` (about a square by default): (C, H', W')."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(SMALLEST / height))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = 2
    out = torch.full(
        (channels, rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap),
        255,
        dtype=torch.uint8,
    )
    for i, image in enumerate(images):
        top = (i // columns) * (height * scale + gap) + gap
        left = (i % columns) * (width * scale + gap) + gap
        out[:, top : top + height * scale, left : left + width * scale] = image
    return out


def save_png(path: Path, image: Tensor) -> None:
    """Writes a (C, H, W) uint8 image, whole or not at all; grey where C = 1."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        picture.save(temporary, "PNG")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


@torch.no_grad()
def reconstructions(images: Tensor, reconstruct: Callable[[Tensor], Tensor]) -> Tensor:
    """A grid (C, H, W) uint8: rows of images in [-1, 1], each over a row of their reconstructions.

    Args:
        images: (N, C, H, W).
        reconstruct: images to images.
    """
    pairs = to_uint8(images), to_uint8(reconstruct(images))
    columns = min(8, len(images))
    rows = [half for part in zip(*(p.split(columns) for p in pairs), strict=True) for half in part]
    return grid(torch.cat(rows), columns)
