"""Triton kernels of `ops.upfirdn2d`: by two with four taps on contiguous planes, and any other."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch


@triton.jit
def _weights(taps_ptr, REVERSED: tl.constexpr):
    """Weight j multiplies the stuffed signal at out * down - pad + j."""
    t0 = tl.load(taps_ptr)
    t1 = tl.load(taps_ptr + 1)
    t2 = tl.load(taps_ptr + 2)
    t3 = tl.load(taps_ptr + 3)
    if REVERSED:
        return t0, t1, t2, t3
    return t3, t2, t1, t0


# Tiles of ROWS x COLS: of the output rows of all planes (down), of the input's (up).
@triton.jit
def _down_rows_kernel(
    x_ptr, taps_ptr, out_ptr, rows, height, width,
    REVERSED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """H -> H / 2 by four separable taps and pads (1, 1); `height`, `width` of the output."""
    f0, f1, f2, f3 = _weights(taps_ptr, REVERSED)
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (row < rows) & (col < width)
    wide = (tl.program_id(1) * COLS * 2 + tl.arange(0, COLS * 2))[None, :]
    y = row % height
    total = tl.zeros((ROWS, COLS), tl.float32)
    for i in tl.static_range(4):
        # Twice as many rows of twice the width: plane boundaries fall together.
        base = x_ptr + (2 * row - 1 + i) * (2 * width) + 2 * col
        inside = mask
        if i == 0:
            inside = mask & (y > 0)
        if i == 3:
            inside = mask & (y < height - 1)
        pairs = x_ptr + (2 * row - 1 + i) * (2 * width) + wide
        wide_inside = (row < rows) & (wide < 2 * width)
        if i == 0:
            wide_inside = wide_inside & (y > 0)
        if i == 3:
            wide_inside = wide_inside & (y < height - 1)
        both = tl.load(pairs, mask=wide_inside, other=0.0).to(tl.float32)
        v1, v2 = tl.split(tl.reshape(both, (ROWS, COLS, 2)))
        v0 = tl.load(base - 1, mask=inside & (col > 0), other=0.0).to(tl.float32)
        v3 = tl.load(base + 2, mask=inside & (col < width - 1), other=0.0).to(tl.float32)
        across = f0 * v0 + f1 * v1 + f2 * v2 + f3 * v3
        if i == 0:
            total += f0 * across
        elif i == 1:
            total += f1 * across
        elif i == 2:
            total += f2 * across
        else:
            total += f3 * across
    tl.store(out_ptr + row * width + col, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _up_rows_kernel(
    x_ptr, taps_ptr, out_ptr, rows, height, width,
    REVERSED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """H -> 2 H by four separable taps and pads (2, 1); `height`, `width` of the input."""
    f0, f1, f2, f3 = _weights(taps_ptr, REVERSED)
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (row < rows) & (col < width)
    y = row % height
    top_left = tl.zeros((ROWS, COLS), tl.float32)
    top_right = tl.zeros((ROWS, COLS), tl.float32)
    bottom_left = tl.zeros((ROWS, COLS), tl.float32)
    bottom_right = tl.zeros((ROWS, COLS), tl.float32)
    for k in tl.static_range(3):
        at = col + (k - 1)
        inside = mask & (at >= 0) & (at < width)
        base = x_ptr + row * width + at
        above = tl.load(base - width, mask=inside & (y > 0), other=0.0).to(tl.float32)
        here = tl.load(base, mask=inside, other=0.0).to(tl.float32)
        below = tl.load(base + width, mask=inside & (y < height - 1), other=0.0).to(tl.float32)
        even = f0 * above + f2 * here
        odd = f1 * here + f3 * below
        if k == 0:
            top_left += f0 * even
            bottom_left += f0 * odd
        elif k == 1:
            top_left += f2 * even
            bottom_left += f2 * odd
            top_right += f1 * even
            bottom_right += f1 * odd
        else:
            top_right += f3 * even
            bottom_right += f3 * odd
    dtype = out_ptr.dtype.element_ty
    wide = (tl.program_id(1) * COLS * 2 + tl.arange(0, COLS * 2))[None, :]
    wide_mask = (row < rows) & (wide < 2 * width)
    out = out_ptr + row * (4 * width) + wide
    tl.store(out, tl.interleave(top_left, top_right).to(dtype), mask=wide_mask)
    tl.store(out + 2 * width, tl.interleave(bottom_left, bottom_right).to(dtype), mask=wide_mask)


@triton.jit
def _any_kernel(
    x_ptr, taps_ptr, out_ptr, rows, cols, h, w, out_h, out_w, pad_y, pad_x,
    UP: tl.constexpr, DOWN: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    SEPARABLE: tl.constexpr, REVERSED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Tiles of ROWS x COLS of the output: rows and columns, or pixels and channels."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (row < rows) & (col < cols)
    if CHANNELS_LAST:
        plane, y, x = row // (out_h * out_w), row // out_w % out_h, row % out_w
        x_ptr += plane * h * w * cols + col
        step = cols
    else:
        plane, y, x = row // out_h, row % out_h, col
        x_ptr += plane * h * w
        step = 1
    start_y = y * DOWN - pad_y  # in the stuffed signal
    start_x = x * DOWN - pad_x
    first_y = tl.where(start_y > 0, (start_y + UP - 1) // UP, 0)
    first_x = tl.where(start_x > 0, (start_x + UP - 1) // UP, 0)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for i in tl.static_range((TAPS_H + UP - 1) // UP):
        in_y = first_y + i
        tap_y = in_y * UP - start_y
        fits_y = (in_y < h) & (tap_y < TAPS_H)
        tap_y = tap_y if REVERSED else TAPS_H - 1 - tap_y
        across = tl.zeros((ROWS, COLS), tl.float32)
        for j in tl.static_range((TAPS_W + UP - 1) // UP):
            in_x = first_x + j
            tap_x = in_x * UP - start_x
            fits = fits_y & (in_x < w) & (tap_x < TAPS_W)
            tap_x = tap_x if REVERSED else TAPS_W - 1 - tap_x
            if SEPARABLE:
                tap = tl.load(taps_ptr + tap_x + 0 * tap_y, mask=fits, other=0.0)
            else:
                tap = tl.load(taps_ptr + tap_y * TAPS_W + tap_x, mask=fits, other=0.0)
            value = tl.load(x_ptr + (in_y * w + in_x) * step, mask=fits & mask, other=0.0)
            across += tap * value.to(tl.float32)
        if SEPARABLE:
            across = across * tl.load(taps_ptr + tap_y, mask=fits_y, other=0.0)
        total += across
    tl.store(out_ptr + row * cols + col, total.to(out_ptr.dtype.element_ty), mask=mask)


def forward(
    x: Tensor,
    taps: Tensor,
    up: int,
    down: int,
    pad: tuple[int, int, int, int],
    reversed: bool,
) -> Tensor:
    """`x`: dense; `taps`: float32, contiguous; returns the resampled image in x's layout."""
    left, right, top, bottom = pad
    n, c, h, w = x.shape
    taps_h, taps_w = taps.shape[0], taps.shape[-1]
    out_h = (h * up + top + bottom - taps_h) // down + 1
    out_w = (w * up + left + right - taps_w) // down + 1
    channels_last = not x.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((n, c, out_h, out_w), dtype=x.dtype, device=x.device, memory_format=layout)
    if out.numel() == 0:
        return out
    four = taps.ndim == 1 and taps_w == 4 and not channels_last
    halves = four and (up, down, left, top) == (1, 2, 1, 1) and (h, w) == (2 * out_h, 2 * out_w)
    doubles = four and (up, down, left, top) == (2, 1, 2, 2) and (out_h, out_w) == (2 * h, 2 * w)
    if halves or doubles:
        kernel, height, width = (
            (_down_rows_kernel, out_h, out_w) if halves else (_up_rows_kernel, h, w)
        )
        rows, tile_cols = n * c * height, min(64, triton.next_power_of_2(width))
        tile_rows = 1024 // tile_cols
        grid = (triton.cdiv(rows, tile_rows), triton.cdiv(width, tile_cols))
        launch(kernel, grid,
            x, taps, out, rows, height, width,
            REVERSED=reversed, ROWS=tile_rows, COLS=tile_cols,
        )  # fmt: skip
        return out
    rows, cols = (n * out_h * out_w, c) if channels_last else (n * c * out_h, out_w)
    tile_cols = min(64, triton.next_power_of_2(cols))
    tile_rows = 1024 // tile_cols
    grid = (triton.cdiv(rows, tile_rows), triton.cdiv(cols, tile_cols))
    launch(_any_kernel, grid,
        x, taps, out, rows, cols, h, w, out_h, out_w, top, left,
        UP=up, DOWN=down, TAPS_H=taps_h, TAPS_W=taps_w, SEPARABLE=taps.ndim == 1,
        REVERSED=reversed, CHANNELS_LAST=channels_last, ROWS=tile_rows, COLS=tile_cols,
    )  # fmt: skip
    return out


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
_POINTERS = {"x_ptr": "*T", "taps_ptr": "*fp32", "out_ptr": "*T"}
_ANY_SIZES = ("rows", "cols", "h", "w", "out_h", "out_w", "pad_y", "pad_x")
_TILE = {"REVERSED": False, "ROWS": 16, "COLS": 64}
_FOUR_TAPS = {"TAPS_H": 4, "TAPS_W": 4, "SEPARABLE": True, "CHANNELS_LAST": True}
AOT = (
    *(
        (kernel, {**_POINTERS, "rows": "i32", "height": "i32", "width": "i32"}, _TILE)
        for kernel in (_down_rows_kernel, _up_rows_kernel)
    ),
    *(
        (
            _any_kernel,
            {**_POINTERS, **dict.fromkeys(_ANY_SIZES, "i32")},
            {"UP": up, "DOWN": down, **_FOUR_TAPS, **_TILE},
        )
        for up, down in ((2, 1), (1, 2))
    ),
)
