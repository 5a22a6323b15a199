"""Triton kernels of `ops.posterior_sample`: the draw, and its gradients in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch
from lddgan_kernels.triton._noise import batch_of, elements, normals, plan, table_at


@triton.jit(do_not_specialize=["stream", "step"])
def _posterior_sample_kernel(
    x0_ptr,
    x_next_ptr,
    t_ptr,
    coef1_ptr,
    coef2_ptr,
    log_variance_ptr,
    seeds_ptr,
    noise_ptr,
    out_ptr,
    num_steps,
    programs,
    channels,
    pixels,
    stream,
    step,
    GIVEN: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, counters, offsets, mask = elements(programs, channels, pixels, LAYOUT, CHANNELS, BLOCK)
    t = tl.load(t_ptr + sample)
    c1 = table_at(coef1_ptr, t, num_steps, 0)
    c2 = table_at(coef2_ptr, t, num_steps, 0)
    deviation = tl.exp(0.5 * table_at(log_variance_ptr, t, num_steps, 0))
    deviation = tl.where(t == 0, 0.0, deviation)
    x0 = tl.load(x0_ptr + offsets, mask=mask).to(tl.float32)
    x_next = tl.load(x_next_ptr + offsets, mask=mask).to(tl.float32)
    if GIVEN:
        noise = tl.load(noise_ptr + offsets, mask=mask).to(tl.float32)
    else:
        noise = normals(counters, tl.load(seeds_ptr + sample), stream, step, LAYOUT)
    out = c1 * x0 + c2 * x_next + deviation * noise
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _posterior_sample_backward_kernel(
    grad_ptr,
    t_ptr,
    coef1_ptr,
    coef2_ptr,
    grad_x0_ptr,
    grad_x_next_ptr,
    num_steps,
    programs,
    size,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0) // programs
    offsets = (tl.program_id(0) % programs).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    base = sample.to(tl.int64) * size
    t = tl.load(t_ptr + sample)
    grad = tl.load(grad_ptr + base + offsets, mask=mask).to(tl.float32)
    grad_x0 = table_at(coef1_ptr, t, num_steps, 0) * grad
    grad_x_next = table_at(coef2_ptr, t, num_steps, 0) * grad
    dtype = grad_x0_ptr.dtype.element_ty
    tl.store(grad_x0_ptr + base + offsets, grad_x0.to(dtype), mask=mask)
    tl.store(grad_x_next_ptr + base + offsets, grad_x_next.to(dtype), mask=mask)


def forward(
    x0: Tensor,
    x_next: Tensor,
    t: Tensor,
    coef1: Tensor,
    coef2: Tensor,
    log_variance: Tensor,
    seeds: Tensor | None,
    noise: Tensor | None,
    stream: int,
    step: int,
) -> Tensor:
    """`x0`, `x_next`, `noise`: dense, equal strides; `t`, `seeds`: contiguous; like x0."""
    out = torch.empty_like(x0)
    if out.numel():
        batch, pixel_major = batch_of(x0)
        programs, constants = plan(batch, pixel_major)
        launch(
            _posterior_sample_kernel,
            (batch[0] * programs,),
            *(x0, x_next, t, coef1, coef2, log_variance),
            # The one not given stands for nothing.
            *(t if seeds is None else seeds, x0 if noise is None else noise, out),
            *(len(coef1), programs, batch[1], batch[2], stream, step),
            GIVEN=noise is not None,
            **constants,
        )
    return out


def backward(grad: Tensor, t: Tensor, coef1: Tensor, coef2: Tensor) -> tuple[Tensor, Tensor]:
    """`grad`: dense; returns (coef1[t] grad, coef2[t] grad)."""
    grad_x0, grad_x_next = torch.empty_like(grad), torch.empty_like(grad)
    if grad.numel():
        size, block = grad.numel() // len(t), 1024
        programs = triton.cdiv(size, block)
        launch(
            _posterior_sample_backward_kernel,
            (len(t) * programs,),
            *(grad, t, coef1, coef2, grad_x0, grad_x_next),
            *(len(coef1), programs, size),
            BLOCK=block,
        )
    return grad_x0, grad_x_next


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
_SIGNATURE = {
    "x0_ptr": "*T",
    "x_next_ptr": "*T",
    "t_ptr": "*i64",
    "coef1_ptr": "*fp32",
    "coef2_ptr": "*fp32",
    "log_variance_ptr": "*fp32",
    "seeds_ptr": "*i64",
    "noise_ptr": "*T",
    "out_ptr": "*T",
    "num_steps": "i32",
    "programs": "i32",
    "channels": "i32",
    "pixels": "i32",
    "stream": "i32",
    "step": "i32",
}
_FLAT = {"LAYOUT": 0, "CHANNELS": 1, "BLOCK": 256}
AOT = (
    (_posterior_sample_kernel, _SIGNATURE, {"GIVEN": False, **_FLAT}),
    (_posterior_sample_kernel, _SIGNATURE, {"GIVEN": True, **_FLAT}),
    (
        _posterior_sample_kernel,
        _SIGNATURE,
        {"GIVEN": False, "LAYOUT": 2, "CHANNELS": 4, "BLOCK": 256},
        {"narrow": ("bf16", "fp16")},  # the four channels of a pixel: 8 bytes
    ),
    (
        _posterior_sample_backward_kernel,
        {
            "grad_ptr": "*T",
            "t_ptr": "*i64",
            "coef1_ptr": "*fp32",
            "coef2_ptr": "*fp32",
            "grad_x0_ptr": "*T",
            "grad_x_next_ptr": "*T",
            "num_steps": "i32",
            "programs": "i32",
            "size": "i32",
        },
        {"BLOCK": 1024},
    ),
)
