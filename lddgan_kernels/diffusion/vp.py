"""The variance-preserving diffusion in continuous time, 0 to 1: what many small steps go through.

It is the diffusion that `Schedule` cuts into a few large ones (Song et al. 2021, "Score-based
generative modeling through SDEs", appendix B):

    x_t = alpha(t) x_0 + sigma(t) n,  sigma(t)^2 = 1 - alpha(t)^2,
    log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.

All is computed in float64 on the host: a sampler multiplies tensors by these numbers and waits for
no device.
"""

import math

import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.diffusion.schedule import BETA_MAX, BETA_MIN, MAX_BETA

MOST_STEPS = 1000


class VPDiffusion:
    """alpha and sigma of a diffusion that networks know as `num_steps` steps, the k-th at k/N.

    Args:
        num_steps: N, 1..1000, of training; samplers may take fewer, and any time between them.
        beta_min, beta_max: the ends of beta(t).
    """

    def __init__(
        self, num_steps: int = MOST_STEPS, beta_min: float = BETA_MIN, beta_max: float = BETA_MAX
    ) -> None:
        if not 1 <= num_steps <= MOST_STEPS:
            raise fail("VPDiffusion", "num_steps", f"in 1..{MOST_STEPS}", num_steps)
        if not 0 <= beta_min <= beta_max <= MAX_BETA or beta_max == 0:
            raise fail(
                "VPDiffusion",
                "beta_min and beta_max",
                f"0 <= beta_min <= beta_max <= {MAX_BETA}",
                f"{beta_min} and {beta_max}",
            )
        self.num_steps = num_steps
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha(self, t: float) -> float:
        """What of x_0 is left in x_t."""
        return math.exp(-0.5 * self._integral(t))

    def sigma(self, t: float) -> float:
        """The deviation of the noise in x_t."""
        return math.sqrt(-math.expm1(-self._integral(t)))

    def noise_to_signal(self, t: float) -> float:
        """sigma / alpha: the sigma of Karras et al. 2022, whose x is x_t / alpha."""
        return math.sqrt(math.expm1(self._integral(t)))

    def time(self, noise_to_signal: float) -> float:
        """The t of a `noise_to_signal`."""
        integral = math.log1p(noise_to_signal**2)
        root = math.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)

    def step(self, t: float) -> float:
        """What a network calls t: 0 .. num_steps - 1, and numbers between them."""
        return t * self.num_steps - 1

    def tables(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of the steps 0 .. num_steps - 1, float32."""
        times = [(k + 1) / self.num_steps for k in range(self.num_steps)]
        alphas = torch.tensor([self.alpha(t) for t in times], device=device)
        return alphas, torch.tensor([self.sigma(t) for t in times], device=device)

    def _integral(self, t: float) -> float:
        """That of beta from 0 to t: -2 log alpha."""
        return 0.5 * t * t * (self.beta_max - self.beta_min) + t * self.beta_min
