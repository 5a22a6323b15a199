"""Standard normal noise as a function of each sample's seed: Philox4x32-10 and Box-Muller.

The noise that `diffuse_pair` and `posterior_sample` make inside, as a tensor (see `_philox.py` for
the definition). A sample's noise depends on its seed, the stream and the step only: not on the
batch, the layout, the device or the backend (which agree within 2e-6). dtypes float32, bfloat16,
float16 (reference: float64); the latter are the float32 noise, rounded. No gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import FLOAT_DTYPES, check_tensor, fail
from lddgan_kernels.ops._philox import normal_reference
from lddgan_kernels.ops._steps import check_seeds, check_word

KERNELS = ("cuda", "triton", "cpu")


def seeded_normal(
    shape: Sequence[int],
    seeds: Tensor,
    stream: int,
    *,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str | None = None,
) -> Tensor:
    """Normal noise of the given shape, one sample for each seed.

    Args:
        shape: (N, ...), of any rank; at most 2^34 elements a sample.
        seeds: (N,) int64, any values; the noise is made on their device.
        stream: 0..2^32-1, which noise of a sample; see the STREAM constants of `diffusion`.
        step: 0..2^32-1, which use of the stream.
        dtype: of the result.
        memory_format: of the result; element (n, c, h, w) has the same value in each.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Raises:
        ValueError: an argument does not fit. RuntimeError: a named backend cannot run.
    """
    check_tensor("seeded_normal", "seeds", seeds)
    shape = tuple(shape)
    if not shape:
        raise fail("seeded_normal", "shape", "of at least one dimension", shape)
    check_seeds("seeded_normal", seeds, shape[0], seeds.device)
    check_word("seeded_normal", "stream", stream)
    check_word("seeded_normal", "step", step)
    if dtype not in FLOAT_DTYPES:
        raise fail("seeded_normal", "dtype", "float32, bfloat16, float16 or float64", dtype)
    if memory_format == torch.channels_last and len(shape) != 4:
        raise fail("seeded_normal", "shape", "of 4 dimensions for channels_last", shape)
    # An empty tensor stands for the result in the choice of the backend.
    probe = torch.empty(0, dtype=dtype, device=seeds.device)
    chosen = select("seeded_normal", probe, backend, KERNELS)
    channels_last = memory_format == torch.channels_last
    if chosen == "reference":
        noise = seeded_normal_reference(shape, seeds, stream, step=step, dtype=dtype)
        return noise.contiguous(memory_format=memory_format)
    if chosen == "triton":
        from lddgan_kernels.triton import seeded_normal as kernel

        return kernel.forward(shape, seeds.contiguous(), stream, step, dtype, channels_last)
    return torch.ops.lddgan.seeded_normal.default(shape, seeds, stream, step, dtype, channels_last)


def seeded_normal_reference(
    shape: Sequence[int],
    seeds: Tensor,
    stream: int,
    *,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same in plain PyTorch, made in float64 and rounded to `dtype`; contiguous."""
    return normal_reference(shape, seeds, stream, step, dtype)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::seeded_normal")
    def _(
        shape: Sequence[int],
        seeds: Tensor,
        stream: int,
        step: int,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device=seeds.device, memory_format=layout)
