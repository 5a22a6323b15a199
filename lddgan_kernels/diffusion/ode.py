"""Second-order solvers of the probability-flow ODE, and the times that suit each.

`predict(x, t)` is the network's x_0; times fall, and the last may be 0, the data.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from lddgan_kernels.diffusion.ancestral import Predict
from lddgan_kernels.diffusion.vp import VPDiffusion

RHO = 7.0  # Karras et al. 2022, equation 5


def heun(predict: Predict, process: VPDiffusion, x: Tensor, times: Sequence[float]) -> Tensor:
    """Heun's method on dy/ds = (y - x_0) / s, y = x / alpha and s = sigma / alpha.

    Karras et al. 2022, "Elucidating the design space of diffusion-based generative models",
    Algorithm 1 (without added noise). Two calls a step; one, as Euler, where a step ends at 0.

    Args:
        x: at times[0], (N, C, H, W).

    Returns:
        x at the last time.
    """
    y = x / process.alpha(times[0])
    for t, u in pairwise(times):
        s, s_next = process.noise_to_signal(t), process.noise_to_signal(u)
        slope = (y - predict(y * process.alpha(t), t)) / s
        ahead = y + (s_next - s) * slope
        if u > 0:
            slope_next = (ahead - predict(ahead * process.alpha(u), u)) / s_next
            ahead = y + 0.5 * (s_next - s) * (slope + slope_next)
        y = ahead
    return y * process.alpha(times[-1])


def dpm_solver(predict: Predict, process: VPDiffusion, x: Tensor, times: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M): x_0 extrapolated from the last two predictions; one call a step.

    Lu et al. 2022, "DPM-Solver++", Algorithm 2, with lambda = log(alpha / sigma) and h its
    increase. The first step, and one that ends at 0 (h infinite), are of first order.

    Args:
        x: at times[0], (N, C, H, W).

    Returns:
        x at the last time.
    """
    before: tuple[Tensor, float] | None = None
    for t, u in pairwise(times):
        x0 = predict(x, t)
        s, s_next = process.noise_to_signal(t), process.noise_to_signal(u)
        h = math.log(s / s_next) if u > 0 else math.inf
        estimate = x0
        if before is not None and u > 0:
            x0_before, h_before = before
            estimate = x0 + (h / (2 * h_before)) * (x0 - x0_before)
        ratio = process.sigma(u) / process.sigma(t)
        x = ratio * x - (process.alpha(u) * math.expm1(-h)) * estimate
        before = x0, h
    return x


def heun_times(process: VPDiffusion, steps: int) -> list[float]:
    """1 .. 1/N and 0 in `steps` steps, as Karras et al. 2022, equation 5, with rho = 7."""
    first, last = (s ** (1 / RHO) for s in _ends(process))
    return [process.time(root**RHO) for root in _even(first, last, steps)] + [0.0]


def dpm_solver_times(process: VPDiffusion, steps: int) -> list[float]:
    """1 .. 1/N and 0 in `steps` steps, lambda in equal parts down to 1/N (Lu et al. 2022)."""
    first, last = (math.log(s) for s in _ends(process))
    return [process.time(math.exp(root)) for root in _even(first, last, steps)] + [0.0]


def _ends(process: VPDiffusion) -> tuple[float, float]:
    """sigma / alpha at the last of the network's steps, and at its first."""
    return process.noise_to_signal(1.0), process.noise_to_signal(1.0 / process.num_steps)


def _even(first: float, last: float, count: int) -> list[float]:
    """`count` numbers from `first` to `last`; one alone is `first`."""
    return [first + (last - first) * k / max(count - 1, 1) for k in range(count)]
