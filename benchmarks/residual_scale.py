"""(x + h) / sqrt(2) against eager and torch.compile, at the generator's feature-map shapes."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, fresh_compile, with_gradient
from lddgan_kernels.ops import residual_scale
from lddgan_kernels.testing import assert_error_rule

SHAPES = (
    (1, 128, 16, 16),
    (16, 128, 16, 16),
    (64, 128, 16, 16),
    (16, 256, 8, 8),
    (16, 128, 64, 64),
)


def plain(x, h):
    return (x + h) / 2**0.5


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for backward in (False, True):
                yield _case(shape, dtype, backward)


def _case(shape, dtype, backward) -> Case:
    def inputs():
        return tuple(
            torch.randn(shape, device=device(), dtype=dtype) for _ in range(3 if backward else 2)
        )

    def check():
        x, h = inputs()[:2]
        assert_error_rule(residual_scale(x, h), plain(x, h), plain(x.double(), h.double()))

    wrap = (lambda fn: with_gradient(fn, (0, 1))) if backward else (lambda fn: fn)
    compiled = fresh_compile(plain)
    size = torch.Size(shape).numel() * dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    direction = "forward+backward" if backward else "forward"
    return Case(
        name=f"{'x'.join(map(str, shape))} {name} {direction}",
        group=f"{name} {direction}",
        inputs=inputs,
        sides={"ours": wrap(residual_scale), "eager": wrap(plain), "compile": wrap(compiled)},
        check=check,
        bytes_moved=size * (5 if backward else 3),
    )
