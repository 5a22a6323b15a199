"""The minibatch statistic against eager and torch.compile, at the discriminators' last maps."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, fresh_compile, with_gradient
from lddgan_kernels.ops import minibatch_stddev
from lddgan_kernels.testing import assert_error_rule

SHAPES = ((16, 512, 4, 4), (128, 512, 4, 4), (8, 512, 8, 8), (8, 512, 16, 16))


def plain(x):
    _, c, h, w = x.shape
    y = x.reshape(4, -1, 1, c, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean([2, 3, 4], keepdim=True).squeeze(2)
    return torch.cat([x, y.repeat(4, 1, h, w)], 1)


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape in SHAPES:
                for backward in (False, True):
                    yield _case(shape, dtype, layout, backward)


def _case(shape, dtype, layout, backward) -> Case:
    n, c, h, w = shape

    def inputs():
        def draw(channels):
            x = torch.randn((n, channels, h, w), device=device(), dtype=dtype)
            return x.to(memory_format=layout)

        return (draw(c), draw(c + 1)) if backward else (draw(c),)

    def check():
        x = inputs()[0]
        assert_error_rule(minibatch_stddev(x), plain(x), plain(x.double()))

    wrap = (lambda fn: with_gradient(fn, (0,))) if backward else (lambda fn: fn)
    size = torch.Size(shape).numel() * dtype.itemsize
    group = f"{str(dtype).removeprefix('torch.')} {str(layout).removeprefix('torch.')}"
    group = f"{group.removesuffix('_format')} {'forward+backward' if backward else 'forward'}"
    return Case(
        name=f"{'x'.join(map(str, shape))} {group}",
        group=group,
        inputs=inputs,
        sides={
            "ours": wrap(minibatch_stddev),
            "eager": wrap(plain),
            "compile": wrap(fresh_compile(plain)),
        },
        check=check,
        bytes_moved=size * (5 if backward else 2),
    )
