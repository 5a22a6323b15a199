"""How the GPU kernels of `ada_group_norm` cut a problem into programs, and what that moves.

One planner serves Triton, CUDA C++ and `explain`. It knows shapes and the device's size only: no
list of channel counts.

- "onchip": one program (CUDA: a block, or a cluster of blocks on sm_90) holds whole groups of one
  sample on chip; x is read once and the result written once.
- "split": groups too large for that, or too few of them to fill the device, are cut along H*W: a
  first kernel leaves partial moments, a second merges them and applies; x is read twice.

Pieces of H*W are whole 8s of pixels, so the last ones may be empty.
"""

import functools
from dataclasses import dataclass

import torch

from lddgan_kernels import _extension


@dataclass(frozen=True)
class NormPlan:
    """How one call is cut; see the module's docstring for the kinds.

    Attributes:
        kind: "onchip" or "split".
        groups: neighbouring groups that one program takes.
        parts: into how many pieces H*W is cut (cluster blocks when on chip).
        passes: how often x (and, backward, the incoming gradient) is read.
    """

    kind: str
    groups: int
    parts: int
    passes: int


# A program that moves fewer bytes than this spends its time starting.
_LEAST_BYTES = 8 * 1024
# Programs per multiprocessor that keep its memory pipeline full.
_WAVES = 2


@dataclass(frozen=True)
class DeviceSize:
    """What the planner knows of a GPU: multiprocessors, shared bytes of a block, cluster blocks."""

    multiprocessors: int
    shared_bytes: int
    max_cluster: int


@functools.cache
def device_size(device: torch.device) -> DeviceSize:
    """Of a CUDA device; off one (Triton's interpreter, tests) an H200's."""
    if device.type != "cuda":
        return DeviceSize(132, 232448, 8)
    properties = torch.cuda.get_device_properties(device)
    # Clusters by what was compiled: sm_80 code runs on sm_90, but has none.
    code = _extension.cuda_code_for(10 * properties.major + properties.minor)
    return DeviceSize(
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
        8 if code >= 90 else 1,
    )


def part_size(hw: int, parts: int) -> int:
    """Pixels of a part, by the rule of the kernels (csrc/cuda/moments.cuh)."""
    return ((hw + 7) // 8 + parts - 1) // parts * 8


@functools.lru_cache(maxsize=1024)
def plan_norm(
    problem: tuple[int, int, int, int],
    itemsize: int,
    channels_last: bool,
    backend: str,
    device: DeviceSize,
) -> tuple[NormPlan, NormPlan]:
    """The plans of one shape, forward and backward.

    Args:
        problem: samples, channels of a group, groups, H*W.
        itemsize: bytes of an element in memory.
        channels_last: whether neighbouring groups share cache lines.
        backend: "cuda" holds tiles in shared memory, "triton" in registers as float32.
        device: the GPU's size.
    """
    if backend == "triton":
        # 32 elements a thread: forward of 16 warps, backward of 8 (it holds two tiles).
        return (
            _plan(problem, 4, itemsize, channels_last, 64 * 1024, device, 1),
            _plan(problem, 4, itemsize, channels_last, 32 * 1024, device, 1),
        )
    # What is left of a block's shared memory beside sums and rows.
    capacity = device.shared_bytes - 64 * 1024
    return tuple(
        _plan(
            problem, held * itemsize, itemsize, channels_last, capacity, device, device.max_cluster
        )
        for held in (1, 2)  # backward holds x and the incoming gradient
    )  # type: ignore[return-value]


def gpu_plans(
    x: torch.Tensor, channels2: int, num_groups: int, backend: str
) -> tuple[NormPlan, NormPlan]:
    """How "cuda" or "triton" cuts the forward and the backward pass.

    `channels2` are those read as if concatenated to x.
    """
    n, c, h, w = x.shape
    return plan_norm(
        (n, (c + channels2) // num_groups, num_groups, h * w),
        x.element_size(),
        not x.is_contiguous(),
        backend,
        device_size(x.device),
    )


def plan_numbers(plans: tuple[NormPlan, NormPlan]) -> list[int]:
    """Both plans as the native operators take them."""
    return [n for plan in plans for n in (plan.kind == "onchip", plan.groups, plan.parts)]


def _plan(
    problem: tuple[int, int, int, int],
    held: int,
    itemsize: int,
    channels_last: bool,
    capacity: int,
    device: DeviceSize,
    max_cluster: int,
) -> NormPlan:
    n, cpg, num_groups, hw = problem
    groups = _groups(problem, held, itemsize, channels_last, device)
    tile = groups * cpg * hw * held
    programs = n * num_groups // groups
    cluster = 1
    while cluster < min(max_cluster, -(-hw // 8)) and (
        tile > cluster * capacity
        or (programs * cluster < device.multiprocessors and tile > 2 * cluster * _LEAST_BYTES)
    ):
        cluster *= 2
    fills = programs * cluster * 2 >= device.multiprocessors or tile <= 4 * _LEAST_BYTES
    fits = min(part_size(hw, cluster), hw) * groups * cpg * held <= capacity
    if fits and (cluster > 1 or fills):
        return NormPlan("onchip", groups, cluster, 1)
    return NormPlan("split", groups, _parts(programs, tile, hw, device), 2)


@functools.lru_cache(maxsize=1024)
def moments_plan(
    problem: tuple[int, int, int, int], itemsize: int, channels_last: bool, device: DeviceSize
) -> NormPlan:
    """How a kernel is cut that leaves partial moments of what it writes: one pass, no tile kept.

    Args:
        problem, itemsize, channels_last, device: as for `plan_norm`.

    Returns:
        A plan of kind "split"; the moments are (N, groups of the norm, `parts`, 2). Whoever takes
        moments reads the number of parts off their shape.
    """
    n, cpg, num_groups, hw = problem
    groups = _groups(problem, itemsize, itemsize, channels_last, device)
    programs, tile = n * num_groups // groups, groups * cpg * hw * itemsize
    return NormPlan("split", groups, _parts(programs, tile, hw, device), 1)


@functools.lru_cache(maxsize=1024)
def apply_plan(
    problem: tuple[int, int, int, int],
    itemsize: int,
    channels_last: bool,
    parts: int,
    device: DeviceSize,
) -> NormPlan:
    """How a norm is cut that is given `parts` partial moments; the rest as for `moments_plan`."""
    groups = moments_plan(problem, itemsize, channels_last, device).groups
    return NormPlan("split", groups, parts, 1)


def _groups(
    problem: tuple[int, int, int, int],
    held: int,
    itemsize: int,
    channels_last: bool,
    device: DeviceSize,
) -> int:
    """Neighbouring groups that make a program worth starting, and its accesses whole."""
    n, cpg, num_groups, hw = problem
    groups = 1
    if channels_last:
        # Rows of at least 64 bytes, so that a memory sector is not fetched for a part of it.
        while num_groups % (groups * 2) == 0 and groups * cpg * itemsize < 64:
            groups *= 2
    while (
        num_groups % (groups * 2) == 0
        and groups * cpg * hw * held < _LEAST_BYTES
        and n * num_groups // (groups * 2) >= _WAVES * device.multiprocessors
    ):
        groups *= 2
    return groups


def _parts(programs: int, tile: int, hw: int, device: DeviceSize) -> int:
    """Pieces of H*W that let so many programs of so many bytes fill the device."""
    wanted = max(1, -(-_WAVES * device.multiprocessors // max(programs, 1)))
    largest = max(1, tile // _LEAST_BYTES)
    return min(*(1 << (size - 1).bit_length() for size in (wanted, largest, -(-hw // 8))), 64)
