"""Triton kernel of `ops.norm_resample`, for channels_last.

A program takes some groups of one sample and some pieces of rows. It walks along W; the vertical
sums of the columns that the filter [1, 3, 3, 1] reaches stay in registers. Tiles are (channels,
pieces).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch, next_power_of_two, sigmoid
from lddgan_kernels.triton._norm_moments import _merge_parts, part_size
from lddgan_kernels.triton._norm_tile import _channels, _rows, _to_channels

TILE = 512  # elements
CHANNELS = 64  # of a program, at most, where a group is not wider
ENOUGH = 1 << 13  # programs; past these, they walk further instead


@triton.jit
def _value(
    x_ptr, row, column, height, width, channels, channel, mask, mean, missed, gain, shift,
    SILU: tl.constexpr,
):  # fmt: skip
    """(act(x), x) of the pixels (row, column); zero outside the image."""
    inside = mask & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    x = tl.load(x_ptr + (row * width + column) * channels + channel, mask=inside, other=0.0)
    x = x.to(tl.float32)
    y = ((x - mean) - missed) * gain + shift
    if SILU:
        y = y * sigmoid(y, x_ptr.dtype.element_ty == tl.float32)
    return tl.where(inside, y, 0.0), x


@triton.jit
def _column(
    x_ptr, step, column, height, width, channels, channel, mask, mean, missed, gain, shift,
    UP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Vertical sums of one column: (h, s) of the step's first output row, (h, s) of its second.

    Down, a step has one output row, and the second pair repeats it.
    """
    if UP:
        h0, s0 = _value(x_ptr, step - 1, column, height, width, channels, channel, mask, mean,
                        missed, gain, shift, SILU)  # fmt: skip
        h1, s1 = _value(x_ptr, step, column, height, width, channels, channel, mask, mean,
                        missed, gain, shift, SILU)  # fmt: skip
        h2, s2 = _value(x_ptr, step + 1, column, height, width, channels, channel, mask, mean,
                        missed, gain, shift, SILU)  # fmt: skip
        return (
            0.25 * h0 + 0.75 * h1,
            0.25 * s0 + 0.75 * s1,
            0.75 * h1 + 0.25 * h2,
            (0.75 * s1 + 0.25 * s2),
        )
    else:
        h = tl.zeros_like(mask).to(tl.float32)
        s = h
        for k in tl.static_range(4):
            y, x = _value(x_ptr, 2 * step - 1 + k, column, height, width, channels, channel, mask,
                          mean, missed, gain, shift, SILU)  # fmt: skip
            weight = 0.125 if k == 0 or k == 3 else 0.375
            h += weight * y
            s += weight * x
        return h, s, h, s


@triton.jit
def _write(ptr, row, column, width, channels, channel, mask, value):
    tl.store(
        ptr + (row * width + column) * channels + channel,
        value.to(ptr.dtype.element_ty),
        mask=mask,
    )


@triton.jit
def _write_four(ptr, step, o, width, channels, channel, mask, a0, a1, a2, b0, b1, b2):
    """Going up, the outputs at (step, o), of vertical sums `a` (even row) and `b` (odd row)."""
    wide = 2 * width
    _write(ptr, 2 * step, 2 * o, wide, channels, channel, mask, 0.25 * a0 + 0.75 * a1)
    _write(ptr, 2 * step, 2 * o + 1, wide, channels, channel, mask, 0.75 * a1 + 0.25 * a2)
    _write(ptr, 2 * step + 1, 2 * o, wide, channels, channel, mask, 0.25 * b0 + 0.75 * b1)
    _write(ptr, 2 * step + 1, 2 * o + 1, wide, channels, channel, mask, 0.75 * b1 + 0.25 * b2)


@triton.jit(do_not_specialize=["samples"])  # else compiled again for another batch
def _norm_resample_kernel(
    x_ptr, scale_ptr, shift_ptr, partial_ptr, h_ptr, s_ptr, statistics_ptr,
    samples, scale_stride, shift_stride, channels, height, width, num_groups, part_size, segment,
    segments, eps,
    GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr, UP: tl.constexpr, SAME: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """h = resample(act(norm(x))) and, where SAME, s = resample(x)."""
    n = tl.program_id(0)
    first_group = tl.program_id(1) * GB
    channel, channel_mask, group_of = _channels(first_group, GB, CPG, CB)
    scale = _rows(scale_ptr, n, scale_stride, channel, channel_mask)
    shift = _rows(shift_ptr, n, shift_stride, channel, channel_mask)
    group = first_group + tl.arange(0, GB)
    mean, missed, rstd = _merge_parts(partial_ptr, n, group, num_groups, height * width, part_size,
                                      eps, CPG, PARTS, PARTS_BLOCK)  # fmt: skip
    if tl.program_id(2) == 0:
        index = n.to(tl.int64) * num_groups + group
        tl.store(statistics_ptr + index, mean + missed)
        tl.store(statistics_ptr + tl.cast(samples, tl.int64) * num_groups + index, rstd)
    gain = scale * _to_channels(rstd, group_of, GB)
    mean = _to_channels(mean, group_of, GB)
    missed = _to_channels(missed, group_of, GB)

    piece = (tl.program_id(2) * RB + tl.arange(0, RB))[None, :]
    step = piece // segments
    begin = piece % segments * segment
    steps = height if UP else height // 2
    length = width if UP else width // 2
    out_pixels = 4 * height * width if UP else steps * length
    mask = channel_mask & (step < steps)
    x_ptr += n.to(tl.int64) * height * width * channels
    h_ptr += n.to(tl.int64) * out_pixels * channels
    s_ptr += n.to(tl.int64) * out_pixels * channels
    first = begin if UP else 2 * begin
    h0, s0, g0, r0 = _column(x_ptr, step, first - 1, height, width, channels, channel, mask, mean,
                             missed, gain, shift, UP, SILU)  # fmt: skip
    h1, s1, g1, r1 = _column(x_ptr, step, first, height, width, channels, channel, mask, mean,
                             missed, gain, shift, UP, SILU)  # fmt: skip
    for i in range(segment):
        o = begin + i
        here = mask & (o < length)
        at = o + 1 if UP else 2 * o + 1
        h2, s2, g2, r2 = _column(x_ptr, step, at, height, width, channels, channel, here, mean,
                                 missed, gain, shift, UP, SILU)  # fmt: skip
        if UP:
            _write_four(h_ptr, step, o, width, channels, channel, here, h0, h1, h2, g0, g1, g2)
            if SAME:
                _write_four(s_ptr, step, o, width, channels, channel, here, s0, s1, s2, r0, r1, r2)
            h0, s0, g0, r0 = h1, s1, g1, r1
            h1, s1, g1, r1 = h2, s2, g2, r2
        else:
            h3, s3, g3, r3 = _column(x_ptr, step, at + 1, height, width, channels, channel, here,
                                     mean, missed, gain, shift, UP, SILU)  # fmt: skip
            _write(h_ptr, step, o, length, channels, channel, here,
                   0.125 * (h0 + h3) + 0.375 * (h1 + h2))  # fmt: skip
            if SAME:
                _write(s_ptr, step, o, length, channels, channel, here,
                       0.125 * (s0 + s3) + 0.375 * (s1 + s2))  # fmt: skip
            h0, s0, g0, r0 = h2, s2, g2, r2
            h1, s1, g1, r1 = h3, s3, g3, r3


def _row_stride(rows: Tensor) -> int:
    return rows.stride(0) if rows.ndim == 2 else 0


def forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    moments: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    up: bool,
    same: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, s, statistics): s is empty unless `same`; statistics (2, N, num_groups) float32.

    `x` is channels_last, `moments` its partial moments (`_norm_moments`).
    """
    n, c, height, width = x.shape
    steps, length = (height, width) if up else (height // 2, width // 2)
    shape = n, c, *((2 * height, 2 * width) if up else (steps, length))
    h = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    s = torch.empty_like(h) if same else x.new_empty(0)
    statistics = torch.empty((2, n, num_groups), dtype=torch.float32, device=x.device)
    cpg, groups, parts = c // num_groups, 1, moments.shape[2]
    while num_groups % (2 * groups) == 0 and 2 * groups * cpg <= CHANNELS:
        groups *= 2
    block = next_power_of_two(groups * cpg)
    pieces = max(1, TILE // block)
    segment, programs = length, n * (num_groups // groups)
    while segment > 1 and programs * triton.cdiv(steps * (length // segment), pieces) < ENOUGH:
        segment = (segment + 1) // 2
    segments = triton.cdiv(length, segment)
    grid = (n, num_groups // groups, triton.cdiv(steps * segments, pieces))
    launch(_norm_resample_kernel, grid,
        x, scale, shift, moments, h, s, statistics, n, _row_stride(scale), _row_stride(shift),
        c, height, width, num_groups, part_size(height * width, parts), segment, segments, eps,
        GB=groups, CPG=cpg, CB=block, RB=pieces, PARTS=parts,
        PARTS_BLOCK=next_power_of_two(parts), UP=up, SAME=same, SILU=silu,
        num_warps=max(1, block * pieces * x.element_size() // 512),
    )  # fmt: skip
    return h, s, statistics


def _aot(up: bool, same: bool, dtypes: tuple[str, ...], warps: int) -> tuple:
    """One entry of AOT: 16 groups of 4 channels, 8 pieces."""
    constants = {"GB": 16, "CPG": 4, "CB": 64, "RB": 8, "PARTS": 8, "PARTS_BLOCK": 8, "UP": up,
                 "SAME": same, "SILU": True}  # fmt: skip
    float32 = ("partial_ptr", "statistics_ptr")
    signature = {
        name: ("*fp32" if name in float32 else "*T") if name.endswith("_ptr") else "i32"
        for name in _norm_resample_kernel.arg_names
        if name not in constants
    } | {"eps": "fp32"}
    options = {"num_warps": warps, "dtypes": dtypes, "unaligned": ("samples", "segment")}
    return _norm_resample_kernel, signature, constants, options


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants, options).
AOT = tuple(
    _aot(up, same, dtypes, warps)
    for up, same in ((False, True), (True, False), (True, True))
    for dtypes, warps in ((("fp32",), 4), (("bf16", "fp16"), 2))
)
