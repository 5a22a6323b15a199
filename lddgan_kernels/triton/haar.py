"""Triton kernels of `ops.haar`: one pass, for both layouts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch


@triton.jit
def _butterfly(a, b, c, d, factor):
    """The 2x2 block (a, b, c, d) to (LL, LH, HL, HH), and back; `factor` is half the scale."""
    top = (a + b) * factor
    top_step = (a - b) * factor
    bottom = (c + d) * factor
    bottom_step = (c - d) * factor
    return top + bottom, top_step + bottom_step, top - bottom, top_step - bottom_step


# A tile is ROWS x COLS of the sub-bands: rows of planes and columns where contiguous, pixels and
# channels where channels_last. `plane_rows` is C * H. Of contiguous images it is ROWS x 2 COLS.
@triton.jit
def _tile(rows, cols, c, plane_rows, w, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr,
          COLS: tl.constexpr):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (row < rows) & (col < cols)
    if CHANNELS_LAST:
        image = (row // w * 4 * w + row % w * 2) * c + col
        wide_mask = mask
        bands = row * 4 * c + col
    else:
        wide = (tl.program_id(1) * COLS * 2 + tl.arange(0, COLS * 2))[None, :]
        image = row * 4 * w + wide
        wide_mask = (row < rows) & (wide < 2 * w)
        bands = (row // plane_rows * 3 * plane_rows + row) * w + col
    return mask, image, wide_mask, bands


@triton.jit
def _haar_dwt2d_kernel(
    x_ptr, out_ptr, rows, cols, c, plane_rows, w, factor,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    mask, image, wide_mask, bands = _tile(rows, cols, c, plane_rows, w, CHANNELS_LAST, ROWS, COLS)
    x_ptr += image
    if CHANNELS_LAST:
        a = tl.load(x_ptr, mask=mask).to(tl.float32)
        b = tl.load(x_ptr + c, mask=mask).to(tl.float32)
        c_ = tl.load(x_ptr + 2 * w * c, mask=mask).to(tl.float32)
        d = tl.load(x_ptr + 2 * w * c + c, mask=mask).to(tl.float32)
        step = c
    else:
        top = tl.load(x_ptr, mask=wide_mask).to(tl.float32)
        bottom = tl.load(x_ptr + 2 * w, mask=wide_mask).to(tl.float32)
        a, b = tl.split(tl.reshape(top, (ROWS, COLS, 2)))
        c_, d = tl.split(tl.reshape(bottom, (ROWS, COLS, 2)))
        step = plane_rows * w
    ll, lh, hl, hh = _butterfly(a, b, c_, d, factor)
    dtype = out_ptr.dtype.element_ty
    out_ptr += bands
    tl.store(out_ptr, ll.to(dtype), mask=mask)
    tl.store(out_ptr + step, lh.to(dtype), mask=mask)
    tl.store(out_ptr + 2 * step, hl.to(dtype), mask=mask)
    tl.store(out_ptr + 3 * step, hh.to(dtype), mask=mask)


@triton.jit
def _haar_idwt2d_kernel(
    y_ptr, out_ptr, rows, cols, c, plane_rows, w, factor,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    mask, image, wide_mask, bands = _tile(rows, cols, c, plane_rows, w, CHANNELS_LAST, ROWS, COLS)
    y_ptr += bands
    if CHANNELS_LAST:
        step = c
    else:
        step = plane_rows * w
    ll = tl.load(y_ptr, mask=mask).to(tl.float32)
    lh = tl.load(y_ptr + step, mask=mask).to(tl.float32)
    hl = tl.load(y_ptr + 2 * step, mask=mask).to(tl.float32)
    hh = tl.load(y_ptr + 3 * step, mask=mask).to(tl.float32)
    a, b, c_, d = _butterfly(ll, lh, hl, hh, factor)
    dtype = out_ptr.dtype.element_ty
    out_ptr += image
    if CHANNELS_LAST:
        tl.store(out_ptr, a.to(dtype), mask=mask)
        tl.store(out_ptr + c, b.to(dtype), mask=mask)
        tl.store(out_ptr + 2 * w * c, c_.to(dtype), mask=mask)
        tl.store(out_ptr + 2 * w * c + c, d.to(dtype), mask=mask)
    else:
        tl.store(out_ptr, tl.interleave(a, b).to(dtype), mask=wide_mask)
        tl.store(out_ptr + 2 * w, tl.interleave(c_, d).to(dtype), mask=wide_mask)


def dwt(x: Tensor, scale: float) -> Tensor:
    """`x`: (N, C, 2H, 2W), dense; returns (N, 4C, H, W) in its layout."""
    n, c, h, w = x.shape
    return _launch(_haar_dwt2d_kernel, x, (n, 4 * c, h // 2, w // 2), c, scale)


def idwt(y: Tensor, scale: float) -> Tensor:
    """`y`: (N, 4C, H, W), dense; returns (N, C, 2H, 2W) in its layout."""
    n, c, h, w = y.shape
    return _launch(_haar_idwt2d_kernel, y, (n, c // 4, 2 * h, 2 * w), c // 4, scale)


def _launch(kernel, x: Tensor, shape: tuple, c: int, scale: float) -> Tensor:
    channels_last = not x.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    if out.numel() == 0:
        return out
    n, h, w = x.shape[0], min(x.shape[2], shape[2]), min(x.shape[3], shape[3])
    rows, cols = (n * h * w, c) if channels_last else (n * c * h, w)
    tile_cols = min(64, triton.next_power_of_2(cols))
    tile_rows = 1024 // tile_cols
    grid = (triton.cdiv(rows, tile_rows), triton.cdiv(cols, tile_cols))
    launch(kernel, grid,
        x, out, rows, cols, c, c * h, w, 0.5 * scale,
        CHANNELS_LAST=channels_last, ROWS=tile_rows, COLS=tile_cols,
    )  # fmt: skip
    return out


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
_SIZES = {"rows": "i32", "cols": "i32", "c": "i32", "plane_rows": "i32", "w": "i32"}
AOT = tuple(
    (
        kernel,
        {first: "*T", "out_ptr": "*T", **_SIZES, "factor": "fp32"},
        {"CHANNELS_LAST": channels_last, "ROWS": 16, "COLS": 64},
    )
    for kernel, first in ((_haar_dwt2d_kernel, "x_ptr"), (_haar_idwt2d_kernel, "y_ptr"))
    for channels_last in (False, True)
)
