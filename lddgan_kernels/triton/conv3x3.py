"""Triton kernels of `ops.conv3x3`: an implicit matrix product over channels_last tensors.

Rows are pixels, columns output channels, and the inner dimension is the nine taps of all input
channels, read where they lie. Small maps leave most of a GPU without rows: their inner dimension is
split among programs, whose partial sums a second kernel adds in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch, next_power_of_two

MULTIPROCESSORS = 132  # of an H200; fewer only means more programs than needed
_REDUCED = 1024  # elements of a program that adds partial sums


@triton.jit
def _conv3x3_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr,
    pixels, height, width, c_in, c_out, steps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """`steps` of the inner dimension's blocks a program; out: (splits, pixels, c_out)."""
    tiles = tl.cdiv(c_out, COLUMNS)
    pixel = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    x = (pixel % width).to(tl.int32)
    y = (pixel // width % height).to(tl.int32)
    # 9 taps of `blocks` blocks of channels each.
    blocks = tl.cdiv(c_in, INNER)
    first = tl.program_id(1) * steps
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(first, min(first + steps, 9 * blocks)):
        tap = step // blocks
        channel = step % blocks * INNER + tl.arange(0, INNER)
        dy, dx = tap // 3 - 1, tap % 3 - 1
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        a = tl.load(
            x_ptr + ((pixel + dy * width + dx) * c_in)[:, None] + channel[None, :],
            mask=(inside & (pixel < pixels))[:, None] & (channel < c_in)[None, :],
            other=0.0,
        )
        b = tl.load(
            weight_ptr + (column * 9 + tap)[None, :] * c_in + channel[:, None],
            mask=(column < c_out)[None, :] & (channel < c_in)[:, None],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    offsets = pixel[:, None] * c_out + column[None, :]
    mask = (pixel < pixels)[:, None] & (column < c_out)[None, :]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask=column < c_out, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        total += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + tl.program_id(1).to(tl.int64) * pixels * c_out + offsets, out, mask=mask)


@triton.jit
def _sum_kernel(
    partial_ptr, bias_ptr, residual_ptr, out_ptr, count, c_out, splits, BLOCK: tl.constexpr
):
    """The sum of `splits` float32 tensors of `count` elements, plus bias and residual."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        total += tl.load(partial_ptr + split * count + offsets, mask=mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + offsets % c_out, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=mask)


def tile(pixels: int, c_in: int, c_out: int, wide: bool) -> tuple[int, int, int, int]:
    """(rows, columns, inner block, warps) of a program; `wide`: elements of 4 bytes."""
    inner = max(16, min(next_power_of_two(c_in), 32 if wide else 64))
    large = triton.cdiv(pixels, 128) * triton.cdiv(c_out, 128) >= MULTIPROCESSORS
    side = 128 if large and not wide else 64
    rows = max(16, min(next_power_of_two(pixels), side))
    columns = max(16, min(next_power_of_two(c_out), side))
    return rows, columns, inner, 8 if rows * columns == 128 * 128 else 4


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """`x`, `residual`: channels_last; `weight`: (D, C, 3, 3). Returns channels_last."""
    n, c_in, height, width = x.shape
    c_out, pixels = weight.shape[0], n * height * width
    shape, layout = (n, c_out, height, width), torch.channels_last
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    count = out.numel()
    if count == 0:
        return out
    weight = weight.contiguous(memory_format=layout)
    bias = None if bias is None else bias.contiguous()
    rows, columns, inner, warps = tile(pixels, c_in, c_out, x.element_size() == 4)
    programs = triton.cdiv(pixels, rows) * triton.cdiv(c_out, columns)
    blocks = 9 * triton.cdiv(c_in, inner)
    # At least two blocks a program, and no more programs than fill the device.
    steps = min(blocks, max(2, triton.cdiv(blocks * programs, MULTIPROCESSORS)))
    splits = triton.cdiv(blocks, steps)
    alone = splits == 1
    partial = out if alone else x.new_empty((splits, count), dtype=torch.float32)
    launch(
        _conv3x3_kernel,
        (programs, splits),
        *(x, weight, bias if alone else None, residual if alone else None, partial),
        *(pixels, height, width, c_in, c_out, steps),
        *(rows, columns, inner),
        num_warps=warps,
        num_stages=3,
    )
    if not alone:
        launch(
            _sum_kernel,
            (triton.cdiv(count, _REDUCED),),
            partial,
            bias,
            residual,
            out,
            count,
            c_out,
            splits,
            _REDUCED,
        )
    return out


_POINTERS = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "residual_ptr", "out_ptr"), "*T")
_NUMBERS = dict.fromkeys(("pixels", "height", "width", "c_in", "c_out", "steps"), "i32")


def _entry(pixels: int, channels: int, wide: bool) -> tuple[object, ...]:
    rows, columns, inner, warps = tile(pixels, channels, channels, wide)
    sizes = {"ROWS": rows, "COLUMNS": columns, "INNER": inner}
    options = {"num_warps": warps, "num_stages": 3, "unaligned": ("steps",), "products": True}
    options["dtypes"] = ("fp32",) if wide else ("bf16", "fp16")
    return _conv3x3_kernel, _POINTERS | _NUMBERS, sizes, options


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants, options).
AOT = (
    _entry(16, 256, False),
    _entry(16, 256, True),
    _entry(6400, 128, False),
    _entry(1 << 16, 128, False),
    _entry(1 << 16, 128, True),
    (
        _sum_kernel,
        {
            "partial_ptr": "*fp32",
            **dict.fromkeys(("bias_ptr", "residual_ptr", "out_ptr"), "*T"),
            **dict.fromkeys(("count", "c_out", "splits"), "i32"),
        },
        {"BLOCK": _REDUCED},
        {"unaligned": ("splits",)},
    ),
)
