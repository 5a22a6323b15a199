"""Seeds to images with a network that predicts noise (DDPM): many small steps, by four samplers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lddgan_kernels._checks import check_tensor, fail
from lddgan_kernels.diffusion import ancestral, ode
from lddgan_kernels.diffusion.guidance import guide, twice
from lddgan_kernels.diffusion.recording import recorded
from lddgan_kernels.diffusion.vp import VPDiffusion
from lddgan_kernels.ops import seeded_normal
from lddgan_kernels.ops._philox import STREAM_POSTERIOR, STREAM_X_T
from lddgan_kernels.ops._steps import check_seeds

SamplerName = Literal["ddpm", "ddim", "heun", "dpm++"]
SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim", "heun", "dpm++")
Path = list[tuple[Tensor, Tensor]]


class ManyStepSampler:
    """sampler(seeds): the images of seeds, by a network that predicts the noise in x_t.

    All noise is a function of the sample's seed, so a seed gives the same image, within float32
    rounding, at any batch size and on any number of processes. On a CPU the network's calls are
    recorded (see `recorded`). x stays float32 between the calls, whatever the network computes in.

    Args:
        network: called as network(x, t, z) with x (N, *shape), t (N,) float32, 0 .. N - 1 of the
            process's steps and between them, and z (N, 0); in `eval()`. Returns the noise.
        process: the diffusion that it was trained with.
        shape: (C, H, W) of x.
        sampler: "ddpm" (Ho et al. 2020), "ddim" (Song et al. 2021), "heun" (Karras et al. 2022) or
            "dpm++" (DPM-Solver++ 2M, Lu et al. 2022); the last three add no noise on the way.
        steps: of the sampler; see `calls`. "ddpm" and "ddim" know the network's own steps alone.
        bound: predictions of x_0 are clamped to [-bound, bound], the range of the data; None: not.
        decoder: a module whose `decode(x)` turns x into images; None: x is the image.
        guidance: strength w of classifier-free guidance where labels are given: the noise becomes
            (1 + w) times that of the label minus w times that of no label.
        memory_format: of x as the network gets it.
        max_batch: larger batches are split.
    """

    def __init__(
        self,
        network: nn.Module,
        process: VPDiffusion,
        shape: Sequence[int],
        *,
        sampler: SamplerName = "ddim",
        steps: int = 50,
        bound: float | None = 1.0,
        decoder: nn.Module | None = None,
        guidance: float = 0.0,
        memory_format: torch.memory_format = torch.contiguous_format,
        max_batch: int = 128,
    ) -> None:
        check_sampler("ManyStepSampler", sampler, steps, process.num_steps)
        if max_batch < 1:
            raise fail("ManyStepSampler", "max_batch", "positive", max_batch)
        self._network = network
        self._recorded = recorded(network)
        self._decoder = None if decoder is None else recorded(decoder, "decode")
        self._process = process
        self._shape = tuple(shape)
        self._sampler = sampler
        self._steps = steps
        self._bound = bound
        self._guidance = guidance
        self._memory_format = memory_format
        self._max_batch = max_batch

    def __call__(self, seeds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W), on the network's device, of seeds (N,) int64 from any device.

        Labels (N,) int64 are the classes to draw, which the network takes fourth.

        Raises:
            ValueError: the seeds do not fit.
        """
        given = (seeds,) if labels is None else (seeds, labels)
        with torch.inference_mode(False), torch.no_grad():  # the former allows gradients again
            split = zip(*(x.split(self._max_batch) for x in given), strict=True)
            parts = [self._images(*part) for part in split]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.no_grad()
    def path(self, seeds: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Path]:
        """(x at the end, (x_t, predicted x_0) of each call), none of it decoded."""
        path: Path = []
        return self._draw(seeds, labels, path), path

    def _images(self, seeds: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self._draw(seeds, labels)
        return x if self._decoder is None else self._decoder(x)

    def _draw(self, seeds: Tensor, labels: Tensor | None, path: Path | None = None) -> Tensor:
        check_tensor("ManyStepSampler", "seeds", seeds)
        check_seeds("ManyStepSampler", seeds, seeds.numel(), seeds.device)
        device = next(self._network.parameters()).device
        seeds, process = seeds.to(device), self._process
        labels = None if labels is None else labels.to(device)

        def noise(stream: int, step: int = 0) -> Tensor:
            shape, layout = (len(seeds), *self._shape), self._memory_format
            return seeded_normal(shape, seeds, stream, step=step, memory_format=layout)

        def predict(x: Tensor, t: float) -> Tensor:
            found = self._noise(x, process.step(t), labels).to(x)
            x0 = (x - process.sigma(t) * found) / process.alpha(t)
            if self._bound is not None:
                x0 = x0.clamp(-self._bound, self._bound)
            if path is not None:
                path.append((x, x0))
            return x0

        x, times = noise(STREAM_X_T), self._times()
        if self._sampler == "ddpm":
            return ancestral.ddpm(
                predict, process, x, times, lambda k: noise(STREAM_POSTERIOR, step=k)
            )
        if self._sampler == "ddim":
            return ancestral.ddim(predict, process, x, times)
        if self._sampler == "heun":
            return ode.heun(predict, process, x, times)
        return ode.dpm_solver(predict, process, x, times)

    def _noise(self, x: Tensor, step: float, labels: Tensor | None) -> Tensor:
        """The network's, guided where that is wanted: both predictions are then one call."""
        guided = labels is not None and self._guidance != 0
        if guided and labels is not None:
            x, labels = torch.cat([x, x]), twice(labels)
        steps, z = torch.full((len(x),), step, device=x.device), x.new_empty(len(x), 0)
        found: Tensor = self._recorded(x, steps, z, *(() if labels is None else (labels,)))
        if not guided:
            return found
        labelled, unlabelled = found.chunk(2)
        return guide(labelled, unlabelled, self._guidance)

    def _times(self) -> list[float]:
        if self._sampler == "heun":
            return ode.heun_times(self._process, self._steps)
        if self._sampler == "dpm++":
            return ode.dpm_solver_times(self._process, self._steps)
        total = self._process.num_steps
        return [round(total * k / self._steps) / total for k in range(self._steps, -1, -1)]


class PriorSampler:
    """sampler(seeds): the images that a VAE's decoder makes of seeded standard normal latents.

    Args:
        autoencoder: has `decode`; in `eval()`.
        shape: (C, H, W) of its latents.
        memory_format: of the latents.
        max_batch: larger batches are split.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        shape: Sequence[int],
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        max_batch: int = 128,
    ) -> None:
        self._autoencoder = autoencoder
        self._decode = recorded(autoencoder, "decode")
        self._shape = tuple(shape)
        self._memory_format = memory_format
        self._max_batch = max_batch

    def __call__(self, seeds: Tensor) -> Tensor:
        """Images (N, C, H, W), on the autoencoder's device, of seeds (N,) int64 from any device."""
        check_tensor("PriorSampler", "seeds", seeds)
        check_seeds("PriorSampler", seeds, seeds.numel(), seeds.device)
        seeds = seeds.to(next(self._autoencoder.parameters()).device)
        with torch.inference_mode(False), torch.no_grad():
            parts = [self._decode(self._latents(part)) for part in seeds.split(self._max_batch)]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _latents(self, seeds: Tensor) -> Tensor:
        shape, layout = (len(seeds), *self._shape), self._memory_format
        return seeded_normal(shape, seeds, STREAM_X_T, memory_format=layout)


def calls(sampler: SamplerName, steps: int) -> int:
    """How often a sampler calls the network for an image (NFE)."""
    return 2 * steps - 1 if sampler == "heun" else steps


def check_sampler(who: str, sampler: Any, steps: int, most: int) -> None:
    """Raises ValueError where there is no such sampler, or not of so many steps."""
    if sampler not in SAMPLERS:
        raise fail(who, "sampler", f"one of {', '.join(SAMPLERS)}", sampler)
    if not 1 <= steps <= most:
        raise fail(who, "steps", f"in 1..{most}", steps)
