"""How close a network's call comes to what the machine can do, and what it keeps in memory."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lddgan_kernels.models.summary import summarize

# Parts of the names of operators that are convolutions or matrix products.
PRODUCTS = ("conv3x3", "convolution", "conv2d", "addmm", "::mm", "bmm", "linear", "attention_for")


def peak_flops(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a large matrix product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def roofline(
    build: Callable[[], nn.Module],
    shapes: Sequence[tuple[int, ...]],
    batch: int,
    dtype: torch.dtype,
    bandwidth: float,
) -> dict:
    """The least seconds a call of a network can take on this machine, block by block.

    A block takes as long as its multiplications at the speed of a large matrix product, or as its
    weights, input and output (counted as large as the output) at the speed of a copy.
    """
    peak, seconds, flops = peak_flops(dtype), 0.0, 0
    for row in summarize(build, shapes).rows:
        work = 2 * row.macs * batch
        values = row.parameters + 2 * batch * math.prod(row.output)
        seconds += max(work / peak, values * dtype.itemsize / bandwidth)
        flops += work
    return {"flops": flops, "peak_flops_per_second": peak, "roofline_seconds": seconds}


def breakdown(call: Callable[[], object], runs: int) -> dict:
    """Where the time of a call goes: seconds, share outside products, microseconds an operator."""
    for _ in range(3):
        call()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(runs):
            call()
    seconds = sorted(times)[runs // 2]
    spent = {row.key: row.self_cpu_time_total / runs for row in found.key_averages()}
    products = sum(us for name, us in spent.items() if any(part in name for part in PRODUCTS))
    largest = sorted(spent.items(), key=lambda item: -item[1])[:12]
    return {
        "call_seconds": seconds,
        "share_outside_products": max(0.0, 1 - products / 1e6 / seconds),
        "microseconds_by_operator": {name: round(us, 1) for name, us in largest},
    }


def allocated(call: Callable[[], object]) -> tuple[int, int]:
    """(most bytes alive at once that a call allocates, bytes that are alive after it)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = call()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    del result
    return peak, live
