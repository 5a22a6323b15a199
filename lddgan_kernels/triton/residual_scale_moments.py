"""Triton kernel of `ops.residual_scale.residual_scale_moments`: the sum, and moments of it.

Tiles and partial moments are those of `ada_group_norm`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch
from lddgan_kernels.triton._norm_moments import (
    _add_chunk,
    _chunk_moments,
    _store_part,
    blocks,
    part_size,
)
from lddgan_kernels.triton._norm_tile import _channels, _offset


@triton.jit
def _residual_moments_kernel(
    x_ptr, h_ptr, h2_ptr, bias_ptr, out_ptr, partial_ptr,
    channels, hw, num_groups, part_size, factor,
    GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr, PARTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Writes one part of the sum, chunk by chunk, and leaves its moments."""
    n, part = tl.program_id(0), tl.program_id(2)
    first_group = tl.program_id(1) * GB
    begin = part * part_size
    end = tl.minimum(begin + part_size, hw)
    channel, channel_mask, group_of = _channels(first_group, GB, CPG, CB)
    sample = n.to(tl.int64) * channels * hw
    mean = tl.zeros([GB], tl.float32)
    m2 = tl.zeros([GB], tl.float32)
    seen = 0.0
    for start in range(begin, end, PB):
        position = start + tl.arange(0, PB)[None, :]
        mask = channel_mask & (position < end)
        offset = sample + _offset(channel, position, channels, hw, CHANNELS_LAST)
        out = tl.load(h_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            out += tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
        out += tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if h2_ptr is not None:
            out += tl.load(h2_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        rounded = (out * factor).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offset, rounded, mask=mask)
        size = (tl.minimum(PB, end - start) * CPG).to(tl.float32)
        value = tl.where(mask, rounded.to(tl.float32), 0.0)
        chunk_mean, chunk_m2 = _chunk_moments(value, mask, group_of, size, GB)
        mean, m2, seen = _add_chunk(mean, m2, seen, chunk_mean, chunk_m2, size)
    group = first_group + tl.arange(0, GB)
    _store_part(partial_ptr, n, num_groups, group, part, mean, m2, PARTS)


def forward(
    x: Tensor,
    h: Tensor,
    h2: Tensor | None,
    bias: Tensor | None,
    factor: float,
    num_groups: int,
    plan,
) -> tuple[Tensor, Tensor]:
    """(sum, partial moments); `x`, `h`, `h2` as for `residual_scale.forward`, images.

    `plan` from `ops._norm_plan.moments_plan`.
    """
    n, c, height, width = x.shape
    hw, cpg, parts = height * width, c // num_groups, plan.parts
    out = torch.empty_like(x)
    partial = torch.empty((n, num_groups, parts, 2), dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out, partial.zero_()
    launch(_residual_moments_kernel, (n, num_groups // plan.groups, parts),
        x, h, h2, None if bias is None else bias.contiguous(), out, partial,
        c, hw, num_groups, part_size(hw, parts), factor,
        PARTS=parts, CHANNELS_LAST=not x.is_contiguous(), **blocks(plan, cpg, hw),
    )  # fmt: skip
    return out, partial


_NUMBERS = {"channels": "i32", "hw": "i32", "num_groups": "i32", "part_size": "i32"}
_SIGNATURE = {
    **dict.fromkeys(("x_ptr", "h_ptr", "h2_ptr", "bias_ptr", "out_ptr"), "*T"),
    "partial_ptr": "*fp32",
    **_NUMBERS,
    "factor": "fp32",
}
_PLAIN = {name: type_ for name, type_ in _SIGNATURE.items() if name not in ("h2_ptr", "bias_ptr")}

# What tests/test_compiled_code.py compiles ahead of time, in both layouts: 16x16 maps; chunks of
# larger ones.
AOT = (
    (
        _residual_moments_kernel,
        _PLAIN,
        {"h2_ptr": None, "bias_ptr": None, "GB": 4, "CPG": 4, "CB": 16, "PB": 256, "PARTS": 1,
         "CHANNELS_LAST": False},
        {"num_warps": 4},
    ),
    (
        _residual_moments_kernel,
        _SIGNATURE,
        {"GB": 8, "CPG": 4, "CB": 32, "PB": 128, "PARTS": 8, "CHANNELS_LAST": True},
        {"num_warps": 4},
    ),
)  # fmt: skip
