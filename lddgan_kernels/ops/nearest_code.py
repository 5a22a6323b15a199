"""Nearest code: vector quantisation of a latent, without the matrix of all distances.

For each pixel's vector z of a VQ autoencoder the code e_k that minimises |z - e_k|^2 (van den Oord
et al. 2017, "Neural discrete representation learning", equation 1). The indices are those of a
search in float64 for the least sum of squared differences, where |z|^2 + |e|^2 - 2 z.e in float32
loses digits; ties go to the lowest index. Dtypes float32, bfloat16,
float16 (reference: float64). Gradient: straight-through, that of the quantised latent passes to z
unchanged (their equation 3 gives the codebook its own loss; it gets none here).
"""

from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select, transformed
from lddgan_kernels._checks import (
    check_image,
    check_tensor,
    dense,
    fail,
    like_layout,
    memory_format,
)

KERNELS = ("triton", "cpu")

# Codes and vectors that the reference compares at a time.
_CODES, _VECTORS = 256, 4096


def nearest_code(
    z: Tensor, codebook: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Each pixel of z replaced by its nearest code, and that code's index.

    Args:
        z: (N, D, H, W) float32/bfloat16/float16, contiguous or channels_last.
        codebook: (K, D), K >= 1, of z's dtype or float32.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (quantised, indices): a tensor like z, in z's dtype and layout, with z's gradient; and int64
        (N, H, W). A pixel that is not finite gets index 0.

    Raises:
        ValueError: a shape, dtype or device does not fit. RuntimeError: a named backend cannot run.
    """
    _check(z, codebook)
    chosen = select("nearest_code", z, backend, KERNELS)
    codebook = codebook.detach()
    if transformed():
        quantised, indices = _forward(z.detach(), codebook, chosen)
        return quantised + (z - z.detach()), indices
    if torch.is_grad_enabled() and z.requires_grad:
        return _NearestCode.apply(z, codebook, chosen)
    return _forward(z, codebook, chosen)


def nearest_code_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, without a gradient; the oracle in float64."""
    n, d, h, w = z.shape
    vectors = z.permute(0, 2, 3, 1).reshape(n * h * w, d).double()
    codes = codebook.double().T.contiguous()
    if torch.compiler.is_compiling():  # of a batch whose size is not known yet
        indices = _search(vectors, codes)
    else:
        indices = torch.cat([_search(part, codes) for part in vectors.split(_VECTORS)])
    found = codebook.index_select(0, indices).to(z.dtype)
    found = like_layout(found.view(n, h, w, d).permute(0, 3, 1, 2), memory_format(z))
    return found, indices.view(n, h, w)


def _search(vectors: Tensor, codes: Tensor) -> Tensor:
    """The lowest index of the least squared distance, (M, D) and (D, K) -> (M,)."""
    least = torch.full_like(vectors[:, 0], torch.inf)
    index = torch.zeros_like(least, dtype=torch.int64)
    for first in range(0, codes.shape[1], _CODES):
        some = codes[:, first : first + _CODES]
        distance = vectors.new_zeros(())
        for i in range(some.shape[0]):
            distance = distance + (vectors[:, i, None] - some[i]).square()
        # A non-finite vector is at no finite distance of any code.
        found, at = torch.where(distance.isnan(), torch.inf, distance).min(1)
        index = torch.where(found < least, at + first, index)
        least = torch.minimum(found, least)
    return index


class _NearestCode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        quantised, indices = _forward(z, codebook, backend)
        ctx.mark_non_differentiable(indices)
        return quantised, indices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


def _forward(z: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return nearest_code_reference(z, codebook)
    z = dense(z)
    if backend == "triton":
        from lddgan_kernels.triton import nearest_code as kernel

        return kernel.forward(z, codebook.contiguous())
    return torch.ops.lddgan.nearest_code.default(z, codebook)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::nearest_code")
    def _(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        n, _, h, w = z.shape
        return torch.empty_like(z), z.new_empty((n, h, w), dtype=torch.int64)


def _check(z: Tensor, codebook: Tensor) -> None:
    check_image("nearest_code", "z", z)
    check_tensor("nearest_code", "codebook", codebook)
    d = z.shape[1]
    if d < 1:
        raise fail("nearest_code", "z", "of at least one channel", tuple(z.shape))
    if codebook.ndim != 2 or codebook.shape[0] < 1 or codebook.shape[1] != d:
        raise fail("nearest_code", "codebook", f"of shape (K >= 1, {d})", tuple(codebook.shape))
    if (codebook.dtype != z.dtype and codebook.dtype != torch.float32) or (
        codebook.device != z.device
    ):
        raise fail(
            "nearest_code",
            "codebook",
            f"{z.dtype} or torch.float32 on {z.device} like z",
            f"{codebook.dtype} on {codebook.device}",
        )
