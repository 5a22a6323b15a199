"""One step of sampling: x_t drawn from q(x_t | x_{t+1}, x_0), noise included, in one pass:

    x_t = coef1[t] x_0 + coef2[t] x_{t+1} + exp(log_variance[t] / 2) n,   n = 0 at t = 0

(Ho et al. 2020, "Denoising diffusion probabilistic models", equations 6 and 7; in training x_0 is
the generator's.) The noise is `seeded_normal` of STREAM_POSTERIOR, or given. float32, bfloat16,
float16 (reference: float64); computed in float32. Gradient: in x0 and x_next, which are linear, so
of any order; none in the noise.
"""

from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import direct_calls, select
from lddgan_kernels._checks import (
    check_like,
    check_shape,
    check_tensor,
    dense,
    like_layout,
    memory_format,
    promoted,
)
from lddgan_kernels.ops._philox import STREAM_POSTERIOR, normal_reference
from lddgan_kernels.ops._steps import ScheduleTables, check_steps, check_t_values, take

KERNELS = ("cuda", "triton", "cpu")


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
    direct = direct_calls(backend)
    if direct is not None:
        tables = (
            schedule.posterior_mean_coef1,
            schedule.posterior_mean_coef2,
            schedule.posterior_log_variance_clipped,
        )
        out = direct.posterior_sample(x0, x_next, t, *tables, seeds, noise, STREAM_POSTERIOR, step)
        if out is not None:
            return out
    x0, x_next, noise = promoted(x0, x_next, noise)
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
    x0 = dense(x0)
    layout = memory_format(x0)
    x_next = like_layout(x_next, layout)
    arguments = (
        *(x0, x_next, t.contiguous()),
        schedule.posterior_mean_coef1,
        schedule.posterior_mean_coef2,
        schedule.posterior_log_variance_clipped,
        None if seeds is None else seeds.contiguous(),
        None if noise is None else like_layout(noise, layout),
        *(STREAM_POSTERIOR, step),
    )
    if chosen == "triton":
        return _Triton.apply(*arguments)
    return torch.ops.lddgan.posterior_sample.default(*arguments)  # with its gradient


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


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x0: Tensor, x_next: Tensor, t: Tensor, *rest: Any) -> Tensor:
        from lddgan_kernels.triton import posterior_sample as kernel

        ctx.save_for_backward(t, *rest[:2])
        return kernel.forward(x0, x_next, t, *rest)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        from lddgan_kernels.triton import posterior_sample as kernel

        t, coef1, coef2 = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, which the plain form can be
            grads = tuple(
                (take(c, t, len(c), torch.float32) * grad_out).to(grad_out.dtype)
                for c in (coef1, coef2)
            )
        else:
            grads = kernel.backward(dense(grad_out), t, coef1, coef2)
        return *grads, *(None,) * 8


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::posterior_sample")
    def _(x0: Tensor, *_args: object) -> Tensor:
        return torch.empty_like(x0)

    @torch.library.register_fake("lddgan::posterior_sample_backward")
    def _(grad: Tensor, *_args: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(grad), torch.empty_like(grad)
