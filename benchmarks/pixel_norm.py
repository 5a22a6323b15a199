"""Pixel norm against eager and torch.compile, at the presets' noise inputs."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, fresh_compile, with_gradient
from lddgan_kernels.ops import pixel_norm
from lddgan_kernels.ops.pixel_norm import pixel_norm_reference
from lddgan_kernels.testing import assert_error_rule

SHAPES = ((1, 25), (16, 25), (100, 25), (256, 100))


def plain(z):
    return z / torch.sqrt(torch.mean(z**2, dim=1, keepdim=True) + 1e-8)


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for backward in (False, True):
                yield _case(shape, dtype, backward)


def _case(shape, dtype, backward) -> Case:
    def inputs():
        count = 2 if backward else 1
        return tuple(torch.randn(shape, device=device(), dtype=dtype) for _ in range(count))

    def check():
        z = inputs()[0]
        assert_error_rule(pixel_norm(z), plain(z), plain(z.double()))

    wrap = (lambda fn: with_gradient(fn, (0,))) if backward else (lambda fn: fn)
    size = torch.Size(shape).numel() * dtype.itemsize
    group = f"{str(dtype).removeprefix('torch.')} {'forward+backward' if backward else 'forward'}"
    return Case(
        name=f"{'x'.join(map(str, shape))} {group}",
        group=group,
        inputs=inputs,
        sides={
            "ours": wrap(pixel_norm),
            "eager": wrap(plain),
            "rms_norm": wrap(pixel_norm_reference),
            "compile": wrap(fresh_compile(plain)),
        },
        check=check,
        bytes_moved=size * (5 if backward else 2),
    )
