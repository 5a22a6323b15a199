"""3x3 convolutions of generators and decoders, channels_last.

On the CPU ours is Winograd's in float32, the weight packed beforehand; on a GPU it is Triton's, in
float32 and bfloat16, beside cuDNN's ("eager"): what decides whether Triton's is used by itself.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks._harness import Case, device, fresh_compile
from lddgan_kernels.ops import conv3x3
from lddgan_kernels.ops.conv3x3 import pack_conv3x3
from lddgan_kernels.testing import assert_error_rule

# (C, D, side): of cifar10's generator, then of lsun-church256's decoder.
GENERATOR = ((128, 128, 16), (256, 256, 8), (256, 256, 4))
DECODER = ((512, 512, 32), (512, 512, 64), (256, 256, 128), (128, 128, 256))


def plain(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def cases() -> Iterator[Case]:
    if device().type == "cpu":
        for n in (1, 16):
            for shape in GENERATOR[:2]:
                yield _case("generator", n, *shape, torch.float32)
        for shape in DECODER:
            yield _case("decoder", 1, *shape, torch.float32)
        return
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for n in (1, 100):
            for group, shapes in (("generator", GENERATOR), ("decoder", DECODER)):
                for shape in shapes:
                    yield _case(f"{group} {name} batch {n}", n, *shape, dtype)


def _case(group, n, c, d, side, dtype) -> Case:
    on_cpu = device().type == "cpu"
    weight = torch.randn(d, c, 3, 3, device=device(), dtype=dtype) / (9 * c) ** 0.5
    weight = weight.to(memory_format=torch.channels_last)
    bias = torch.randn(d, device=device(), dtype=dtype)
    packed = pack_conv3x3(weight) if on_cpu else None
    flat = weight.contiguous()

    def inputs():
        x = torch.randn(n, c, side, side, device=device(), dtype=dtype)
        return x.to(memory_format=torch.channels_last), x

    def ours(x, _=None):
        backend = None if on_cpu else "triton"
        return conv3x3(x, weight, bias, packed=packed, backend=backend)

    def check():
        x = inputs()[0][:1, :, :32, :32].contiguous(memory_format=torch.channels_last)
        exact = plain(x.double(), weight.double(), bias.double())
        assert_error_rule(ours(x), plain(x, weight, bias), exact)

    compiled = fresh_compile(plain)
    return Case(
        name=f"{n}x{c}->{d} at {side}x{side} {str(dtype).removeprefix('torch.')} channels_last",
        group=group,
        inputs=inputs,
        sides={
            "ours": ours,
            "eager": lambda x, _: plain(x, weight, bias),
            "compile": lambda x, _: compiled(x, weight, bias),
            "eager contiguous": lambda _, x: plain(x, flat, bias),
        },
        check=check,
        bytes_moved=dtype.itemsize * (n * side * side * (c + d) + 9 * c * d),
        flops=2 * 9 * n * side * side * c * d,
    )
