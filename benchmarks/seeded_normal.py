"""Seeded noise against PyTorch's own generator, which knows no seed for each sample."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, form_name
from benchmarks.posterior_sample import SHAPES
from lddgan_kernels.ops import seeded_normal
from lddgan_kernels.ops._philox import normal_reference


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape in SHAPES:
                yield _case(shape, dtype, layout)


def _case(shape, dtype, layout) -> Case:
    def inputs():
        return (torch.arange(shape[0], device=device()),)

    def check():
        (seeds,) = inputs()
        exact = normal_reference(shape, seeds, 0, 0, torch.float64)
        assert (seeded_normal(shape, seeds, 0).double() - exact).abs().max() < 2e-6

    def ours(seeds):
        return seeded_normal(shape, seeds, 0, dtype=dtype, memory_format=layout)

    def eager(seeds):
        like = torch.empty(shape, dtype=dtype, device=seeds.device, memory_format=layout)
        return torch.randn_like(like)

    group = form_name(dtype, layout)
    return Case(
        name=f"{'x'.join(map(str, shape))} {group}",
        group=group,
        inputs=inputs,
        sides={"ours": ours, "eager": eager},
        check=check,
        bytes_moved=torch.Size(shape).numel() * dtype.itemsize,
    )
