"""Triton kernels of `ops.minibatch_stddev`.

Elements of a sample are walked in blocks; each program takes one block of one set for all its
members. Sums over blocks are added up afterwards in fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch

_BLOCK = 1024


@triton.jit
def _wide_offset(offsets, channels, plane, LAST: tl.constexpr):
    # Where an element of a sample of x lies in a sample with one channel more.
    if LAST:
        out = offsets // channels * (channels + 1) + offsets % channels
    else:
        out = offsets
    return out


@triton.jit
def _moments(x_ptr, base, stride, offsets, mask, members):
    # The first member is subtracted first: differences from it are exact far from zero.
    first = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
    mean = tl.zeros_like(first)
    for m in range(1, members):
        x = tl.load(x_ptr + base + m * stride + offsets, mask=mask, other=0.0).to(tl.float32)
        mean += x - first
    mean = mean / members
    var = mean * mean
    for m in range(1, members):
        x = tl.load(x_ptr + base + m * stride + offsets, mask=mask, other=0.0).to(tl.float32)
        var += (x - first - mean) * (x - first - mean)
    return first, mean, tl.sqrt(var / members + 1e-8)


@triton.jit
def _minibatch_stddev_kernel(
    x_ptr,
    out_ptr,
    partial_ptr,
    members,
    sets,
    channels,
    plane,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(1).to(tl.int64)
    size = index * 0 + channels * plane  # a tensor, also where both are one
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    _, _, std = _moments(x_ptr, index * size, sets * size, offsets, mask, members)
    total = tl.sum(tl.where(mask, std, 0.0), 0)
    tl.store(partial_ptr + index * tl.num_programs(0) + tl.program_id(0), total)
    wide = size + plane
    at = _wide_offset(offsets, channels, plane, LAST)
    for m in range(0, members):
        sample = m * sets + index
        x = tl.load(x_ptr + sample * size + offsets, mask=mask)
        tl.store(out_ptr + sample * wide + at, x, mask=mask)


@triton.jit
def _minibatch_stddev_backward_kernel(
    grad_ptr,
    x_ptr,
    factor_ptr,
    grad_x_ptr,
    members,
    sets,
    channels,
    plane,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(1).to(tl.int64)
    size = index * 0 + channels * plane  # a tensor, also where both are one
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    first, mean, std = _moments(x_ptr, index * size, sets * size, offsets, mask, members)
    factor = tl.load(factor_ptr + index) / std
    wide = size + plane
    at = _wide_offset(offsets, channels, plane, LAST)
    for m in range(0, members):
        sample = m * sets + index
        x = tl.load(x_ptr + sample * size + offsets, mask=mask).to(tl.float32)
        grad = tl.load(grad_ptr + sample * wide + at, mask=mask).to(tl.float32)
        grad_x = grad + factor * (x - first - mean)
        out = grad_x.to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + sample * size + offsets, out, mask=mask)


def forward(x: Tensor, members: int) -> Tensor:
    """`x`: dense (N, C, H, W), N a multiple of `members`."""
    n, c, h, w = x.shape
    last = not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    out = torch.empty((n, c + 1, h, w), dtype=x.dtype, device=x.device, memory_format=layout)
    if x.numel():
        sets, blocks = n // members, triton.cdiv(c * h * w, _BLOCK)
        partial = torch.empty(sets, blocks, device=x.device, dtype=torch.float32)
        launch(
            _minibatch_stddev_kernel,
            (blocks, sets),
            *(x, out, partial, members, sets, c, h * w),
            LAST=last,
            BLOCK=_BLOCK,
        )
        statistic = partial.sum(1) / (c * h * w)
        out.view(members, sets, c + 1, h, w)[:, :, c].copy_(statistic[:, None, None])
    return out


def backward(grad: Tensor, x: Tensor, members: int) -> Tensor:
    """`grad`: of the output, in x's layout; the gradient of `x`."""
    n, c, h, w = x.shape
    grad_x = torch.empty_like(x)
    if x.numel():
        sets = n // members
        # d statistic / d x = (x - mean) / (std * members * C * H * W)
        above = grad[:, c].view(members, sets, h * w).sum((0, 2), dtype=torch.float32)
        launch(
            _minibatch_stddev_backward_kernel,
            (triton.cdiv(c * h * w, _BLOCK), sets),
            *(grad, x, above / (members * c * h * w), grad_x, members, sets, c, h * w),
            LAST=not x.is_contiguous(),
            BLOCK=_BLOCK,
        )
    return grad_x


_SIZES = dict.fromkeys(("members", "sets", "channels", "plane"), "i32")
# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
AOT = (
    (
        _minibatch_stddev_kernel,
        {"x_ptr": "*T", "out_ptr": "*T", "partial_ptr": "*fp32", **_SIZES},
        {"LAST": False, "BLOCK": _BLOCK},
        {"unaligned": ("members", "sets")},
    ),
    (
        _minibatch_stddev_backward_kernel,
        {"grad_ptr": "*T", "x_ptr": "*T", "factor_ptr": "*fp32", "grad_x_ptr": "*T", **_SIZES},
        {"LAST": False, "BLOCK": _BLOCK},
        {"unaligned": ("members", "sets")},
    ),
)
