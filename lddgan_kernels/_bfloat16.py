"""Whether a device multiplies bfloat16 itself; emulated, it is many times slower than float32."""

import functools
import os
import platform
import time

import torch
import torch.nn.functional as F

# Values of ONEDNN_MAX_CPU_ISA that leave oneDNN without instructions that multiply bfloat16.
_ISAS_WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE",
                 "AVX512_CORE_VNNI")  # fmt: skip


def multiplies_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether it does, and why or why not in a few words, to follow a colon."""
    if device.type == "cpu":
        return _cpu_multiplies()
    if device.type != "cuda":
        return False, f"nothing is known of {device.type}"
    with torch.cuda.device(device):
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, f"{name} multiplies bfloat16"
    return False, f"{name} has no bfloat16 units (compute capability 8.0 and up have)"


@functools.cache
def _cpu_multiplies() -> tuple[bool, str]:
    if not torch.backends.mkldnn.is_available():
        return False, "this PyTorch is built without oneDNN"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in _ISAS_WITHOUT:
        return False, f"ONEDNN_MAX_CPU_ISA={limit} has no bfloat16 instructions"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False, "oneDNN finds no bfloat16 instructions on this processor"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True, "oneDNN finds bfloat16 instructions on this processor"
    # With AVX-512 alone oneDNN says yes and emulates.
    if torch.cpu._is_amx_tile_supported():
        return True, "the processor has bfloat16 matrix units (AMX)"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the processor has AVX512-BF16"
    return False, "the processor has neither AVX512-BF16 nor AMX"


def slowdown(device: torch.device) -> float:
    """The time of a small convolution in bfloat16 over that in float32, measured now."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(4, 64, 16, 16, device=device, dtype=dtype)
        weight = torch.ones(64, 64, 3, 3, device=device, dtype=dtype)
        best = float("inf")
        for _ in range(4):  # the first makes the kernel
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1).sum().item()
            best = min(best, time.perf_counter() - start)
        times[dtype] = best
    return times[torch.bfloat16] / times[torch.float32]
