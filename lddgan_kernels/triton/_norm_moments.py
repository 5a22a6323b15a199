"""Partial moments of the Triton kernels: who takes them, who merges them.

Those of a tensor are float32 (N, groups, parts, 2): of a group's channels and a part's pixels the
mean, and the sum of squared deviations from it. Slots of empty parts hold zeros.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch, next_power_of_two, reciprocal_root
from lddgan_kernels.triton._norm_tile import _channels, _group_sum, _read, _to_channels

# Elements of a tile that a program walks over when a plan is "split".
SPLIT_TILE = 4096


def part_size(hw: int, parts: int) -> int:
    """Pixels of a part: whole 8s, as csrc/cuda/moments.cuh has it."""
    return ((hw + 7) // 8 + parts - 1) // parts * 8


def blocks(plan, cpg: int, hw: int) -> dict[str, int]:
    """The block sizes of a plan, powers of two, and the number of warps."""
    cb = next_power_of_two(plan.groups * cpg)
    pb = next_power_of_two(hw)
    if plan.kind == "split":
        pb = min(next_power_of_two(part_size(hw, plan.parts)), max(SPLIT_TILE // cb, 1))
    warps = next_power_of_two(max(1, min(16, cb * pb // 1024)))
    return {"GB": plan.groups, "CPG": cpg, "CB": cb, "PB": pb, "num_warps": warps}


@triton.jit
def _chunk_moments(x, mask, group_of, size, GB: tl.constexpr):
    """(mean, sum of squared deviations) of a tile whose groups have `size` elements: (GB,) each."""
    mean = _group_sum(x, group_of, GB) / size
    # The deviations add up to what the rounded mean missed, far from zero too.
    away = tl.where(mask, x - _to_channels(mean, group_of, GB), 0.0)
    missed = _group_sum(away, group_of, GB) / size
    away = tl.where(mask, away - _to_channels(missed, group_of, GB), 0.0)
    return mean + missed, _group_sum(away * away, group_of, GB)


@triton.jit
def _add_chunk(mean, m2, seen, chunk_mean, chunk_m2, size):
    """Moments of `seen` elements and of `size` more, merged (Chan)."""
    total = seen + size
    away = chunk_mean - mean
    return mean + away * (size / total), m2 + chunk_m2 + away * away * (seen * size / total), total


@triton.jit
def _store_part(partial_ptr, n, num_groups, group, part, mean, m2, PARTS: tl.constexpr):
    row = (n.to(tl.int64) * num_groups + group) * PARTS + part
    tl.store(partial_ptr + row * 2, mean)
    tl.store(partial_ptr + row * 2 + 1, m2)


@triton.jit
def _moments_kernel(
    x_ptr, x2_ptr, bias_ptr, partial_ptr, bias_stride, c1, c2, hw, num_groups, part_size,
    GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr, PARTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, HAS_X2: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The moments of one part, chunk by chunk."""
    n, part = tl.program_id(0), tl.program_id(2)
    first_group = tl.program_id(1) * GB
    begin = part * part_size
    end = tl.minimum(begin + part_size, hw)
    channel, channel_mask, group_of = _channels(first_group, GB, CPG, CB)
    mean = tl.zeros([GB], tl.float32)
    m2 = tl.zeros([GB], tl.float32)
    seen = 0.0
    for start in range(begin, end, PB):
        position = start + tl.arange(0, PB)[None, :]
        x = _read(x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position,
                  channel_mask, end, CHANNELS_LAST, HAS_X2, HAS_BIAS)  # fmt: skip
        size = (tl.minimum(PB, end - start) * CPG).to(tl.float32)
        mask = channel_mask & (position < end)
        chunk_mean, chunk_m2 = _chunk_moments(x, mask, group_of, size, GB)
        mean, m2, seen = _add_chunk(mean, m2, seen, chunk_mean, chunk_m2, size)
    group = first_group + tl.arange(0, GB)
    _store_part(partial_ptr, n, num_groups, group, part, mean, m2, PARTS)


@triton.jit
def _merge_parts(
    partial_ptr, n, group, num_groups, hw, part_size, eps, CPG: tl.constexpr, PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
):  # fmt: skip
    """(mean, what it missed, rstd) of the groups `group` (GB,) of sample n.

    The mean is that of the first part: data far from zero keeps its digits. Groups past num_groups
    must not be asked for.
    """
    i = tl.arange(0, PARTS_BLOCK)[None, :]
    first = (n.to(tl.int64) * num_groups + group) * PARTS
    left = hw - i * part_size
    exists = (i < PARTS) & (left > 0)
    row = first[:, None] + i
    mean = tl.load(partial_ptr + first * 2)
    part_mean = tl.load(partial_ptr + row * 2, mask=exists, other=0.0)
    part_m2 = tl.load(partial_ptr + row * 2 + 1, mask=exists, other=0.0)
    size = (tl.minimum(part_size, tl.maximum(left, 0)) * CPG).to(tl.float32)
    count = tl.cast(CPG * hw, tl.float32)
    away = tl.where(exists, part_mean - mean[:, None], 0.0)
    missed = tl.sum(away * size, axis=1) / count
    away -= missed[:, None]
    variance = tl.sum(tl.where(exists, part_m2 + size * away * away, 0.0), axis=1) / count
    return mean, missed, reciprocal_root(variance + eps)


def moments(x: Tensor, x2: Tensor | None, bias: Tensor | None, num_groups: int, plan) -> Tensor:
    """Partial moments (N, num_groups, plan.parts, 2) of cat(x + bias, x2).

    `x` is contiguous or channels_last and `x2` in its layout; `plan` is a "split" one of
    `ops._norm_plan`, and no tensor is empty.
    """
    n, c1, h, w = x.shape
    c2 = 0 if x2 is None else x2.shape[1]
    hw, cpg, parts = h * w, (c1 + c2) // num_groups, plan.parts
    partial = torch.empty((n, num_groups, parts, 2), dtype=torch.float32, device=x.device)
    x2_, bias_ = (x if t is None else t for t in (x2, bias))
    launch(_moments_kernel, (n, num_groups // plan.groups, parts),
        x, x2_, bias_, partial, 0 if bias is None else bias.stride(0), c1, c2, hw, num_groups,
        part_size(hw, parts), PARTS=parts, CHANNELS_LAST=not x.is_contiguous(),
        HAS_X2=x2 is not None, HAS_BIAS=bias is not None, **blocks(plan, cpg, hw),
    )  # fmt: skip
    return partial
