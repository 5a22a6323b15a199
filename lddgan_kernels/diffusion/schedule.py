"""The variance-preserving schedule of a few large steps, as tables.

beta(t) grows linearly from beta_min to beta_max over continuous time (Song et al. 2021,
"Score-based generative modeling through SDEs", equation 29); T steps cut it at
t_i = 1e-3 + (1 - 1e-3) i / T, i = 0..T.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BETA_MIN = 0.1
BETA_MAX = 20.0
MAX_BETA = 50.0  # past which one step leaves nothing of the image that float32 could hold
MAX_STEPS = 8

FloatArray = npt.NDArray[np.float32]


class Schedule:
    """Coefficients of a diffusion of `num_steps` steps T; float32 tensors on one device.

    Indexed by t = 0..T (T + 1 entries), x_t being the data after t steps:
        a_s, sigmas: x_t = a_s[t] x_{t-1} + sigmas[t] n.
        a_s_cum, sigmas_cum: x_t = a_s_cum[t] x_0 + sigmas_cum[t] n; sigmas_cum[0] is 0.
    Indexed by t = 0..T-1 (T entries), q(x_t | x_{t+1}, x_0):
        posterior_mean_coef1, posterior_mean_coef2: its mean is coef1[t] x_0 + coef2[t] x_{t+1}.
        posterior_variance, posterior_log_variance_clipped: its variance, and the logarithm with
            the variance clamped to 1e-20 (it is 0 at t = 0).

    Built in float32 in the order of operations of the published tables, whose values it meets bit
    for bit, on any machine.

    Args:
        num_steps: T, 1..8.
        device: where the tables go.
        beta_min, beta_max: the ends of beta(t).
    """

    def __init__(
        self,
        num_steps: int,
        device: torch.device | str = "cpu",
        *,
        beta_min: float = BETA_MIN,
        beta_max: float = BETA_MAX,
    ) -> None:
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"Schedule: num_steps must be in 1..{MAX_STEPS}, got {num_steps}")
        if not 0 <= beta_min <= beta_max <= MAX_BETA or beta_max == 0:
            raise ValueError(
                f"Schedule: beta_min and beta_max must be 0 <= beta_min <= beta_max <= {MAX_BETA}, "
                f"got {beta_min} and {beta_max}"
            )
        self.num_steps = num_steps
        self.beta_min, self.beta_max = beta_min, beta_max
        # The published tables are known for the published ends alone.
        known = num_steps if (beta_min, beta_max) == (BETA_MIN, BETA_MAX) else 0

        def table(values: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(values).to(device)

        betas = _betas(num_steps, beta_min, beta_max)
        one = np.float32(1)
        a_s = _published(np.sqrt(one - betas), known, "a_s")
        self.a_s = table(a_s)
        self.sigmas = table(_published(np.sqrt(betas), known, "sigmas"))
        a_s_cum = np.cumprod(a_s)
        self.a_s_cum = table(a_s_cum)
        self.sigmas_cum = table(np.sqrt(one - a_s_cum**2))

        betas = betas[1:]
        cum = np.cumprod(one - betas)
        cum_before = np.concatenate((np.ones(1, np.float32), cum[:-1]))
        variance = betas * (one - cum_before) / (one - cum)
        self.posterior_variance = table(variance)
        self.posterior_mean_coef1 = table(betas * np.sqrt(cum_before) / (one - cum))
        self.posterior_mean_coef2 = table((one - cum_before) * a_s[1:] / (one - cum))
        self.posterior_log_variance_clipped = table(np.log(np.maximum(variance, np.float32(1e-20))))

    def tables(self) -> dict[str, Tensor]:
        """The tables by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.a_s.device

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule on another device (itself where it is there already)."""
        if torch.device(device) == self.device:
            return self
        return Schedule(self.num_steps, device, beta_min=self.beta_min, beta_max=self.beta_max)


def _betas(num_steps: int, beta_min: float, beta_max: float) -> FloatArray:
    """beta_0..beta_T: the variance that each step adds; beta_0 = 1e-8 stands for the data."""
    # float64 up to the last line, as published.
    time = np.arange(num_steps + 1) / num_steps * (1.0 - 1e-3) + 1e-3
    log_mean = -0.25 * time**2 * (beta_max - beta_min) - 0.5 * time * beta_min
    alpha_bars = 1.0 - (1.0 - np.exp(2.0 * log_mean))
    betas = 1.0 - alpha_bars[1:] / alpha_bars[:-1]
    return np.concatenate((np.array([1e-8]), betas)).astype(np.float32)


# The published tables were made with a square root that is off by one unit in the last place here
# and there (depending on the processor); these entries differ from the rounded exact one.
_UNITS_OFF = {
    (2, "sigmas"): (1, 0, 1),
    (4, "sigmas"): (1, 0, 0, 1, -1),
    (4, "a_s"): (0, 0, 0, 0, 1),
}


def _published(roots: FloatArray, num_steps: int, name: str) -> FloatArray:
    """Square roots as the published table `name` has them, where it is known."""
    units = np.array(_UNITS_OFF.get((num_steps, name), (0,)), np.int32)
    return (roots.view(np.int32) + units).view(np.float32)
