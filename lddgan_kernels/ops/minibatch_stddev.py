"""Minibatch standard deviation: one channel that tells a discriminator how varied its batch is.

Karras et al. 2018, "Progressive growing of GANs", section 3. The batch is split into N / G sets of
G = the largest divisor of N up to `group` members, sample n belonging to set n mod (N / G). A set's
statistic is the mean over C, H, W of sqrt(var + 1e-8), var being the biased variance over its
members; each member gets it as a constant map. Taken in float32. Dtypes float32, bfloat16, float16
(reference: float64). Gradient: second order, as the R1 penalty differentiates a gradient.
"""

from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import check_image, dense, fail, like_layout, memory_format

KERNELS = ("triton", "cpu")

EPS = 1e-8


def minibatch_stddev(x: Tensor, group: int = 4, *, backend: str | None = None) -> Tensor:
    """x with the batch's standard deviation appended as one channel.

    Args:
        x: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last.
        group: at most this many samples share a statistic: the largest divisor of N up to it.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, C + 1, H, W) in x's dtype and layout.

    Raises:
        ValueError: x or group does not fit. RuntimeError: a named backend cannot run.
    """
    check_image("minibatch_stddev", "x", x)
    if not isinstance(group, int) or group < 1:
        raise fail("minibatch_stddev", "group", "a positive int", repr(group))
    chosen = select("minibatch_stddev", x, backend, KERNELS)
    if chosen == "reference":
        return minibatch_stddev_reference(x, group)
    x, members = dense(x), _members(x.shape[0], group)
    if torch.is_grad_enabled() and x.requires_grad:
        return _MinibatchStddev.apply(x, members, chosen)
    return _forward(x, members, chosen)


def minibatch_stddev_reference(x: Tensor, group: int = 4) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    n, c, h, w = x.shape
    if n == 0:
        statistic = x.new_zeros(0)
    else:
        members = _members(n, group)
        # In float32: var rounds to its input's dtype.
        wide = x if x.dtype == torch.float64 else x.float()
        sets = wide.reshape(members, n // members, c * h * w)
        std = (sets.var(0, unbiased=False) + EPS).sqrt()
        statistic = std.mean(1).to(x.dtype).repeat(members)
    channel = statistic[:, None, None, None].expand(n, 1, h, w)
    return like_layout(torch.cat([x, channel], 1), memory_format(x))


def _members(n: int, group: int) -> int:
    """The largest divisor of n up to group."""
    return max(d for d in range(1, min(group, n) + 1) if n % d == 0) if n else 1


class _MinibatchStddev(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, members: int, backend: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = members, backend
        return _forward(x, members, backend)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A gradient of this gradient may be asked for: the reference has them. In float64, for
            # its two terms (d/std and d^3/std^3 of two members) all but cancel.
            out = minibatch_stddev_reference(x.double(), ctx.options[0]).to(x.dtype)
            return *torch.autograd.grad(out, x, grad_out, create_graph=True), None, None
        return _backward(like_layout(grad_out, memory_format(x)), x, *ctx.options), None, None


def _forward(x: Tensor, members: int, backend: str) -> Tensor:
    if backend == "triton":
        from lddgan_kernels.triton import minibatch_stddev as kernel

        return kernel.forward(x, members)
    return torch.ops.lddgan.minibatch_stddev.default(x, members)


def _backward(grad: Tensor, x: Tensor, members: int, backend: str) -> Tensor:
    if backend == "triton":
        from lddgan_kernels.triton import minibatch_stddev as kernel

        return kernel.backward(grad, x, members)
    return torch.ops.lddgan.minibatch_stddev_backward.default(grad, x, members)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::minibatch_stddev")
    def _(x: Tensor, members: int) -> Tensor:
        n, c, h, w = x.shape
        return torch.empty(
            (n, c + 1, h, w), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
        )

    @torch.library.register_fake("lddgan::minibatch_stddev_backward")
    def _(grad: Tensor, x: Tensor, members: int) -> Tensor:
        return torch.empty_like(x)
