"""3x3 convolutions of generators and decoders in float32, the weight packed beforehand."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks._harness import Case, device, fresh_compile
from lddgan_kernels.ops import conv3x3
from lddgan_kernels.ops.conv3x3 import pack_conv3x3
from lddgan_kernels.testing import assert_error_rule

# (N, C, D, side): the generator of cifar10, then the decoder of lsun-church256.
GENERATOR = ((1, 128, 128, 16), (1, 256, 256, 8), (16, 128, 128, 16), (16, 256, 256, 8))
DECODER = ((1, 512, 512, 32), (1, 512, 512, 64), (1, 256, 256, 128), (1, 128, 128, 256))


def plain(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def cases() -> Iterator[Case]:
    for group, shapes in (("generator", GENERATOR), ("decoder", DECODER)):
        for shape in shapes:
            yield _case(group, *shape)


def _case(group, n, c, d, side) -> Case:
    weight = torch.randn(d, c, 3, 3, device=device()) / (9 * c) ** 0.5
    weight = weight.to(memory_format=torch.channels_last)
    packed, bias = pack_conv3x3(weight), torch.randn(d, device=device())
    flat = weight.contiguous()

    def inputs():
        x = torch.randn(n, c, side, side, device=device())
        return x.to(memory_format=torch.channels_last), x

    def check():
        x = inputs()[0][:1, :, :32, :32].contiguous(memory_format=torch.channels_last)
        exact = plain(x.double(), weight.double(), bias.double())
        assert_error_rule(conv3x3(x, weight, bias, packed=packed), plain(x, weight, bias), exact)

    compiled = fresh_compile(plain)
    return Case(
        name=f"{n}x{c}->{d} at {side}x{side} float32 channels_last",
        group=group,
        inputs=inputs,
        sides={
            "ours": lambda x, _: conv3x3(x, weight, bias, packed=packed),
            "eager": lambda x, _: plain(x, weight, bias),
            "compile": lambda x, _: compiled(x, weight, bias),
            "eager contiguous": lambda _, x: plain(x, flat, bias),
        },
        check=check,
        bytes_moved=4 * (n * side * side * (c + d) + 9 * c * d),
        flops=2 * 9 * n * side * side * c * d,
    )
