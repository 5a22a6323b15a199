"""Residual sum: out = (x + h) / sqrt(2), or (x + h + h2 + bias) * factor.

The skip rescale of NCSN++ (Song et al. 2021, "Score-based generative modeling through SDEs",
appendix H), with what a GPU otherwise adds in passes of its own: the bias of the convolution before
it, and the second half of a shortcut of two sources. Dtypes float32, bfloat16, float16 (reference:
float64). Gradient: any order.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import (
    check_float,
    check_like,
    check_shape,
    check_tensor,
    dense,
    fail,
    like_layout,
    memory_format,
    promoted,
)
from lddgan_kernels.ops._norm_plan import device_size, moments_plan

KERNELS = ("cuda", "triton", "cpu")

SQRT_HALF = math.sqrt(0.5)


def residual_scale(
    x: Tensor,
    h: Tensor,
    *,
    h2: Tensor | None = None,
    bias: Tensor | None = None,
    factor: float = SQRT_HALF,
    backend: str | None = None,
) -> Tensor:
    """(x + h + h2 + bias) * factor, in one pass.

    Args:
        x: any shape, float32/bfloat16/float16, contiguous or channels_last; (N, C, H, W) with a
            bias.
        h: like x.
        h2: like x.
        bias: (C,), of x's dtype or float32.
        factor: of the sum; 1/sqrt(2) keeps the variance of two equal ones.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        A tensor like x, in x's layout. The sum is taken in float32.

    Raises:
        ValueError: shapes, dtypes or devices differ. RuntimeError: a named backend cannot run.
    """
    x, h, h2 = promoted(x, h, h2)
    _check_addends("residual_scale", x, h, h2, bias)
    chosen = select("residual_scale", x, backend, KERNELS)
    return _sum(x, h, h2, bias, factor, chosen)


def residual_scale_moments(
    x: Tensor,
    h: Tensor,
    num_groups: int,
    *,
    h2: Tensor | None = None,
    bias: Tensor | None = None,
    factor: float = SQRT_HALF,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`residual_scale` and the moments of its result, which the next norm then need not take.

    Args:
        x: (N, C, H, W), float32/bfloat16/float16, contiguous or channels_last.
        h, h2, bias, factor, backend: as for `residual_scale`.
        num_groups: of the norm that follows; divides C.

    Returns:
        The sum, a tensor like x, and for `ada_group_norm((sum, moments), ..., num_groups)` its
        partial moments: float32 (N, num_groups, parts, 2), of a group's channels and a part's
        pixels (whole 8s, (0, 0) where none are left) the mean and the sum of squared deviations
        from it, of the sum as it was rounded. They have no gradient. None on "cpu" and "reference",
        where the norm finds its input in the cache.

    Raises:
        ValueError: shapes, dtypes or devices differ, or num_groups does not divide C.
        RuntimeError: a named backend cannot run.
    """
    op = "residual_scale_moments"
    x, h, h2 = promoted(x, h, h2)
    _check_addends(op, x, h, h2, bias)
    if x.ndim != 4:
        raise fail(op, "x", "of shape (N, C, H, W)", tuple(x.shape))
    if not isinstance(num_groups, int) or num_groups < 1 or x.shape[1] % num_groups:
        raise fail(op, "num_groups", f"a divisor of the {x.shape[1]} channels", num_groups)
    chosen = select(op, x, backend, KERNELS)
    if chosen in ("reference", "cpu"):
        return _sum(x, h, h2, bias, factor, chosen), None
    if _needs_gradient(x, h, h2, bias):
        return _ResidualScaleMoments.apply(x, h, h2, bias, factor, chosen, num_groups)
    return _forward_moments(x, h, h2, bias, factor, chosen, num_groups)


def residual_scale_reference(
    x: Tensor,
    h: Tensor,
    h2: Tensor | None = None,
    bias: Tensor | None = None,
    factor: float = SQRT_HALF,
) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    if bias is not None:
        h = h + bias[:, None, None].to(x.dtype)
    out = x + h
    if h2 is not None:
        out = out + h2
    return out if factor == 1.0 else out * factor


def _sum(
    x: Tensor, h: Tensor, h2: Tensor | None, bias: Tensor | None, factor: float, backend: str
) -> Tensor:
    if backend == "reference":
        return residual_scale_reference(x, h, h2, bias, factor)
    if _needs_gradient(x, h, h2, bias):
        return _ResidualScale.apply(x, h, h2, bias, factor, backend)
    return _forward(x, h, h2, bias, factor, backend)


def _needs_gradient(x: Tensor, h: Tensor, h2: Tensor | None, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad
        or h.requires_grad
        or (h2 is not None and h2.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


class _ResidualScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        h2: Tensor | None,
        bias: Tensor | None,
        factor: float,
        backend: str,
    ) -> Tensor:
        ctx.factor, ctx.bias_dtype = factor, None if bias is None else bias.dtype
        return _forward(x, h, h2, bias, factor, backend)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad_out), None, None


class _ResidualScaleMoments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        h2: Tensor | None,
        bias: Tensor | None,
        factor: float,
        backend: str,
        num_groups: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.factor, ctx.bias_dtype = factor, None if bias is None else bias.dtype
        out, moments = _forward_moments(x, h, h2, bias, factor, backend, num_groups)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)  # no zeros for the moments
        return out, moments

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad_out), None, None, None


def _gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, h, h2 and bias."""
    grad = grad_out if ctx.factor == 1.0 else grad_out * ctx.factor
    _, _, need_h2, need_bias, *_ = ctx.needs_input_grad
    grad_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype) if need_bias else None
    return grad, grad, grad if need_h2 else None, grad_bias


def _forward(
    x: Tensor, h: Tensor, h2: Tensor | None, bias: Tensor | None, factor: float, backend: str
) -> Tensor:
    x, h, h2 = _one_layout(x, h, h2)
    if backend == "triton":
        from lddgan_kernels.triton import residual_scale as kernel

        return kernel.forward(x, h, h2, bias, factor)
    return torch.ops.lddgan.residual_scale.default(x, h, h2, bias, factor)


def _forward_moments(
    x: Tensor,
    h: Tensor,
    h2: Tensor | None,
    bias: Tensor | None,
    factor: float,
    backend: str,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    x, h, h2 = _one_layout(x, h, h2)
    n, c, height, width = x.shape
    problem = (n, c // num_groups, num_groups, height * width)
    plan = moments_plan(problem, x.element_size(), not x.is_contiguous(), device_size(x.device))
    if backend == "triton":
        from lddgan_kernels.triton import residual_scale_moments as kernel

        return kernel.forward(x, h, h2, bias, factor, num_groups, plan)
    return torch.ops.lddgan.residual_scale_moments.default(
        x, h, h2, bias, factor, num_groups, (plan.groups, plan.parts)
    )


def _one_layout(x: Tensor, h: Tensor, h2: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    x = dense(x)
    layout = memory_format(x)
    return x, like_layout(h, layout), None if h2 is None else like_layout(h2, layout)


def _check_addends(op: str, x: Tensor, h: Tensor, h2: Tensor | None, bias: Tensor | None) -> None:
    check_tensor(op, "x", x)
    check_float(op, "x", x)
    check_tensor(op, "h", h)
    check_shape(op, "h", h, x.shape)
    check_like(op, "h", h, x)
    if h2 is not None:
        check_tensor(op, "h2", h2)
        check_shape(op, "h2", h2, x.shape)
        check_like(op, "h2", h2, x)
    if bias is not None:
        _check_bias(op, bias, x)


def _check_bias(op: str, bias: Tensor, x: Tensor) -> None:
    if x.ndim != 4:
        raise fail(op, "x", "of shape (N, C, H, W) where a bias is given", tuple(x.shape))
    check_tensor(op, "bias", bias)
    check_shape(op, "bias", bias, x.shape[1:2])
    if bias.dtype != torch.float32 or bias.device != x.device:
        check_like(op, "bias", bias, x)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::residual_scale")
    def _(
        x: Tensor,
        h: Tensor,
        h2: Tensor | None = None,
        bias: Tensor | None = None,
        factor: float = SQRT_HALF,
    ) -> Tensor:
        return torch.empty_like(x)

    @torch.library.register_fake("lddgan::residual_scale_moments")
    def _fake_moments(
        x: Tensor,
        h: Tensor,
        h2: Tensor | None,
        bias: Tensor | None,
        factor: float,
        num_groups: int,
        plan: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        shape = (x.shape[0], num_groups, plan[1], 2)
        return torch.empty_like(x), torch.empty(shape, dtype=torch.float32, device=x.device)
