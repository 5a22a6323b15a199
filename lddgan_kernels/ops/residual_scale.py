"""Residual sum: out = (x + h) / sqrt(2), or (x + h + h2 + bias) * factor.

The skip rescale of NCSN++ (Song et al. 2021, "Score-based generative modeling through SDEs",
appendix H), with what a GPU otherwise adds in passes of its own: the bias of the convolution before
it, and the second half of a shortcut of two sources. Dtypes float32, bfloat16, float16 (reference:
float64). Gradient: any order.
"""

import math
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
)

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
    check_tensor("residual_scale", "x", x)
    check_float("residual_scale", "x", x)
    check_tensor("residual_scale", "h", h)
    check_shape("residual_scale", "h", h, x.shape)
    check_like("residual_scale", "h", h, x)
    if h2 is not None:
        check_tensor("residual_scale", "h2", h2)
        check_shape("residual_scale", "h2", h2, x.shape)
        check_like("residual_scale", "h2", h2, x)
    if bias is not None:
        _check_bias(bias, x)
    chosen = select("residual_scale", x, backend, KERNELS)
    if chosen == "reference":
        return residual_scale_reference(x, h, h2, bias, factor)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or h.requires_grad
        or (h2 is not None and h2.requires_grad)
        or (bias is not None and bias.requires_grad)
    ):
        return _ResidualScale.apply(x, h, h2, bias, factor, chosen)
    return _forward(x, h, h2, bias, factor, chosen)


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
        grad = grad_out if ctx.factor == 1.0 else grad_out * ctx.factor
        _, _, need_h2, need_bias, *_ = ctx.needs_input_grad
        grad_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype) if need_bias else None
        return grad, grad, grad if need_h2 else None, grad_bias, None, None


def _forward(
    x: Tensor, h: Tensor, h2: Tensor | None, bias: Tensor | None, factor: float, backend: str
) -> Tensor:
    x = dense(x)
    layout = memory_format(x)
    h = like_layout(h, layout)
    if h2 is not None:
        h2 = like_layout(h2, layout)
    if backend == "triton":
        from lddgan_kernels.triton import residual_scale as kernel

        return kernel.forward(x, h, h2, bias, factor)
    return torch.ops.lddgan.residual_scale.default(x, h, h2, bias, factor)


def _check_bias(bias: Tensor, x: Tensor) -> None:
    op = "residual_scale"
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
