"""How close a network's call comes to what the machine can do, and what it keeps in memory."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks._harness import device, time_once
from lddgan_kernels.nn.summary import Summary, summarize

# Parts of the names of operators that are convolutions or matrix products.
PRODUCTS = ("conv3x3", "convolution", "conv2d", "addmm", "::mm", "bmm", "linear", "attention_for")


def peak_flops(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device().type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    return 2 * size**3 / min(time_once(torch.matmul, (a, b), 1) for _ in range(6))


def roofline(
    build: Callable[[], nn.Module],
    shapes: Sequence[tuple[int, ...]],
    batch: int,
    dtype: torch.dtype,
    bandwidth: float,
) -> dict:
    """The least seconds a call of a network can take on this machine; see `least_seconds`."""
    peak, network = peak_flops(dtype), summarize(build, shapes)
    seconds = least_seconds(network, batch, dtype, peak, bandwidth)
    return {
        "flops": 2 * network.macs * batch,
        "peak_flops_per_second": peak,
        "roofline_seconds": seconds,
    }


def least_seconds(
    network: Summary, batch: int, dtype: torch.dtype, peak: float, bandwidth: float
) -> float:
    """The least seconds of a network's call, block by block.

    A block takes as long as its multiplications at `peak` operations a second, or as its weights,
    input and output (counted as large as the output) at `bandwidth` bytes a second.
    """
    seconds = 0.0
    for row in network.rows:
        values = row.parameters + 2 * batch * math.prod(row.output)
        seconds += max(2 * row.macs * batch / peak, values * dtype.itemsize / bandwidth)
    return seconds


def breakdown(call: Callable[[], object], runs: int, steps: int) -> dict:
    """Where the time of a call goes: seconds, share outside products, microseconds an operator.

    `call` makes `steps` calls of the network, and the figures are of one. On a GPU an operator's
    time is that of the kernels that it launches.
    """
    gpu = device().type == "cuda"
    clock = (torch.empty(0, device=device()),)
    for _ in range(3):
        call()
    seconds = sorted(time_once(lambda _: call(), clock, 1) for _ in range(runs))[runs // 2]
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]
    with profile(activities=activities) as found:
        for _ in range(runs):
            call()
        if gpu:
            torch.cuda.synchronize()
    rows = [row for row in found.key_averages() if row.device_type.name == "CPU"]
    times = {
        row.key: row.self_device_time_total if gpu else row.self_cpu_time_total for row in rows
    }
    seconds /= steps
    spent = {name: us / runs / steps for name, us in times.items()}
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
