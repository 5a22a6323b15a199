"""Resampling by a FIR filter: zero-stuff by `up`, pad, convolve, keep every `down`-th.

For one axis of length L, with K taps k and zeros outside the signal:

    out[o] = sum_j k[K - 1 - j] * stuffed[o * down - pad_before + j],   stuffed[up * i] = x[i]

(the upfirdn of signal processing; in GANs since Karras et al. 2019/2020, StyleGAN). Dtypes
float32, bfloat16, float16 (reference: float64), sums in float32. Gradient in x: any order, as the
adjoint is the same operation with up and down swapped and the taps reversed. The taps get none.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import direct_calls, select
from lddgan_kernels._checks import (
    check_float,
    check_image,
    check_tensor,
    dense,
    fail,
    like_layout,
    memory_format,
)
from lddgan_kernels.ops._fir import taps as taps_of

KERNELS = ("cuda", "triton", "cpu")

Pad = tuple[int, int, int, int]


def upfirdn2d(
    x: Tensor,
    taps: Tensor,
    up: int = 1,
    down: int = 1,
    pad: Sequence[int] = (0, 0),
    *,
    backend: str | None = None,
) -> Tensor:
    """Zero-stuff, pad, convolve, decimate: each channel alone, the same way along H and W.

    Args:
        x: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last.
        taps: (K,) for a separable filter or (Kh, Kw), floating, on x's device. The gain is in them.
        up: zero-stuffing factor, at least 1.
        down: decimation factor, at least 1.
        pad: zeros (before, after) along both axes, or (left, right, top, bottom), counted after
            zero-stuffing; negative values crop.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, C, H', W') with H' = (H * up + before + after - Kh) // down + 1; dtype and layout
        like x.

    Raises:
        ValueError: x is no image; taps, factors or pads do not fit, or leave no output.
        RuntimeError: a named backend cannot run.
    """
    direct = direct_calls(backend)
    if direct is not None:
        out = direct.upfirdn2d(x, taps, up, down, pad)
        if out is not None:
            return out
    check_image("upfirdn2d", "x", x)
    check_tensor("upfirdn2d", "taps", taps)
    check_float("upfirdn2d", "taps", taps)
    if taps.ndim not in (1, 2) or taps.numel() == 0:
        raise fail("upfirdn2d", "taps", "of shape (K,) or (Kh, Kw)", tuple(taps.shape))
    if taps.device != x.device:
        raise fail("upfirdn2d", "taps", f"on {x.device} like x", taps.device)
    if taps.requires_grad:
        raise fail("upfirdn2d", "taps", "without gradient", "requires_grad=True")
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise fail("upfirdn2d", name, "an int of at least 1", factor)
    if len(pad) not in (2, 4):
        raise fail("upfirdn2d", "pad", "2 or 4 ints", tuple(pad))
    sides: Pad = (*pad, *pad) if len(pad) == 2 else tuple(pad)  # type: ignore[assignment]
    height, width = output_size(x, taps, up, down, sides)
    if height < 1 or width < 1:
        raise fail("upfirdn2d", "x", "large enough for the taps", f"shape {tuple(x.shape)}")
    chosen = select("upfirdn2d", x, backend, KERNELS)
    if chosen == "reference":
        return upfirdn2d_reference(x, taps, up, down, sides)
    taps = taps.float().contiguous()
    if chosen == "triton":
        return _Triton.apply(x, taps, up, down, sides, False)
    return torch.ops.lddgan.upfirdn2d.default(dense(x), taps, up, down, sides, False)


def upsample2d(x: Tensor, *, backend: str | None = None) -> Tensor:
    """Twice the height and width, by StyleGAN's [1, 3, 3, 1] with a gain of 4.

    Args:
        x: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last.
        backend: as in `upfirdn2d`.

    Returns:
        (N, C, 2H, 2W), dtype and layout like x.
    """
    check_tensor("upfirdn2d", "x", x)
    return upfirdn2d(x, taps_of("up", x.device), up=2, pad=(2, 1), backend=backend)


def downsample2d(x: Tensor, *, backend: str | None = None) -> Tensor:
    """Half the height and width, by StyleGAN's [1, 3, 3, 1] with a gain of 1.

    Args:
        x: (N, C, H, W) float32/bfloat16/float16 of at least 2x2, contiguous or channels_last.
        backend: as in `upfirdn2d`.

    Returns:
        (N, C, H // 2, W // 2), dtype and layout like x.
    """
    check_tensor("upfirdn2d", "x", x)
    return upfirdn2d(x, taps_of("down", x.device), down=2, pad=(1, 1), backend=backend)


def output_size(x: Tensor, taps: Tensor, up: int, down: int, pad: Pad) -> tuple[int, int]:
    """Height and width of the result; below 1 where nothing is left."""
    left, right, top, bottom = pad
    height = (x.shape[2] * up + top + bottom - taps.shape[0]) // down + 1
    return height, (x.shape[3] * up + left + right - taps.shape[-1]) // down + 1


def upfirdn2d_reference(x: Tensor, taps: Tensor, up: int, down: int, pad: Pad) -> Tensor:
    """The same in plain PyTorch (sums in float32 or float64); the oracle in float64."""
    n, c, h, w = x.shape
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    kernel = taps.to(compute).flip(tuple(range(taps.ndim)))
    if kernel.ndim == 1:
        kernel = kernel[:, None] * kernel[None, :]
    stuffed = x.to(compute).reshape(n * c, 1, h, 1, w, 1)
    stuffed = F.pad(stuffed, (0, up - 1, 0, 0, 0, up - 1)).reshape(n * c, 1, h * up, w * up)
    with torch.autocast(x.device.type, enabled=False):  # which would take the sums in bfloat16
        out = F.conv2d(F.pad(stuffed, pad), kernel[None, None])[:, :, ::down, ::down]
    out = out.reshape(n, c, *out.shape[2:]).to(x.dtype)
    return like_layout(out, memory_format(x))


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        taps: Tensor,
        up: int,
        down: int,
        pad: Pad,
        reversed: bool,
    ) -> Tensor:
        from lddgan_kernels.triton import upfirdn2d as kernel

        ctx.save_for_backward(taps)
        ctx.geometry = x.shape, up, down, pad, reversed
        return kernel.forward(dense(x), taps, up, down, pad, reversed)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (taps,) = ctx.saved_tensors
        (_, _, h, w), up, down, (left, _, top, _), reversed = ctx.geometry
        if h == 0 or w == 0:  # no taps fit the adjoint of padding nothing
            return grad_out.new_zeros(*grad_out.shape[:2], h, w), *[None] * 5
        # The pads of the adjoint: what makes its result as large as x.
        _, _, out_h, out_w = grad_out.shape
        pad = (
            taps.shape[-1] - 1 - left,
            w * up - out_w * down + left - up + 1,
            taps.shape[0] - 1 - top,
            h * up - out_h * down + top - up + 1,
        )
        grad = _Triton.apply(grad_out, taps, down, up, pad, not reversed)
        return grad, None, None, None, None, None


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::upfirdn2d")
    def _(x: Tensor, taps: Tensor, up: int, down: int, pad: Pad, reversed: bool) -> Tensor:
        shape = (*x.shape[:2], *output_size(x, taps, up, down, pad))
        layout = memory_format(x)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
