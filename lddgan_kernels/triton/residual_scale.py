"""Triton kernel of `ops.residual_scale`: one pass over dense tensors of one layout.

A tensor is read as rows: whole channels (contiguous), or positions of all channels (channels_last).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch, next_power_of_two

BLOCK = 1024  # elements a program


@triton.jit
def _residual_scale_kernel(
    x_ptr,
    h_ptr,
    h2_ptr,
    bias_ptr,
    out_ptr,
    count,
    length,
    channels,
    factor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNERMOST: tl.constexpr,
):
    pieces = tl.cdiv(length, COLUMNS)
    row = (tl.program_id(0) // pieces).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % pieces) * COLUMNS + tl.arange(0, COLUMNS)
    offsets = row[:, None] * length + column[None, :]
    mask = (column < length)[None, :] & (offsets < count)
    out = tl.load(h_ptr + offsets, mask=mask).to(tl.float32)
    if bias_ptr is not None:
        if INNERMOST:
            bias = tl.load(bias_ptr + column, mask=column < length, other=0.0)[None, :]
        else:
            bias = tl.load(bias_ptr + row % channels)[:, None]
        out += bias.to(tl.float32)
    out += tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    if h2_ptr is not None:
        out += tl.load(h2_ptr + offsets, mask=mask).to(tl.float32)
    tl.store(out_ptr + offsets, (out * factor).to(out_ptr.dtype.element_ty), mask=mask)


def forward(x: Tensor, h: Tensor, h2: Tensor | None, bias: Tensor | None, factor: float) -> Tensor:
    """`x`, `h`, `h2`: dense, equal strides; returns a tensor like x."""
    out = torch.empty_like(x)
    count = x.numel()
    if count == 0:
        return out
    innermost = not x.is_contiguous()
    channels = 1 if bias is None else x.shape[1]
    length = BLOCK
    if bias is not None:
        length = channels if innermost else x.shape[2] * x.shape[3]
        bias = bias.contiguous()
    columns = min(next_power_of_two(length), BLOCK)
    rows = BLOCK // columns
    blocks = triton.cdiv(triton.cdiv(count, length), rows) * triton.cdiv(length, columns)
    launch(
        _residual_scale_kernel,
        (blocks,),
        x,
        h,
        h2,
        bias,
        out,
        count,
        length,
        channels,
        factor,
        rows,
        columns,
        innermost,
    )
    return out


_POINTERS = {"x_ptr": "*T", "h_ptr": "*T", "out_ptr": "*T"}
_NUMBERS = {"count": "i32", "length": "i32", "channels": "i32", "factor": "fp32"}
_ALL = _POINTERS | {"h2_ptr": "*T", "bias_ptr": "*T"} | _NUMBERS
_NONE = {"h2_ptr": None, "bias_ptr": None}

# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
AOT = (
    (
        _residual_scale_kernel,
        _POINTERS | _NUMBERS,
        {**_NONE, "ROWS": 1, "COLUMNS": BLOCK, "INNERMOST": False},
    ),
    (_residual_scale_kernel, _ALL, {"ROWS": 8, "COLUMNS": 128, "INNERMOST": True}),
    (_residual_scale_kernel, _ALL, {"ROWS": 4, "COLUMNS": 256, "INNERMOST": False}),
)
