"""Triton kernels of `ops.ada_group_norm`, for either layout and any channel count.

A tile is (channels of a few neighbouring groups, positions); which of its axes is contiguous in
memory follows from the layout, and Triton orders its threads accordingly. Plans: `ops._norm_plan`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch, next_power_of_two, reciprocal_root, sigmoid
from lddgan_kernels.triton._norm_moments import (
    _merge_parts,
    _moments_kernel,
    blocks,
    moments,
    part_size,
)
from lddgan_kernels.triton._norm_tile import (
    _channels,
    _group_sum,
    _offset,
    _part_sum,
    _read,
    _rows,
    _through_activation,
    _to_channels,
    _to_groups,
)


@triton.jit
def _forward_kernel(
    x_ptr, x2_ptr, bias_ptr, scale_ptr, shift_ptr, out_ptr, mean_ptr, rstd_ptr, partial_ptr,
    bias_stride, scale_stride, shift_stride, c1, c2, hw, num_groups, part_size, eps,
    GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr, PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr, ONCHIP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HAS_X2: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Normalises a tile: with statistics of its own (ONCHIP) or merged from partial moments."""
    n, part = tl.program_id(0), tl.program_id(2)
    first_group = tl.program_id(1) * GB
    begin = part * part_size
    end = tl.minimum(begin + part_size, hw)
    channel, channel_mask, group_of = _channels(first_group, GB, CPG, CB)
    scale = _rows(scale_ptr, n, scale_stride, channel, channel_mask)
    shift = _rows(shift_ptr, n, shift_stride, channel, channel_mask)
    group = first_group + tl.arange(0, GB)
    count = tl.cast(CPG * hw, tl.float32)
    position = begin + tl.arange(0, PB)[None, :]
    x = _read(x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position, channel_mask,
              end, CHANNELS_LAST, HAS_X2, HAS_BIAS)  # fmt: skip
    if ONCHIP:
        # The rounded mean, then what it missed: data far from zero keeps its digits.
        mask = channel_mask & (position < end)
        mean = _group_sum(x, group_of, GB) / count
        away = tl.where(mask, x - _to_channels(mean, group_of, GB), 0.0)
        missed = _group_sum(away, group_of, GB) / count
        away = tl.where(mask, away - _to_channels(missed, group_of, GB), 0.0)
        variance = _group_sum(away * away, group_of, GB) / count
        rstd = reciprocal_root(variance + eps)
    else:
        mean, missed, rstd = _merge_parts(
            partial_ptr, n, group, num_groups, hw, part_size, eps, CPG, PARTS, PARTS_BLOCK
        )
    if part == 0:
        index = n.to(tl.int64) * num_groups + group
        tl.store(mean_ptr + index, mean + missed)
        tl.store(rstd_ptr + index, rstd)
    mean = _to_channels(mean, group_of, GB)
    missed = _to_channels(missed, group_of, GB)
    scale *= _to_channels(rstd, group_of, GB)
    channels = c1 + c2
    out_ptr += n.to(tl.int64) * channels * hw
    for start in range(begin, end, PB):
        position = start + tl.arange(0, PB)[None, :]
        if not ONCHIP:
            x = _read(x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position,
                      channel_mask, end, CHANNELS_LAST, HAS_X2, HAS_BIAS)  # fmt: skip
        y = ((x - mean) - missed) * scale + shift
        if SILU:
            y = y * sigmoid(y, out_ptr.dtype.element_ty == tl.float32)
        offset = _offset(channel, position, channels, hw, CHANNELS_LAST)
        tl.store(
            out_ptr + offset, y.to(out_ptr.dtype.element_ty), mask=channel_mask & (position < end)
        )


@triton.jit
def _sums_kernel(
    x_ptr, x2_ptr, bias_ptr, scale_ptr, shift_ptr, grad_ptr, mean_ptr, rstd_ptr, sums_ptr,
    bias_stride, scale_stride, shift_stride, c1, c2, hw, num_groups, part_size, total_rows,
    GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr, PARTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, HAS_X2: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Per sample, channel and part: sums of g * x_hat, g and x_hat, one writer a slot."""
    n, part = tl.program_id(0), tl.program_id(2)
    first_group = tl.program_id(1) * GB
    begin = part * part_size
    end = tl.minimum(begin + part_size, hw)
    channel, channel_mask, group_of = _channels(first_group, GB, CPG, CB)
    scale = _rows(scale_ptr, n, scale_stride, channel, channel_mask)
    shift = _rows(shift_ptr, n, shift_stride, channel, channel_mask)
    group = first_group + tl.arange(0, GB)
    index = n.to(tl.int64) * num_groups + group
    mean = tl.load(mean_ptr + index)
    rstd = tl.load(rstd_ptr + index)
    mean, rstd = _to_channels(mean, group_of, GB), _to_channels(rstd, group_of, GB)
    channels = c1 + c2
    grad_ptr += n.to(tl.int64) * channels * hw
    sum_gx = tl.zeros([CB], tl.float32)
    sum_g = tl.zeros([CB], tl.float32)
    sum_x = tl.zeros([CB], tl.float32)
    for start in range(begin, end, PB):
        position = start + tl.arange(0, PB)[None, :]
        mask = channel_mask & (position < end)
        x = _read(x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position,
                  channel_mask, end, CHANNELS_LAST, HAS_X2, HAS_BIAS)  # fmt: skip
        offset = _offset(channel, position, channels, hw, CHANNELS_LAST)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        x_hat = tl.where(mask, (x - mean) * rstd, 0.0)
        grad = _through_activation(
            x_hat, scale, shift, grad, SILU, grad_ptr.dtype.element_ty == tl.float32
        )
        sum_gx += tl.sum(grad * x_hat, axis=1)
        sum_g += tl.sum(grad, axis=1)
        sum_x += tl.sum(x_hat, axis=1)
    row = (n.to(tl.int64) * channels + channel) * PARTS + part
    tl.store(sums_ptr + row, sum_gx[:, None], mask=channel_mask)
    tl.store(sums_ptr + total_rows + row, sum_g[:, None], mask=channel_mask)
    tl.store(sums_ptr + 2 * total_rows + row, sum_x[:, None], mask=channel_mask)


@triton.jit
def _backward_kernel(
    x_ptr, x2_ptr, bias_ptr, scale_ptr, shift_ptr, grad_ptr, mean_ptr, rstd_ptr, sums_ptr,
    grad_x_ptr, grad_x2_ptr, grad_scale_ptr, grad_shift_ptr, grad_bias_ptr,
    bias_stride, scale_stride, shift_stride, c1, c2, hw, num_groups, part_size, total_rows,
    GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr, PARTS: tl.constexpr,
    ONCHIP: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_X2: tl.constexpr,
    HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """grad_x = rstd * (scale * g - mean(scale * g) - x_hat * mean(scale * g * x_hat))."""
    n, part = tl.program_id(0), tl.program_id(2)
    first_group = tl.program_id(1) * GB
    begin = part * part_size
    end = tl.minimum(begin + part_size, hw)
    channel, channel_mask, group_of = _channels(first_group, GB, CPG, CB)
    scale = _rows(scale_ptr, n, scale_stride, channel, channel_mask)
    shift = _rows(shift_ptr, n, shift_stride, channel, channel_mask)
    group = first_group + tl.arange(0, GB)
    index = n.to(tl.int64) * num_groups + group
    mean = tl.load(mean_ptr + index)
    rstd = tl.load(rstd_ptr + index)
    mean, rstd = _to_channels(mean, group_of, GB), _to_channels(rstd, group_of, GB)
    channels = c1 + c2
    grad_ptr += n.to(tl.int64) * channels * hw
    position = begin + tl.arange(0, PB)[None, :]
    mask = channel_mask & (position < end)
    x = _read(x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position, channel_mask,
              end, CHANNELS_LAST, HAS_X2, HAS_BIAS)  # fmt: skip
    offset = _offset(channel, position, channels, hw, CHANNELS_LAST)
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    x_hat = tl.where(mask, (x - mean) * rstd, 0.0)
    grad = _through_activation(
        x_hat, scale, shift, grad, SILU, grad_ptr.dtype.element_ty == tl.float32
    )
    if ONCHIP:
        sum_gx = tl.sum(grad * x_hat, axis=1)[:, None]
        sum_g = tl.sum(grad, axis=1)[:, None]
        sum_x = tl.sum(x_hat, axis=1)[:, None]
    else:
        i = tl.arange(0, PARTS)[None, :]
        row = (n.to(tl.int64) * channels + channel) * PARTS
        exists = channel_mask & (i * part_size < hw)
        sum_gx = _part_sum(sums_ptr, row, i, exists)
        sum_g = _part_sum(sums_ptr + total_rows, row, i, exists)
        sum_x = _part_sum(sums_ptr + 2 * total_rows, row, i, exists)
    count = tl.cast(CPG * hw, tl.float32)
    mean_g = _to_channels(_to_groups(scale * sum_g, group_of, GB) / count, group_of, GB)
    mean_gx = _to_channels(_to_groups(scale * sum_gx, group_of, GB) / count, group_of, GB)
    if part == 0:
        per_channel = n.to(tl.int64) * channels + channel
        tl.store(grad_scale_ptr + per_channel, sum_gx, mask=channel_mask)
        tl.store(grad_shift_ptr + per_channel, sum_g, mask=channel_mask)
        if HAS_BIAS:
            grad_bias = rstd * (scale * sum_g - mean_g * hw - mean_gx * sum_x)
            tl.store(
                grad_bias_ptr + n.to(tl.int64) * c1 + channel,
                grad_bias,
                mask=channel_mask & (channel < c1),
            )
    grad_x_ptr += n.to(tl.int64) * c1 * hw
    grad_x2_ptr += n.to(tl.int64) * c2 * hw
    for start in range(begin, end, PB):
        position = start + tl.arange(0, PB)[None, :]
        mask = channel_mask & (position < end)
        if not ONCHIP:
            x = _read(x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position,
                      channel_mask, end, CHANNELS_LAST, HAS_X2, HAS_BIAS)  # fmt: skip
            offset = _offset(channel, position, channels, hw, CHANNELS_LAST)
            grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            x_hat = (x - mean) * rstd
            grad = _through_activation(
                x_hat, scale, shift, grad, SILU, grad_ptr.dtype.element_ty == tl.float32
            )
        grad_x = rstd * (scale * grad - mean_g - x_hat * mean_gx)
        first = mask & (channel < c1) if HAS_X2 else mask
        offset = _offset(channel, position, c1, hw, CHANNELS_LAST)
        tl.store(grad_x_ptr + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=first)
        if HAS_X2:
            offset = _offset(channel - c1, position, c2, hw, CHANNELS_LAST)
            tl.store(
                grad_x2_ptr + offset,
                grad_x.to(grad_x2_ptr.dtype.element_ty),
                mask=mask & (channel >= c1),
            )


def _row_stride(rows: Tensor | None) -> int:
    return rows.stride(0) if rows is not None and rows.ndim == 2 else 0


def forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    x2: Tensor | None,
    bias: Tensor | None,
    plan,
    partial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mean, rstd): out like cat(x, x2), moments (N, num_groups) float32.

    `x` is contiguous or channels_last and `x2` in its layout; `plan` from `ops._norm_plan`.
    `partial`: partial moments of x, where they are known; the plan is then "split".
    """
    n, c1, h, w = x.shape
    c2 = 0 if x2 is None else x2.shape[1]
    hw, cpg = h * w, (c1 + c2) // num_groups
    channels_last = not x.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((n, c1 + c2, h, w), dtype=x.dtype, device=x.device, memory_format=layout)
    mean = torch.empty((n, num_groups), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if out.numel() == 0:
        return out, mean, rstd
    tile = blocks(plan, cpg, hw)
    parts = plan.parts if plan.kind == "split" else 1
    size = part_size(hw, parts)
    grid = (n, num_groups // plan.groups, parts)
    x2_, bias_ = (x if t is None else t for t in (x2, bias))
    if plan.kind == "onchip":
        partial = mean  # unread
    elif partial is None:
        partial = moments(x, x2, bias, num_groups, plan)
    launch(_forward_kernel, grid,
        x, x2_, bias_, scale, shift, out, mean, rstd, partial,
        _row_stride(bias), _row_stride(scale), _row_stride(shift), c1, c2, hw, num_groups, size,
        eps, PARTS=parts, PARTS_BLOCK=next_power_of_two(parts), ONCHIP=plan.kind == "onchip",
        CHANNELS_LAST=channels_last, HAS_X2=x2 is not None, HAS_BIAS=bias is not None, SILU=silu,
        **tile,
    )  # fmt: skip
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
    x2: Tensor | None,
    bias: Tensor | None,
    plan,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """(grad_x, grad_x2, grad_scale, grad_shift, grad_bias); the last three (N, .) float32.

    `grad_out` is in x's layout.
    """
    n, c1, h, w = x.shape
    c2 = 0 if x2 is None else x2.shape[1]
    num_groups = mean.shape[1]
    hw, cpg = h * w, (c1 + c2) // num_groups
    grad_x = torch.empty_like(x)
    grad_x2 = None if x2 is None else torch.empty_like(x2)
    grad_scale = torch.empty((n, c1 + c2), dtype=torch.float32, device=x.device)
    grad_shift = torch.empty_like(grad_scale)
    grad_bias = None if bias is None else grad_scale.new_empty((n, c1))
    if grad_out.numel() == 0:
        for grad in (grad_scale, grad_shift, grad_bias):
            if grad is not None:
                grad.zero_()
        return grad_x, grad_x2, grad_scale, grad_shift, grad_bias
    tile = blocks(plan, cpg, hw)
    parts = plan.parts if plan.kind == "split" else 1
    size = part_size(hw, parts)
    grid = (n, num_groups // plan.groups, parts)
    options = {"PARTS": parts, "CHANNELS_LAST": not x.is_contiguous(), "HAS_X2": x2 is not None,
               "HAS_BIAS": bias is not None, "SILU": silu, **tile}  # fmt: skip
    x2_, bias_, grad_x2_, grad_bias_ = (
        x if t is None else t for t in (x2, bias, grad_x2, grad_bias)
    )
    rows = n * (c1 + c2) * parts
    sizes = (_row_stride(bias), _row_stride(scale), _row_stride(shift), c1, c2, hw, num_groups,
             size, rows)  # fmt: skip
    sums = mean
    if plan.kind == "split":
        sums = torch.empty(3 * rows, dtype=torch.float32, device=x.device)
        launch(
            _sums_kernel,
            grid,
            x,
            x2_,
            bias_,
            scale,
            shift,
            grad_out,
            mean,
            rstd,
            sums,
            *sizes,
            **options,
        )
    launch(_backward_kernel, grid,
        x, x2_, bias_, scale, shift, grad_out, mean, rstd, sums,
        grad_x, grad_x2_, grad_scale, grad_shift, grad_bias_, *sizes,
        ONCHIP=plan.kind == "onchip", **options,
    )  # fmt: skip
    return grad_x, grad_x2, grad_scale, grad_shift, grad_bias


def _aot(
    kernel, groups: int, cpg: int, positions: int, warps: int, narrow: tuple = (), **options
) -> tuple:
    """One entry of AOT: the kernel for one kind of tile."""
    float32 = ("mean_ptr", "rstd_ptr", "partial_ptr", "sums_ptr", "grad_scale_ptr",
               "grad_shift_ptr", "grad_bias_ptr")  # fmt: skip
    constants = {"GB": groups, "CPG": cpg, "CB": next_power_of_two(groups * cpg), "PB": positions,
                 "PARTS": 1, "PARTS_BLOCK": 8, "ONCHIP": True, "CHANNELS_LAST": False,
                 "HAS_X2": True, "HAS_BIAS": True, "SILU": True, **options}  # fmt: skip
    signature = {}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            signature[name] = "*fp32" if name in float32 else "*T"
        elif name not in constants:
            signature[name] = "fp32" if name == "eps" else "i32"
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    return kernel, signature, constants, {"num_warps": warps, "narrow": narrow}


# What tests/test_compiled_code.py compiles ahead of time: tiles of 16x16 maps, both layouts, 12
# channels a group, two sources; and the form cut along H*W.
AOT = (
    _aot(_forward_kernel, 1, 4, 256, 1),
    _aot(_forward_kernel, 4, 12, 256, 16, CHANNELS_LAST=True),
    _aot(_backward_kernel, 1, 4, 256, 1),
    _aot(_backward_kernel, 4, 12, 64, 4, CHANNELS_LAST=True),
    # The moments and sums of a tile are a few numbers.
    _aot(_moments_kernel, 8, 4, 128, 4, ("stores",), PARTS=8, CHANNELS_LAST=True),
    _aot(_forward_kernel, 8, 4, 128, 4, PARTS=8, ONCHIP=False, CHANNELS_LAST=True),
    _aot(_sums_kernel, 1, 4, 1024, 4, ("stores",), PARTS=8),
    _aot(_backward_kernel, 1, 4, 1024, 4, PARTS=8, ONCHIP=False),
)
