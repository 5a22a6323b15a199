"""A whole system, ready to sample: a diffusion GAN, a DDPM or a VAE."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lddgan_kernels import diffusion
from lddgan_kernels._checks import check_labels, fail
from lddgan_kernels.diffusion.guidance import NO_LABEL
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.codec import Codec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.pictures import to_uint8
from lddgan_kernels.trainer.precision import autocast

DDPM_PATH = 4  # calls of many that a path shows


class System:
    """Seeds to images: the generator, diffusion and codec of a configuration.

    Args:
        config: of the run.
        generator: in evaluation mode, on its device; a VAE's is its autoencoder.
        codec: turns its outputs into images.
        guidance: strength of guidance by the class, at each step; 0: none.
    """

    def __init__(
        self, config: Config, generator: nn.Module, codec: Codec, guidance: float = 0.0
    ) -> None:
        if guidance and not config.classes:
            raise fail("sample", "guidance", "0 for a run without classes", guidance)
        if not math.isfinite(guidance):
            raise fail("sample", "guidance", "a finite number", guidance)
        self.config = config
        self.generator = generator
        self.codec = codec
        self.guidance = guidance
        self.device = next(generator.parameters()).device
        self._layout = networks.layout(config)
        self._shape = networks.latent_shape(config)
        self._schedule = networks.build_schedule(config, self.device)
        self._many_steps: diffusion.ManyStepSampler | None = None
        self._draw: Callable[..., Tensor]
        if config.method == "ddpm":
            self._draw = self._many_steps = diffusion.ManyStepSampler(
                generator,
                networks.build_process(config),
                self._shape,
                sampler=config.ddpm.sampler,
                steps=config.ddpm.sample_steps,
                decoder=codec,
                guidance=guidance,
                memory_format=self._layout,
            )
        elif config.method == "vae":
            self._draw = diffusion.PriorSampler(generator, self._shape, memory_format=self._layout)
        else:
            self._draw = diffusion.Sampler(
                generator,
                self._schedule,
                self._shape,
                z_dim=config.generator.z_dim,
                decoder=codec,
                guidance=guidance,
                memory_format=self._layout,
            )

    @property
    def calls(self) -> int:
        """How often the network is called for an image (NFE), the decoder aside."""
        return networks.calls(self.config)

    def __call__(self, seeds: Tensor, batch_size: int = 64, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) uint8 on the CPU, `batch_size` at a time.

        `labels` (N,) are the classes to draw; left out, `labels_of` the seeds.
        """
        labels = self._checked(seeds, labels)
        given = (seeds,) if labels is None else (seeds, labels)
        parts = zip(*(x.split(batch_size) for x in given), strict=True)
        return torch.cat([_levels(self.draw(*part), part[0]) for part in parts])

    def draw(self, seeds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of about [-1, 1] (N, C, H, W), on the device; likewise."""
        labels = self._checked(seeds, labels)
        with autocast(self.config, self.device):
            return self._draw(*((seeds,) if labels is None else (seeds, labels)))

    def _checked(self, seeds: Tensor, labels: Tensor | None) -> Tensor | None:
        """The classes to draw of the seeds; raises ValueError for those that there are not."""
        if labels is None:
            return self.labels_of(seeds)
        classes = self.config.classes
        check_labels("sample", labels, len(seeds), classes)
        wrong = labels[(labels < NO_LABEL) | (labels >= classes)]
        if len(wrong):
            raise fail("sample", "labels", f"in 0..{classes - 1}", int(wrong[0]))
        return labels

    def labels_of(self, seeds: Tensor) -> Tensor | None:
        """Each seed's class where none is asked for, its remainder; None: there are no classes."""
        return seeds % self.config.classes if self.config.classes else None

    @torch.no_grad()
    def path(self, seeds: Tensor) -> Tensor:
        """How samples become: (stations, N, C, H, W) uint8.

        What a step starts from and the image it predicts, for each step (of many for a few), then
        the sample; all decoded. (A VAE has none.)
        """
        seeds = seeds.to(self.device)
        labels = self.labels_of(seeds)
        with autocast(self.config, self.device):
            if self._many_steps is not None:
                latents, path = self._many_steps.path(seeds, labels)
                shown = min(DDPM_PATH, len(path))
                path = [path[len(path) * i // shown] for i in range(shown)]
            else:
                latents, path = diffusion.sample(
                    self.generator,
                    self._schedule,
                    self._shape,
                    seeds,
                    z_dim=self.config.generator.z_dim,
                    labels=labels,
                    guidance=self.guidance,
                    memory_format=self._layout,
                    return_path=True,
                )
            stations = [station for pair in path for station in pair] + [latents]
            return torch.stack([to_uint8(self.codec.decode(station)) for station in stations])


def _levels(images: Tensor, seeds: Tensor) -> Tensor:
    """As uint8; ValueError names a seed whose image is none."""
    good = images.isfinite().flatten(1).all(1).cpu()
    if not good.all():
        raise fail("sample", "images", "finite", f"inf or NaN of seed {int(seeds[~good][0])}")
    return to_uint8(images)
