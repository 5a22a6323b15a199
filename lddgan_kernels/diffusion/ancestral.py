"""Many-step samplers that follow a model's own steps: DDPM, with noise, and DDIM, without.

Both go down a list of times, t_0 > t_1 > ... >= 0, which may leave out steps that the network was
trained with. `predict(x, t)` is the network's x_0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from lddgan_kernels.diffusion.vp import VPDiffusion

Predict = Callable[[Tensor, float], Tensor]


def ddpm(
    predict: Predict,
    process: VPDiffusion,
    x: Tensor,
    times: Sequence[float],
    noise: Callable[[int], Tensor],
) -> Tensor:
    """Draws each x_s from q(x_s | x_t, x_0), as Ho et al. 2020, equations 6 and 7.

    Where times are left out the q is that of the larger step, which is DDIM with eta = 1.

    Args:
        x: at times[0], (N, C, H, W).
        noise: of step k, like x.

    Returns:
        x at the last time.
    """
    for k, (t, s) in enumerate(pairwise(times)):
        x0 = predict(x, t)
        a_s, sigma_s = process.alpha(s), process.sigma(s)
        a_ts, sigma_t = process.alpha(t) / a_s, process.sigma(t)
        variance_ts = sigma_t**2 - (a_ts * sigma_s) ** 2  # of q(x_t | x_s)
        mean = (a_s * variance_ts / sigma_t**2) * x0 + (a_ts * sigma_s**2 / sigma_t**2) * x
        deviation = math.sqrt(variance_ts) * sigma_s / sigma_t
        x = mean + deviation * noise(k) if s > 0 else mean
    return x


def ddim(predict: Predict, process: VPDiffusion, x: Tensor, times: Sequence[float]) -> Tensor:
    """x_s = alpha_s x_0 + sigma_s n, n being the noise in x_t for that x_0.

    Song et al. 2021, "Denoising diffusion implicit models", equation 12 with eta = 0: Euler steps
    of the probability-flow ODE in (x / alpha, sigma / alpha).

    Args:
        x: at times[0], (N, C, H, W).

    Returns:
        x at the last time.
    """
    for t, s in pairwise(times):
        x0 = predict(x, t)
        ratio = process.sigma(s) / process.sigma(t)
        x = (process.alpha(s) - ratio * process.alpha(t)) * x0 + ratio * x
    return x
