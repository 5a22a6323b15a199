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
from collections.abc import Callable
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


# What sweeps on an H200 showed (channels_last, bfloat16). A program's start costs as much as moving
# this many bytes: it takes neighbouring groups until it has them, while others fill the device.
_ENOUGH_BYTES = 24 * 1024
# A cluster's meeting costs about a microsecond: pieces of less than this are not cut further,
_LEAST_PIECE = 16 * 1024
# and where memory is what bounds, pieces of more overlap too little.
_MOST_PIECE = 64 * 1024
# A memory sector: rows of less are fetched twice, which only tiny tiles on an idle device can bear.
_SECTOR = 32
# Programs per multiprocessor that keep its memory pipeline full.
_WAVES = 2


# Channels of a block, at most, where a group can be cut (csrc/cuda/norm_launch.cuh).
_WIDTH = 1024


@dataclass(frozen=True)
class DeviceSize:
    """What the planner knows of a GPU.

    Attributes:
        multiprocessors: how many it has.
        shared_bytes: of a block, at most.
        max_cluster: blocks of a cluster, at most; 1: it has none.
    """

    multiprocessors: int
    shared_bytes: int
    max_cluster: int

    @property
    def shared_by_two(self) -> int:
        """Bytes of a block, at most, of which a multiprocessor holds two (CUDA keeps 1 KB each)."""
        return (self.shared_bytes + 1024) // 2 - 1024


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
        properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # not in the stubs
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
            _plan(problem, 4, itemsize, channels_last, _in_registers(64 * 1024), device, 1),
            _plan(problem, 4, itemsize, channels_last, _in_registers(32 * 1024), device, 1),
        )
    forward, backward = (
        # backward holds x and the incoming gradient
        _plan(
            problem,
            held * itemsize,
            itemsize,
            channels_last,
            functools.partial(_in_shared, held, itemsize, channels_last),
            device,
            device.max_cluster,
        )
        for held in (1, 2)
    )
    most = max(split_bytes(plan, problem, itemsize, channels_last) for plan in (forward, backward))
    if most > device.shared_bytes:
        raise RuntimeError(
            f"ada_group_norm: groups of {problem[1]} channels do not fit this GPU on backend "
            "'cuda', use backend='triton'"
        )
    return forward, backward


def _in_registers(capacity: int) -> "Fits":
    """Whether a tile fits, in float32."""

    def fits(problem: tuple[int, int, int, int], groups: int, parts: int, limit: int) -> bool:
        _, cpg, _, hw = problem
        return min(part_size(hw, parts), hw) * groups * cpg * 4 <= capacity

    return fits


def _in_shared(
    held: int,
    itemsize: int,
    channels_last: bool,
    problem: tuple[int, int, int, int],
    groups: int,
    parts: int,
    limit: int,
) -> bool:
    return max(onchip_bytes(problem, groups, parts, held, itemsize, channels_last)) <= limit


def onchip_bytes(
    problem: tuple[int, int, int, int],
    groups: int,
    parts: int,
    held: int,
    itemsize: int,
    channels_last: bool,
) -> tuple[int, ...]:
    """Shared bytes of a block on chip: what csrc/cuda asks for (`held`: 1 forward, 2 backward).

    By its rules of packs and threads, for tensors without packs and, where shapes allow, with.
    """
    _, cpg, _, hw = problem
    channels = groups * cpg
    tile = channels * min(part_size(hw, parts), hw)
    rows = 4 * channels + 7 * groups if held == 1 else 11 * channels + 4 * groups
    found = []
    for vector in (1, 16 // itemsize):
        if (channels if channels_last else hw) % vector == 0:
            pixels = None if channels_last else max(part_size(hw, parts), 1)
            writers = _writers(held * tile, channels, vector, pixels)
            sums = (held + 1) * channels * writers
            found.append((sums + rows + 3) // 4 * 16 + held * tile * itemsize)
    return tuple(found)


def split_bytes(
    plan: NormPlan, problem: tuple[int, int, int, int], itemsize: int, channels_last: bool
) -> int:
    """The most shared bytes of a block of the kernels of a "split" plan; 0 on chip."""
    if plan.kind == "onchip":
        return 0
    _, cpg, _, hw = problem
    channels = plan.groups * cpg
    width = min(channels, _WIDTH)
    tile = channels * min(part_size(hw, plan.parts), hw)
    found = [5 * width + 4 * plan.groups]
    for vector in (1, 16 // itemsize):
        if (channels if channels_last else hw) % vector == 0:
            pixels = None if channels_last else max(part_size(hw, plan.parts), 1)
            found.append(channels * (2 * _writers(tile, channels, vector, pixels) + 1))
            found.append(width * (3 * _writers(2 * tile, width, vector, pixels) + 4))
    return 4 * max(found)


def _writers(loads: int, channels: int, vector: int, pixels: int | None) -> int:
    """Threads that leave sums of one channel, by norm_cut of csrc/cuda/norm_launch.cuh.

    `loads`: elements that a block reads; `pixels`: of a part in the contiguous layout, else None.
    """
    packs = loads // vector
    threads = 256 if packs >= 4096 else 128 if packs >= 512 else 64
    if pixels is None:
        columns = channels // vector
        return threads // 32 if 32 % columns == 0 else threads // min(columns, threads)
    teams = threads // min(1 << (-(-pixels // vector) - 1).bit_length(), 32)
    return teams // min(channels, teams)


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


# Whether a tile fits on chip: (problem, groups, parts, shared bytes of a block at most).
Fits = Callable[[tuple[int, int, int, int], int, int, int], bool]


def _plan(
    problem: tuple[int, int, int, int],
    held: int,
    itemsize: int,
    channels_last: bool,
    fits: Fits,
    device: DeviceSize,
    max_cluster: int,
) -> NormPlan:
    n, cpg, num_groups, hw = problem
    groups = _groups(problem, held, itemsize, channels_last, device)
    tile = groups * cpg * hw * held
    programs = n * num_groups // groups
    cluster = 1
    while cluster < min(max_cluster, -(-hw // 8)) and (
        not fits(problem, groups, cluster, device.shared_by_two)
        or tile > cluster * _MOST_PIECE
        or (programs * cluster < device.multiprocessors and tile > cluster * _LEAST_PIECE)
    ):
        cluster *= 2
    fills = programs * cluster * 2 >= device.multiprocessors or tile <= _ENOUGH_BYTES
    if fits(problem, groups, cluster, device.shared_bytes) and (cluster > 1 or fills):
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

    def programs() -> int:  # with twice the groups; 0: there are no more
        return n * num_groups // (2 * groups) if num_groups % (2 * groups) == 0 else 0

    if channels_last:
        row, size = cpg * itemsize, cpg * hw * held
        while programs() and groups * row % 16 != 0:  # whole packs
            groups *= 2
        while programs() and groups * row < _SECTOR:
            if programs() < device.multiprocessors and groups * size <= _LEAST_PIECE // 2:
                break
            groups *= 2
        while programs() and groups * row < 2 * _SECTOR:
            if programs() < device.multiprocessors and groups * size <= 4 * _MOST_PIECE:
                break
            groups *= 2
    while (
        programs() >= _WAVES * device.multiprocessors
        and groups * cpg * hw * held < _ENOUGH_BYTES
        and groups * cpg * itemsize < 8 * _SECTOR
    ):
        groups *= 2
    return groups


def _parts(programs: int, tile: int, hw: int, device: DeviceSize) -> int:
    """Pieces of H*W that let so many programs of so many bytes fill the device."""
    wanted = max(1, -(-_WAVES * device.multiprocessors // max(programs, 1)), tile // _MOST_PIECE)
    largest = max(1, tile // (_LEAST_PIECE // 2))
    return min(*(1 << (size - 1).bit_length() for size in (wanted, largest, -(-hw // 8))), 64)
