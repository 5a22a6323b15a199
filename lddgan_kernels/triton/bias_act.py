"""Triton kernels of `ops.bias_act`.

A tensor is seen as rows: of one channel each where planes are contiguous, else of all channels.
The gradient's sums over pixels go to one partial per program, added up afterwards in fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch

_ROWS = 16  # rows of all channels that one program of the backward walks


@triton.jit
def _act(u, SILU: tl.constexpr):
    if SILU:
        out = u * tl.sigmoid(u)
    else:
        out = tl.where(u > 0, u, u * 0.2)
    return out


@triton.jit
def _bias_act_kernel(
    x_ptr,
    bias_ptr,
    out_ptr,
    count,
    channels,
    plane,
    SILU: tl.constexpr,
    INNERMOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    if INNERMOST:
        channel = offsets % channels
    else:
        channel = offsets // plane % channels
    x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    u = x + tl.load(bias_ptr + channel, mask=mask).to(tl.float32)
    tl.store(out_ptr + offsets, _act(u, SILU).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(grad, u, SILU: tl.constexpr):
    if SILU:
        s = tl.sigmoid(u)
        out = grad * (s + s * (u * (1 - s)))
    else:
        out = tl.where(u > 0, grad, grad * 0.2)
    return out


@triton.jit
def _bias_act_backward_rows_kernel(
    grad_ptr,
    x_ptr,
    bias_ptr,
    grad_x_ptr,
    partial_ptr,
    channels,
    plane,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program a plane: its row of one channel.
    row = tl.program_id(0).to(tl.int64)
    bias = tl.load(bias_ptr + row % channels).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, plane, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < plane
        at = row * plane + columns
        u = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad_x = _gradient(grad, u, SILU)
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        total += grad_x
    tl.store(partial_ptr + row, tl.sum(total, 0))


@triton.jit
def _bias_act_backward_columns_kernel(
    grad_ptr,
    x_ptr,
    bias_ptr,
    grad_x_ptr,
    partial_ptr,
    rows,
    channels,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program a run of rows and a block of channels.
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    chunk = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(ROWS):
        row = chunk * ROWS + i
        # Compared as a block: Triton 3.9's interpreter mistakes a scalar's truth for a number.
        mask = inside & (row + tl.zeros((BLOCK,), tl.int64) < rows)
        at = row * channels + columns
        u = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad_x = _gradient(grad, u, SILU)
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        total += grad_x
    tl.store(partial_ptr + chunk * channels + columns, total, mask=inside)


def _innermost(x: Tensor) -> bool:
    """Whether channels are the innermost dimension in memory; `x` is dense."""
    return x.ndim == 2 or not x.is_contiguous()


def _plane(x: Tensor) -> int:
    return x.shape[2] * x.shape[3] if x.ndim == 4 else 1


def forward(x: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """`x`: dense (N, C, H, W) or (N, C); `bias`: contiguous (C,)."""
    out = torch.empty_like(x)
    if x.numel():
        block, channels = 1024, x.shape[1]
        launch(
            _bias_act_kernel,
            (triton.cdiv(x.numel(), block),),
            *(x, bias, out, x.numel(), channels, _plane(x)),
            SILU=silu,
            INNERMOST=_innermost(x),
            BLOCK=block,
        )
    return out


def backward(grad: Tensor, x: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """`grad`, `x`: dense, equal strides; (gradient of x, gradient of the bias in float32)."""
    grad_x = torch.empty_like(x)
    channels = x.shape[1]
    if not x.numel():
        return grad_x, bias.new_zeros(channels, dtype=torch.float32)
    plane = _plane(x)
    if _innermost(x):
        rows, block = x.numel() // channels, min(1024, triton.next_power_of_2(channels))
        chunks = triton.cdiv(rows, _ROWS)
        partial = torch.empty(chunks, channels, device=x.device, dtype=torch.float32)
        launch(
            _bias_act_backward_columns_kernel,
            (chunks, triton.cdiv(channels, block)),
            *(grad, x, bias, grad_x, partial, rows, channels),
            SILU=silu,
            ROWS=_ROWS,
            BLOCK=block,
        )
    else:
        partial = torch.empty(x.shape[0], channels, device=x.device, dtype=torch.float32)
        launch(
            _bias_act_backward_rows_kernel,
            (partial.numel(),),
            *(grad, x, bias, grad_x, partial, channels, plane),
            SILU=silu,
            BLOCK=min(1024, triton.next_power_of_2(plane)),
        )
    return grad_x, partial.sum(0)


_POINTERS = {"grad_ptr": "*T", "x_ptr": "*T", "bias_ptr": "*T", "grad_x_ptr": "*T"}
_FORWARD = {"x_ptr": "*T", "bias_ptr": "*T", "out_ptr": "*T"}
_FORWARD |= dict.fromkeys(("count", "channels", "plane"), "i32")
# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
AOT = (
    (_bias_act_kernel, _FORWARD, {"SILU": True, "INNERMOST": True, "BLOCK": 1024}),
    (_bias_act_kernel, _FORWARD, {"SILU": False, "INNERMOST": False, "BLOCK": 1024}),
    (
        _bias_act_backward_rows_kernel,
        {**_POINTERS, "partial_ptr": "*fp32", "channels": "i32", "plane": "i32"},
        {"SILU": True, "BLOCK": 1024},
    ),
    (
        _bias_act_backward_columns_kernel,
        {**_POINTERS, "partial_ptr": "*fp32", "rows": "i32", "channels": "i32"},
        {"SILU": True, "ROWS": _ROWS, "BLOCK": 1024},
    ),
)
