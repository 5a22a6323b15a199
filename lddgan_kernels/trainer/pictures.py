"""Grids of images, and the pictures of a run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lddgan_kernels import diffusion
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.codec import Codec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.precision import autocast

SMALLEST = 48  # pixels: smaller images are enlarged in grids, whole times


class Sampler:
    """Seeds to images: generator, schedule and codec of a configuration.

    Args:
        config: of the run.
        generator: in evaluation mode, on its device.
        codec: turns its outputs into images.
    """

    def __init__(self, config: Config, generator: nn.Module, codec: Codec) -> None:
        self.config = config
        self.generator = generator
        self.codec = codec
        self.device = next(generator.parameters()).device
        self._schedule = Schedule(config.diffusion.num_steps, self.device)
        self._options: dict[str, Any] = {
            "z_dim": config.generator.z_dim,
            "memory_format": networks.layout(config),
        }
        self._shape = networks.latent_shape(config)
        self._draw = diffusion.Sampler(
            generator, self._schedule, self._shape, decoder=codec, **self._options
        )

    def __call__(self, seeds: Tensor, batch_size: int = 64) -> Tensor:
        """Images (N, C, H, W) uint8 on the CPU, `batch_size` at a time."""
        with autocast(self.config, self.device):
            return torch.cat([to_uint8(self._draw(part)) for part in seeds.split(batch_size)])

    @torch.no_grad()
    def path(self, seeds: Tensor) -> Tensor:
        """How samples become: (2T + 1, N, C, H, W) uint8.

        What a step starts from and the image it predicts, for each step, then the sample; all
        decoded.
        """
        seeds = seeds.to(self.device)
        with autocast(self.config, self.device):
            latents, path = diffusion.sample(
                self.generator,
                self._schedule,
                self._shape,
                seeds,
                return_path=True,
                **self._options,
            )
            stations = [station for pair in path for station in pair] + [latents]
            return torch.stack([to_uint8(self.codec.decode(station)) for station in stations])


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
    """Writes a (C, H, W) uint8 image; grey where C = 1."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


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
