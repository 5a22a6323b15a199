"""A whole system, ready to sample: LDDGAN, DDGAN or WDDGAN."""

from typing import Any

import torch
from torch import Tensor, nn

from lddgan_kernels import diffusion
from lddgan_kernels._checks import fail
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
        guidance: strength of guidance by the class, at each step; 0: none.
    """

    def __init__(
        self, config: Config, generator: nn.Module, codec: Codec, guidance: float = 0.0
    ) -> None:
        if guidance and not config.classes:
            raise fail("sample", "guidance", "0 for a run without classes", guidance)
        self.config = config
        self.generator = generator
        self.codec = codec
        self.guidance = guidance
        self.device = next(generator.parameters()).device
        self._schedule = networks.build_schedule(config, self.device)
        self._options: dict[str, Any] = {
            "z_dim": config.generator.z_dim,
            "memory_format": networks.layout(config),
            "guidance": guidance,
        }
        self._shape = networks.latent_shape(config)
        self._draw = diffusion.Sampler(
            generator, self._schedule, self._shape, decoder=codec, **self._options
        )

    def __call__(self, seeds: Tensor, batch_size: int = 64, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) uint8 on the CPU, `batch_size` at a time.

        `labels` (N,) are the classes to draw; left out, `labels_of` the seeds.
        """
        given = self._with_labels(seeds, labels)
        parts = zip(*(x.split(batch_size) for x in given), strict=True)
        with autocast(self.config, self.device):
            return torch.cat([to_uint8(self._draw(*part)) for part in parts])

    def labels_of(self, seeds: Tensor) -> Tensor | None:
        """Each seed's class where none is asked for, its remainder; None: there are no classes."""
        return seeds % self.config.classes if self.config.classes else None

    def _with_labels(self, seeds: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        labels = self.labels_of(seeds) if labels is None else labels
        return (seeds,) if labels is None else (seeds, labels)

    @torch.no_grad()
    def path(self, seeds: Tensor) -> Tensor:
        """How samples become: (2T + 1, N, C, H, W) uint8.

        What a step starts from and the image it predicts, for each step, then the sample; all
        decoded.
        """
        given = [x.to(self.device) for x in self._with_labels(seeds, None)]
        with autocast(self.config, self.device):
            latents, path = diffusion.sample(
                self.generator,
                self._schedule,
                self._shape,
                given[0],
                labels=given[1] if len(given) > 1 else None,
                return_path=True,
                **self._options,
            )
            stations = [station for pair in path for station in pair] + [latents]
            return torch.stack([to_uint8(self.codec.decode(station)) for station in stations])
