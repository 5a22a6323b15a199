"""Pixel norm: out = z / sqrt(mean(z^2) + 1e-8), each row to unit mean square.

The first layer of the mapping network (Karras et al. 2018, "Progressive growing of GANs", section
4.2). Taken in float32. Dtypes float32, bfloat16, float16 (reference: float64). Gradient: first
order.
"""

import torch
from torch import Tensor

from lddgan_kernels._backend import select
from lddgan_kernels._checks import check_float, check_tensor, fail

KERNELS = ()

EPS = 1e-8


def pixel_norm(z: Tensor, *, backend: str | None = None) -> Tensor:
    """z / sqrt(mean z^2 + 1e-8), the mean over dim 1.

    Args:
        z: (N, D) float32/bfloat16/float16.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, D) of z's dtype.

    Raises:
        ValueError: z does not fit. RuntimeError: a named backend cannot run.
    """
    check_tensor("pixel_norm", "z", z)
    if z.ndim != 2 or z.shape[1] < 1:
        raise fail("pixel_norm", "z", "of shape (N, D >= 1)", tuple(z.shape))
    check_float("pixel_norm", "z", z)
    select("pixel_norm", z, backend, KERNELS)
    return pixel_norm_reference(z)


def pixel_norm_reference(z: Tensor) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    wide = z if z.dtype == torch.float64 else z.float()
    return (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + EPS)).to(z.dtype)
