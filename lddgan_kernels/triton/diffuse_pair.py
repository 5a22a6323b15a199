"""Triton kernel of `ops.diffuse_pair`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch
from lddgan_kernels.triton._noise import batch_of, elements, normals, plan, table_at


@triton.jit(do_not_specialize=["stream_t", "stream_next", "step"])
def _diffuse_pair_kernel(
    x0_ptr,
    t_ptr,
    a_s_ptr,
    sigmas_ptr,
    a_s_cum_ptr,
    sigmas_cum_ptr,
    seeds_ptr,
    noise_t_ptr,
    noise_next_ptr,
    x_t_ptr,
    x_next_ptr,
    num_steps,
    programs,
    channels,
    pixels,
    stream_t,
    stream_next,
    step,
    GIVEN: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, counters, offsets, mask = elements(programs, channels, pixels, LAYOUT, CHANNELS, BLOCK)
    t = tl.load(t_ptr + sample)
    x0 = tl.load(x0_ptr + offsets, mask=mask).to(tl.float32)
    if GIVEN:
        noise_t = tl.load(noise_t_ptr + offsets, mask=mask).to(tl.float32)
        noise_next = tl.load(noise_next_ptr + offsets, mask=mask).to(tl.float32)
    else:
        seed = tl.load(seeds_ptr + sample)
        noise_t = normals(counters, seed, stream_t, step, LAYOUT)
        noise_next = normals(counters, seed, stream_next, step, LAYOUT)
    a_cum = table_at(a_s_cum_ptr, t, num_steps, 0)
    sigma_cum = table_at(sigmas_cum_ptr, t, num_steps, 0)
    a = table_at(a_s_ptr, t, num_steps, 1)
    sigma = table_at(sigmas_ptr, t, num_steps, 1)
    x_t = a_cum * x0 + sigma_cum * noise_t
    x_next = a * x_t + sigma * noise_next
    dtype = x_t_ptr.dtype.element_ty
    tl.store(x_t_ptr + offsets, x_t.to(dtype), mask=mask)
    tl.store(x_next_ptr + offsets, x_next.to(dtype), mask=mask)


def forward(
    x0: Tensor,
    t: Tensor,
    a_s: Tensor,
    sigmas: Tensor,
    a_s_cum: Tensor,
    sigmas_cum: Tensor,
    seeds: Tensor | None,
    noise_t: Tensor | None,
    noise_next: Tensor | None,
    stream_t: int,
    stream_next: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """`x0` and the noises: dense, equal strides; `t`, `seeds`: contiguous; two tensors like x0."""
    x_t, x_next = torch.empty_like(x0), torch.empty_like(x0)
    if x0.numel():
        batch, pixel_major = batch_of(x0)
        programs, constants = plan(batch, pixel_major)
        launch(
            _diffuse_pair_kernel,
            (batch[0] * programs,),
            *(x0, t, a_s, sigmas, a_s_cum, sigmas_cum),
            # Those not given stand for nothing.
            *(t, noise_t, noise_next) if seeds is None else (seeds, x0, x0),
            *(x_t, x_next, len(a_s) - 1, programs, batch[1], batch[2]),
            *(stream_t, stream_next, step),
            GIVEN=seeds is None,
            **constants,
        )
    return x_t, x_next


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
_TENSORS = ("x0_ptr", "noise_t_ptr", "noise_next_ptr", "x_t_ptr", "x_next_ptr")
_TABLES = ("a_s_ptr", "sigmas_ptr", "a_s_cum_ptr", "sigmas_cum_ptr")
_SIGNATURE = {
    name: "*T" if name in _TENSORS else "*fp32" if name in _TABLES else "*i64"
    for name in _diffuse_pair_kernel.arg_names[:11]
} | dict.fromkeys(_diffuse_pair_kernel.arg_names[11:18], "i32")
_FLAT = {"LAYOUT": 0, "CHANNELS": 1, "BLOCK": 256}
AOT = (
    (_diffuse_pair_kernel, _SIGNATURE, {"GIVEN": False, **_FLAT}),
    (_diffuse_pair_kernel, _SIGNATURE, {"GIVEN": True, **_FLAT}),
    (
        _diffuse_pair_kernel,
        _SIGNATURE,
        {"GIVEN": False, "LAYOUT": 2, "CHANNELS": 4, "BLOCK": 256},
        {"narrow": ("bf16", "fp16")},  # the four channels of a pixel: 8 bytes
    ),
)
