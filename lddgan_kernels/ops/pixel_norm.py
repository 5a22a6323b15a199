"""Pixel norm: out = z / sqrt(mean(z^2) + 1e-8), each row to unit mean square.

The first layer of the mapping network (Karras et al. 2018, "Progressive growing of GANs", section
4.2). Taken in float32. Dtypes float32, bfloat16, float16 (reference: float64). Gradient: any
order (past the first through the reference).
"""

from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import check_float, check_tensor, fail

KERNELS = ("triton", "cpu")

EPS = 1e-8


def pixel_norm(z: Tensor, *, backend: str | None = None) -> Tensor:
    """z / sqrt(mean z^2 + 1e-8), the mean over dim 1.

    Args:
        z: (N, D) float32/bfloat16/float16.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, D) of z's dtype.

    Raises:
        ValueError: z does not fit. RuntimeError: a named backend cannot run.
    """
    check_tensor("pixel_norm", "z", z)
    if z.ndim != 2 or z.shape[1] < 1:
        raise fail("pixel_norm", "z", "of shape (N, D >= 1)", tuple(z.shape))
    check_float("pixel_norm", "z", z)
    chosen = select("pixel_norm", z, backend, KERNELS)
    if chosen == "reference":
        return pixel_norm_reference(z)
    z = z.contiguous()
    if torch.is_grad_enabled() and z.requires_grad:
        return _PixelNorm.apply(z, chosen)
    return _forward(z, chosen)


def pixel_norm_reference(z: Tensor) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    return torch.nn.functional.rms_norm(z, z.shape[1:], eps=EPS)


class _PixelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(z)
        ctx.backend = backend
        return _forward(z, backend)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A gradient of this gradient may be asked for: the reference has them.
            out = pixel_norm_reference(z)
            return *torch.autograd.grad(out, z, grad_out, create_graph=True), None
        return _backward(grad_out.contiguous(), z, ctx.backend), None


def _forward(z: Tensor, backend: str) -> Tensor:
    if backend == "triton":
        from lddgan_kernels.triton import pixel_norm as kernel

        return kernel.forward(z)
    return torch.ops.lddgan.pixel_norm.default(z)


def _backward(grad: Tensor, z: Tensor, backend: str) -> Tensor:
    if backend == "triton":
        from lddgan_kernels.triton import pixel_norm as kernel

        return kernel.backward(grad, z)
    return torch.ops.lddgan.pixel_norm_backward.default(grad, z)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::pixel_norm")
    def _(z: Tensor) -> Tensor:
        return torch.empty_like(z)

    @torch.library.register_fake("lddgan::pixel_norm_backward")
    def _(grad: Tensor, z: Tensor) -> Tensor:
        return torch.empty_like(z)
