"""Convolutions of the generator of cifar10 on weights packed once, against PyTorch's packing."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks._harness import Case, device, network_dtypes
from lddgan_kernels.ops import packed_conv2d
from lddgan_kernels.ops.packed_conv2d import pack_conv2d
from lddgan_kernels.testing import assert_error_rule

# (C, D, side, kernel)
SHAPES = ((128, 128, 16, 3), (256, 256, 8, 3), (512, 256, 4, 3), (256, 128, 16, 1))


def cases() -> Iterator[Case]:
    if device().type != "cpu":
        return
    for dtype in network_dtypes():
        for n in (1, 16):
            for shape in SHAPES:
                yield _case(n, *shape, dtype)


def _case(n, c, d, side, kernel, dtype) -> Case:
    weight = (torch.randn(d, c, kernel, kernel) / (kernel * c**0.5)).to(dtype)
    bias, last = torch.randn(d).to(dtype), weight.to(memory_format=torch.channels_last)
    packed = pack_conv2d(weight, (n, side, side))

    def inputs():
        x = torch.randn(n, c, side, side).to(dtype)
        return x.to(memory_format=torch.channels_last), x

    def check():
        x, flat = inputs()
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2)
        theirs = F.conv2d(flat, weight, bias, padding=kernel // 2)
        assert_error_rule(packed_conv2d(x, packed, bias), theirs, exact)

    name = str(dtype).removeprefix("torch.")
    return Case(
        name=f"{n}x{c}->{d} at {side}x{side}, {kernel}x{kernel} {name}",
        group=f"{name} batch {n}",
        inputs=inputs,
        sides={
            "ours": lambda x, _: packed_conv2d(x, packed, bias),
            "eager": lambda x, _: F.conv2d(x, last, bias, padding=kernel // 2),
            "eager contiguous": lambda _, x: F.conv2d(x, weight, bias, padding=kernel // 2),
        },
        check=check,
        bytes_moved=dtype.itemsize * (n * side * side * (c + d) + kernel**2 * c * d),
        flops=2 * kernel**2 * n * side * side * c * d,
    )
