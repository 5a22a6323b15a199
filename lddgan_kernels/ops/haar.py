"""Orthonormal 2-D Haar wavelet transform, one level: DWT and its inverse.

Each 2x2 block [[a, b], [c, d]] of a channel becomes one value of each of four sub-bands
(Haar 1910; sub-band order of WDDGAN, Phung et al. 2023, section 3):

    LL = (a + b + c + d) / 2    LH = (a - b + c - d) / 2     LH: high-pass along W
    HL = (a + b - c - d) / 2    HH = (a - b - c + d) / 2     HL: high-pass along H

The transform is orthogonal, so the inverse is the transpose. Dtypes float32, bfloat16, float16
(reference: float64). Gradient: any order (the gradient of each is the other).
"""

from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import check_image, dense, fail, like_layout, memory_format

KERNELS = ("cuda", "triton", "cpu")


def haar_dwt2d(x: Tensor, scale: float = 1.0, *, backend: str | None = None) -> Tensor:
    """Haar sub-bands of x, times `scale`.

    Args:
        x: (N, C, 2H, 2W) float32/bfloat16/float16, contiguous or channels_last.
        scale: factor on every sub-band (WDDGAN halves, so that the LL band keeps x's range).
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, 4C, H, W): LL, LH, HL, HH, each with all C channels; dtype and layout like x.

    Raises:
        ValueError: x is no image, or its height or width is odd. RuntimeError: a named backend
        cannot run.
    """
    check_image("haar_dwt2d", "x", x)
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise fail("haar_dwt2d", "x", "of even height and width", f"shape {tuple(x.shape)}")
    chosen = select("haar_dwt2d", x, backend, KERNELS)
    if chosen == "reference":
        return haar_dwt2d_reference(x, scale)
    if chosen == "triton":
        return _Triton.apply(x, scale, False)
    return torch.ops.lddgan.haar_dwt2d.default(dense(x), scale)  # gradient: python/haar.cpp


def haar_idwt2d(y: Tensor, scale: float = 1.0, *, backend: str | None = None) -> Tensor:
    """The image whose Haar sub-bands are `scale * y`.

    Args:
        y: (N, 4C, H, W) float32/bfloat16/float16, contiguous or channels_last; sub-bands
            LL, LH, HL, HH, each with all C channels.
        scale: factor on every sub-band; `haar_idwt2d(haar_dwt2d(x, s), 1 / s)` is x.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, C, 2H, 2W), dtype and layout like y.

    Raises:
        ValueError: y is no image, or its channels are no multiple of 4. RuntimeError: a named
        backend cannot run.
    """
    check_image("haar_idwt2d", "y", y)
    if y.shape[1] % 4:
        raise fail("haar_idwt2d", "y", "of 4C channels", f"shape {tuple(y.shape)}")
    chosen = select("haar_idwt2d", y, backend, KERNELS)
    if chosen == "reference":
        return haar_idwt2d_reference(y, scale)
    if chosen == "triton":
        return _Triton.apply(y, scale, True)
    return torch.ops.lddgan.haar_idwt2d.default(dense(y), scale)


def haar_dwt2d_reference(x: Tensor, scale: float = 1.0) -> Tensor:
    """haar_dwt2d in plain PyTorch; the oracle in float64."""
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    low, high = top + bottom, top - bottom
    a, b, c, d = low[..., 0::2], low[..., 1::2], high[..., 0::2], high[..., 1::2]
    out = torch.cat((a + b, a - b, c + d, c - d), dim=1) * (0.5 * scale)
    return like_layout(out, memory_format(x))


def haar_idwt2d_reference(y: Tensor, scale: float = 1.0) -> Tensor:
    """haar_idwt2d in plain PyTorch; the oracle in float64."""
    ll, lh, hl, hh = (y * (0.5 * scale)).chunk(4, dim=1)
    left, right, left_step, right_step = ll + lh, ll - lh, hl + hh, hl - hh
    top = torch.stack((left + left_step, right + right_step), dim=-1).flatten(-2)
    bottom = torch.stack((left - left_step, right - right_step), dim=-1).flatten(-2)
    out = torch.stack((top, bottom), dim=-2).flatten(-3, -2)
    return like_layout(out, memory_format(y))


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, inverse: bool) -> Tensor:
        from lddgan_kernels.triton import haar as kernel

        ctx.scale, ctx.inverse = scale, inverse
        return (kernel.idwt if inverse else kernel.dwt)(dense(x), scale)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return _Triton.apply(grad_out, ctx.scale, not ctx.inverse), None, None


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::haar_dwt2d")
    def _(x: Tensor, scale: float) -> Tensor:
        n, c, h, w = x.shape
        shape, layout = (n, 4 * c, h // 2, w // 2), memory_format(x)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)

    @torch.library.register_fake("lddgan::haar_idwt2d")
    def _(y: Tensor, scale: float) -> Tensor:
        n, c, h, w = y.shape
        shape, layout = (n, c // 4, 2 * h, 2 * w), memory_format(y)
        return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)
