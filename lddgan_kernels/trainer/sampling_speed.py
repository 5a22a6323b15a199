"""How long a system takes for 100 images, as the papers measure it, and in how much memory."""

import resource
import statistics
import sys
import time

import torch

from lddgan_kernels.trainer.system import System

BATCH = 100
WARM_UP = 3  # the second call of a size is recorded


def sampling_speed(system: System, repeat: int) -> dict[str, float | int | str]:
    """Seconds for a batch of 100 images, noise and decoder included, on the system's device.

    The batch goes through `repeat` times after a warm-up; the median and the least count. The
    pictures stay on the device, as in the papers' figures. Memory: on a GPU the most that PyTorch
    held while sampling, on a CPU the most that the process ever held.
    """
    from tqdm import tqdm

    device, seeds = system.device, torch.arange(BATCH)
    on_gpu = device.type == "cuda"
    times = []
    for call in tqdm(range(WARM_UP + repeat), desc="100 images", disable=None, delay=2):
        if on_gpu:
            torch.cuda.synchronize(device)
            if call == WARM_UP:
                torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        system.draw(seeds)
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    median = statistics.median(times[WARM_UP:])
    unit = 1 if sys.platform == "darwin" else 1024
    peak = (
        torch.cuda.max_memory_allocated(device)
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    )
    return {
        "calls": system.calls,
        "batch": BATCH,
        "repeat": repeat,
        "seconds_per_batch": median,
        "seconds_per_batch_least": min(times[WARM_UP:]),
        "images_per_second": BATCH / median,
        "memory_mib": round(peak / 2**20, 1),
        "memory_of": "sampling, on the GPU" if on_gpu else "the whole process",
    }
