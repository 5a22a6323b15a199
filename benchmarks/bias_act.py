"""act(x + bias) against eager and torch.compile, at the discriminators' feature-map shapes."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, fresh_compile, with_gradient
from lddgan_kernels.ops import bias_act
from lddgan_kernels.testing import assert_error_rule

SHAPES = ((16, 128, 16, 16), (16, 512, 4, 4), (64, 256, 8, 8), (8, 128, 64, 64), (64, 256))


def leaky_relu(x, bias):
    y = x + (bias[:, None, None] if x.ndim == 4 else bias)
    return torch.nn.functional.leaky_relu(y, 0.2)


def silu(x, bias):
    y = x + (bias[:, None, None] if x.ndim == 4 else bias)
    return torch.nn.functional.silu(y)


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for plain in (leaky_relu, silu):
                for shape in SHAPES if layout == torch.contiguous_format else SHAPES[:-1]:
                    for backward in (False, True):
                        yield _case(shape, dtype, layout, plain, backward)


def _case(shape, dtype, layout, plain, backward) -> Case:
    def inputs():
        x, g = (
            torch.randn(shape, device=device(), dtype=dtype).to(memory_format=layout)
            for _ in range(2)
        )
        bias = torch.randn(shape[1], device=device(), dtype=dtype)
        return (x, bias, g) if backward else (x, bias)

    def ours(x, bias):
        return bias_act(x, bias, plain.__name__)

    def check():
        x, bias = inputs()[:2]
        assert_error_rule(ours(x, bias), plain(x, bias), plain(x.double(), bias.double()))

    wrap = (lambda fn: with_gradient(fn, (0, 1))) if backward else (lambda fn: fn)
    size = torch.Size(shape).numel() * dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    group = f"{name} {str(layout).removeprefix('torch.').removesuffix('_format')} {plain.__name__}"
    direction = "forward+backward" if backward else "forward"
    return Case(
        name=f"{'x'.join(map(str, shape))} {group} {direction}",
        group=f"{group} {direction}",
        inputs=inputs,
        sides={"ours": wrap(ours), "eager": wrap(plain), "compile": wrap(fresh_compile(plain))},
        check=check,
        bytes_moved=size * (5 if backward else 2),
    )
