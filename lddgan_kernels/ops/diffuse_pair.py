"""A neighbouring pair of diffused samples, (x_t, x_{t+1}) drawn from q given x_0, in one pass:

    x_t     = a_s_cum[t] x_0 + sigmas_cum[t] n_t
    x_{t+1} = a_s[t + 1] x_t + sigmas[t + 1] n_{t+1}

(Xiao et al. 2022, "Tackling the generative learning trilemma with denoising diffusion GANs",
section 3; the pair that the discriminator sees.) The noise is `seeded_normal` of the two streams
STREAM_DIFFUSE_T and STREAM_DIFFUSE_NEXT, or given. float32, bfloat16, float16 (reference: float64);
computed in float32, so x_{t+1} comes of the unrounded x_t. No gradient: x_0 is data.
"""

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import direct_calls, select
from lddgan_kernels._checks import dense, fail, like_layout, memory_format
from lddgan_kernels.ops._philox import STREAM_DIFFUSE_NEXT, STREAM_DIFFUSE_T, normal_reference
from lddgan_kernels.ops._steps import ScheduleTables, check_steps, check_t_values, take

KERNELS = ("cuda", "triton", "cpu")


def diffuse_pair(
    x0: Tensor,
    t: Tensor,
    schedule: ScheduleTables,
    seeds: Tensor | None = None,
    *,
    step: int = 0,
    noise: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(x_t, x_{t+1}) drawn from q(x_t, x_{t+1} | x_0).

    Args:
        x0: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last; needs no gradient.
        t: (N,) int64 on x0's device, each in 0..T-1. Elsewhere: an error on the CPU, samples of NaN
            on a GPU (looking at the values would stall it).
        schedule: tables on x0's device, see `diffusion.Schedule`.
        seeds: (N,) int64, one a sample; None draws them from the device's default generator.
        step: 0..2^32-1, a third counter word, such as the training iteration.
        noise: (n_t, n_{t+1}), each like x0, instead of seeds.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        Two tensors like x0, in x0's layout.

    Raises:
        ValueError: an argument does not fit. RuntimeError: a named backend cannot run, or x0
            requires a gradient.
    """
    direct = direct_calls(backend)
    if direct is not None and noise is None:
        tables = schedule.a_s, schedule.sigmas, schedule.a_s_cum, schedule.sigmas_cum
        pair = direct.diffuse_pair(
            x0, t, *tables, seeds, STREAM_DIFFUSE_T, STREAM_DIFFUSE_NEXT, step
        )
        if pair is not None:
            return pair
    if noise is not None and not (isinstance(noise, tuple | list) and len(noise) == 2):
        raise fail("diffuse_pair", "noise", "two tensors (n_t, n_next)", type(noise).__name__)
    seeds = check_steps("diffuse_pair", x0, t, schedule, seeds, noise, step)
    if x0.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("diffuse_pair: x0 must need no gradient, the op has none; detach it")
    chosen = select("diffuse_pair", x0, backend, KERNELS)
    if chosen != "cpu":
        check_t_values("diffuse_pair", t, schedule)
    if chosen == "reference":
        return diffuse_pair_reference(x0, t, schedule, seeds, step=step, noise=noise)
    return _forward(x0, t, schedule, seeds, step, noise, chosen)


def diffuse_pair_reference(
    x0: Tensor,
    t: Tensor,
    schedule: ScheduleTables,
    seeds: Tensor | None,
    *,
    step: int = 0,
    noise: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch; the oracle in float64."""
    dtype = torch.promote_types(x0.dtype, torch.float32)
    steps = schedule.num_steps
    if noise is None:
        assert seeds is not None
        n_t = normal_reference(x0.shape, seeds, STREAM_DIFFUSE_T, step, dtype)
        n_next = normal_reference(x0.shape, seeds, STREAM_DIFFUSE_NEXT, step, dtype)
    else:
        n_t, n_next = noise
    x_t = take(schedule.a_s_cum, t, steps, dtype) * x0 + (
        take(schedule.sigmas_cum, t, steps, dtype) * n_t
    )
    x_next = take(schedule.a_s[1:], t, steps, dtype) * x_t + (
        take(schedule.sigmas[1:], t, steps, dtype) * n_next
    )
    layout = memory_format(x0)
    return (
        x_t.to(x0.dtype).contiguous(memory_format=layout),
        x_next.to(x0.dtype).contiguous(memory_format=layout),
    )


def _forward(
    x0: Tensor,
    t: Tensor,
    schedule: ScheduleTables,
    seeds: Tensor | None,
    step: int,
    noise: tuple[Tensor, Tensor] | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    x0, t = dense(x0), t.contiguous()
    n_t = n_next = None
    if seeds is not None:
        seeds = seeds.contiguous()
    else:
        assert noise is not None
        layout = memory_format(x0)
        n_t, n_next = like_layout(noise[0], layout), like_layout(noise[1], layout)
    if backend == "triton":
        from lddgan_kernels.triton import diffuse_pair as kernel

        forward = kernel.forward
    else:
        forward = torch.ops.lddgan.diffuse_pair.default
    s = schedule
    return forward(
        *(x0, t, s.a_s, s.sigmas, s.a_s_cum, s.sigmas_cum, seeds, n_t, n_next),
        *(STREAM_DIFFUSE_T, STREAM_DIFFUSE_NEXT, step),
    )


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::diffuse_pair")
    def _(x0: Tensor, *_args: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x0), torch.empty_like(x0)
