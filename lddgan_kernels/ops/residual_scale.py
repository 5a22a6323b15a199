"""Residual sum of unit variance: out = (x + h) / sqrt(2).

The skip rescale of NCSN++ (Song et al. 2021, "Score-based generative modeling through SDEs",
appendix H). Shapes: any two equal shapes; dtypes float32, bfloat16, float16 (reference: float64).
Gradient: any order (the gradient of each input is the incoming one over sqrt(2)).
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
    like_layout,
    memory_format,
)

KERNELS = ("cuda", "triton", "cpu")


def residual_scale(x: Tensor, h: Tensor, *, backend: str | None = None) -> Tensor:
    """(x + h) / sqrt(2), in one pass.

    Args:
        x: any shape, float32/bfloat16/float16, contiguous or channels_last.
        h: like x.
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
    chosen = select("residual_scale", x, backend, KERNELS)
    if chosen == "reference":
        return residual_scale_reference(x, h)
    if torch.is_grad_enabled() and (x.requires_grad or h.requires_grad):
        return _ResidualScale.apply(x, h, chosen)
    return _forward(x, h, chosen)


def residual_scale_reference(x: Tensor, h: Tensor) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    return (x + h) / math.sqrt(2.0)


class _ResidualScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, backend: str) -> Tensor:
        return _forward(x, h, backend)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_out * (1.0 / math.sqrt(2.0))
        return grad, grad, None


def _forward(x: Tensor, h: Tensor, backend: str) -> Tensor:
    x = dense(x)
    h = like_layout(h, memory_format(x))
    if backend == "triton":
        from lddgan_kernels.triton import residual_scale as kernel

        return kernel.forward(x, h)
    return torch.ops.lddgan.residual_scale.default(x, h)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::residual_scale")
    def _(x: Tensor, h: Tensor) -> Tensor:
        return torch.empty_like(x)
