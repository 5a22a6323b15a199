"""Triton kernel of `ops.nearest_code`: a block of pixels against all codes, a tile at a time.

Distances are taken in float64 and from the differences, as the reference takes them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lddgan_kernels.triton._common import launch

_PIXELS, _CODES = 32, 32


@triton.jit
def _nearest_code_kernel(
    z_ptr,
    codebook_ptr,
    quantised_ptr,
    indices_ptr,
    pixels,
    plane,
    depth,
    codes,
    LAST: tl.constexpr,
    PIXELS: tl.constexpr,
    CODES: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    if LAST:
        base, stride = pixel * depth, 1
    else:
        base, stride = pixel // plane * depth * plane + pixel % plane, plane
    best = tl.full((PIXELS,), float("inf"), tl.float64)
    index = tl.zeros((PIXELS,), tl.int64)
    for start in range(0, codes, CODES):
        code = start + tl.arange(0, CODES)
        distance = tl.zeros((PIXELS, CODES), tl.float64)
        for d in range(0, depth):
            z = tl.load(z_ptr + base + d * stride, mask=inside, other=0.0).to(tl.float64)
            e = tl.load(codebook_ptr + code * depth + d, mask=code < codes, other=float("inf"))
            difference = z[:, None] - e.to(tl.float64)[None, :]
            distance += difference * difference
        # What is not a number is at no finite distance.
        distance = tl.where(distance == distance, distance, float("inf"))
        least = tl.min(distance, 1)
        found = tl.where(distance == least[:, None], code[None, :], codes)
        first = tl.min(found, 1)
        closer = least < best
        best = tl.where(closer, least, best)
        index = tl.where(closer, first.to(tl.int64), index)
    tl.store(indices_ptr + pixel, index, mask=inside)
    for d in range(0, depth):
        value = tl.load(codebook_ptr + index * depth + d, mask=inside)
        out = value.to(quantised_ptr.dtype.element_ty)
        tl.store(quantised_ptr + base + d * stride, out, mask=inside)


def forward(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """`z`: dense (N, D, H, W); `codebook`: contiguous (K, D); (quantised, indices)."""
    n, d, h, w = z.shape
    quantised = torch.empty_like(z)
    indices = torch.empty((n, h, w), dtype=torch.int64, device=z.device)
    if indices.numel():
        launch(
            _nearest_code_kernel,
            (triton.cdiv(indices.numel(), _PIXELS),),
            *(z, codebook, quantised, indices),
            *(indices.numel(), h * w, d, codebook.shape[0]),
            LAST=not z.is_contiguous(),
            PIXELS=_PIXELS,
            CODES=_CODES,
        )
    return quantised, indices


# What tests/test_compiled_code.py compiles ahead of time: (kernel, signature, constants).
AOT = (
    (
        _nearest_code_kernel,
        {
            "z_ptr": "*T",
            "codebook_ptr": "*T",
            "quantised_ptr": "*T",
            "indices_ptr": "*i64",
            "pixels": "i32",
            "plane": "i32",
            "depth": "i32",
            "codes": "i32",
        },
        {"LAST": False, "PIXELS": _PIXELS, "CODES": _CODES},
        # A pixel a lane and a code a lane; it computes, it does not move.
        {"narrow": ("loads", "stores"), "unaligned": ("depth",)},
    ),
)
