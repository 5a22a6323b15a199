"""Triton kernels of `ops.pixel_norm`: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch


@triton.jit
def _pixel_norm_kernel(
    z_ptr, grad_ptr, out_ptr, length, BACKWARD: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * length
    columns = tl.arange(0, BLOCK)
    mask = columns < length
    z = tl.load(z_ptr + row + columns, mask=mask, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(z * z, 0) / length + 1e-8)
    if BACKWARD:
        grad = tl.load(grad_ptr + row + columns, mask=mask, other=0.0).to(tl.float32)
        out = grad - z * (tl.sum(grad * z, 0) / length * factor * factor)
    else:
        out = z
    tl.store(out_ptr + row + columns, (out * factor).to(out_ptr.dtype.element_ty), mask=mask)


def _launch(z: Tensor, grad: Tensor | None) -> Tensor:
    out = torch.empty_like(z)
    if z.numel():
        length = z.shape[1]
        launch(
            _pixel_norm_kernel,
            (z.shape[0],),
            *(z, z if grad is None else grad, out, length),
            BACKWARD=grad is not None,
            BLOCK=triton.next_power_of_2(length),
        )
    return out


def forward(z: Tensor) -> Tensor:
    """`z`: contiguous (N, D)."""
    return _launch(z, None)


def backward(grad: Tensor, z: Tensor) -> Tensor:
    """`grad`, `z`: contiguous (N, D); the gradient of `z`."""
    return _launch(z, grad)


_SIGNATURE = {"z_ptr": "*T", "grad_ptr": "*T", "out_ptr": "*T", "length": "i32"}
# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
AOT = tuple(
    (_pixel_norm_kernel, _SIGNATURE, {"BACKWARD": backward, "BLOCK": 1024})
    for backward in (False, True)
)
