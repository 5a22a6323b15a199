"""Triton kernel of `ops.seeded_normal`."""

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch
from lddgan_kernels.triton._noise import elements, normals, plan


@triton.jit(do_not_specialize=["stream", "step"])
def _seeded_normal_kernel(
    seeds_ptr,
    out_ptr,
    programs,
    channels,
    pixels,
    stream,
    step,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, counters, offsets, mask = elements(programs, channels, pixels, LAYOUT, CHANNELS, BLOCK)
    seed = tl.load(seeds_ptr + sample)
    noise = normals(counters, seed, stream, step, LAYOUT)
    tl.store(out_ptr + offsets, noise.to(out_ptr.dtype.element_ty), mask=mask)


def forward(
    shape: Sequence[int],
    seeds: Tensor,
    stream: int,
    step: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`seeds`: contiguous; returns a tensor of `shape` and `dtype` on their device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(shape, dtype=dtype, device=seeds.device, memory_format=layout)
    if out.numel():
        batch = shape[0], 1, prod(shape[1:])
        pixel_major = channels_last and not out.is_contiguous()
        if pixel_major:
            batch = shape[0], shape[1], shape[2] * shape[3]
        programs, constants = plan(batch, pixel_major)
        launch(
            _seeded_normal_kernel,
            (batch[0] * programs,),
            seeds,
            out,
            programs,
            batch[1],
            batch[2],
            stream,
            step,
            **constants,
        )
    return out


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
_SIGNATURE = {
    "seeds_ptr": "*i64",
    "out_ptr": "*T",
    "programs": "i32",
    "channels": "i32",
    "pixels": "i32",
    "stream": "i32",
    "step": "i32",
}
AOT = (
    (
        _seeded_normal_kernel,
        _SIGNATURE,
        {"LAYOUT": 0, "CHANNELS": 1, "BLOCK": 256},
        {"narrow": ("loads",)},
    ),
    (
        _seeded_normal_kernel,
        _SIGNATURE,
        {"LAYOUT": 2, "CHANNELS": 4, "BLOCK": 256},
        {"narrow": ("loads", "bf16", "fp16")},  # the four channels of a pixel: 8 bytes
    ),
)
