"""A whole system, ready to sample: LDDGAN, DDGAN or WDDGAN."""

from typing import Any

import torch
from torch import Tensor, nn

from lddgan_kernels import diffusion
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.codec import Codec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.pictures import to_uint8
from lddgan_kernels.trainer.precision import autocast


class System:
    """Seeds to images: the generator, schedule and codec of a configuration.

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
        self._schedule = networks.build_schedule(config, self.device)
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
