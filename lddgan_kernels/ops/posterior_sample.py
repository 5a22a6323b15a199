"""One step of sampling: x_t drawn from q(x_t | x_{t+1}, x_0), noise included, in one pass:

    x_t = coef1[t] x_0 + coef2[t] x_{t+1} + exp(log_variance[t] / 2) n,   n = 0 at t = 0

(Ho et al. 2020, "Denoising diffusion probabilistic models", equations 6 and 7; in training x_0 is
the generator's.) The noise is `seeded_normal` of STREAM_POSTERIOR, or given. float32, bfloat16,
float16 (reference: float64); computed in float32. Gradient: in x0 and x_next, which are linear, so
of any order; none in the noise.
"""

import torch
from torch import Tensor

from lddgan_kernels._backend import select
from lddgan_kernels._checks import (
    check_like,
    check_shape,
    check_tensor,
    memory_format,
)
from lddgan_kernels.ops._philox import STREAM_POSTERIOR, normal_reference
from lddgan_kernels.ops._steps import ScheduleTables, check_steps, check_t_values, take

KERNELS: tuple[str, ...] = ()


def posterior_sample(
    x0: Tensor,
    x_next: Tensor,
    t: Tensor,
    schedule: ScheduleTables,
    seeds: Tensor | None = None,
    *,
    step: int = 0,
    noise: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x_t drawn from q(x_t | x_{t+1} = x_next, x_0 = x0).

    Args:
        x0: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last.
        x_next: like x0.
        t: (N,) int64 on x0's device, each in 0..T-1. Elsewhere: an error on the CPU, samples of NaN
            on a GPU (looking at the values would stall it).
        schedule: tables on x0's device, see `diffusion.Schedule`.
        seeds: (N,) int64, one a sample; None draws them from the device's default generator.
        step: 0..2^32-1, a third counter word; a sampler gives its t.
        noise: like x0, instead of seeds.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        A tensor like x0, in x0's layout.

    Raises:
        ValueError: an argument does not fit. RuntimeError: a named backend cannot run.
    """
    given = None if noise is None else (noise,)
    seeds = check_steps("posterior_sample", x0, t, schedule, seeds, given, step)
    check_tensor("posterior_sample", "x_next", x_next)
    check_shape("posterior_sample", "x_next", x_next, x0.shape)
    check_like("posterior_sample", "x_next", x_next, x0, "x0")
    chosen = select("posterior_sample", x0, backend, KERNELS)
    if chosen != "cpu":
        check_t_values("posterior_sample", t, schedule)
    if chosen == "reference":
        return posterior_sample_reference(x0, x_next, t, schedule, seeds, step=step, noise=noise)
    raise NotImplementedError


def posterior_sample_reference(
    x0: Tensor,
    x_next: Tensor,
    t: Tensor,
    schedule: ScheduleTables,
    seeds: Tensor | None,
    *,
    step: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    dtype = torch.promote_types(x0.dtype, torch.float32)
    steps = schedule.num_steps
    if noise is None:
        assert seeds is not None
        noise = normal_reference(x0.shape, seeds, STREAM_POSTERIOR, step, dtype)
    deviation = take(schedule.posterior_log_variance_clipped, t, steps, dtype).mul(0.5).exp()
    mean = take(schedule.posterior_mean_coef1, t, steps, dtype) * x0 + (
        take(schedule.posterior_mean_coef2, t, steps, dtype) * x_next
    )
    drawn = mean + (t != 0).to(dtype)[:, None, None, None] * deviation * noise.detach()
    return drawn.to(x0.dtype).contiguous(memory_format=memory_format(x0))
