"""Norm, SiLU and FIR resampling of both branches against eager, torch.compile and one by one.

`eager` filters by depthwise convolution, `composed` are our own norm and filter one after the
other. Channels_last; going up, the shortcut is another tensor (its 1x1 convolution comes first).
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks._harness import Case, device, form_name, fresh_compile, with_gradient
from lddgan_kernels.ops import ada_group_norm, downsample2d, norm_resample, upsample2d
from lddgan_kernels.testing import assert_error_rule

LAST = torch.channels_last
GROUPS = 32
# Direction, channels, height = width
MAPS = (("down", 128, 16), ("down", 256, 8), ("down", 128, 64),
        ("up", 256, 4), ("up", 256, 8), ("up", 128, 32))  # fmt: skip


def ours(direction, x, skip, scale, shift):
    skip = None if skip is x else skip
    return norm_resample(x, scale, shift, GROUPS, direction, skip=skip)


def composed(direction, x, skip, scale, shift):
    resample = upsample2d if direction == "up" else downsample2d
    return resample(ada_group_norm(x, scale, shift, GROUPS)), resample(skip)


def eager(direction, x, skip, scale, shift):
    h = F.group_norm(x, GROUPS, eps=1e-6)
    h = F.silu(h * scale[:, :, None, None] + shift[:, :, None, None])
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    weight = taps.outer(taps).expand(x.shape[1], 1, 4, 4)
    options = {"stride": 2, "padding": 1, "groups": x.shape[1]}
    if direction == "up":
        return tuple(F.conv_transpose2d(image, 4 * weight, **options) for image in (h, skip))
    return tuple(F.conv2d(image, weight, **options) for image in (h, skip))


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for direction, channels, size in MAPS:
            for batch in (1, 16):
                for backward in (False, True):
                    yield _case(direction, (batch, channels, size, size), dtype, backward)


def _case(direction, shape, dtype, backward) -> Case:
    size = 2 * shape[2] if direction == "up" else shape[2] // 2
    out_shape = *shape[:2], size, size

    def inputs():
        made = [torch.randn(shape, device=device()).to(dtype) for _ in range(2)]
        rows = torch.randn(2, *shape[:2], device=device()).to(dtype)
        grads = [torch.randn(out_shape, device=device()).to(dtype) for _ in range(2)]
        made, grads = ([x.to(memory_format=LAST) for x in images] for images in (made, grads))
        return (*made, *rows, grads) if backward else (*made, *rows)

    def side(fn):
        def run(x, other, scale, shift):
            return fn(direction, x, x if direction == "down" else other, scale, shift)

        needs = (0, 2, 3) if direction == "down" else (0, 1, 2, 3)
        return with_gradient(run, needs) if backward else run

    def check():
        given = inputs()[:4]
        skip = given[0] if direction == "down" else given[1]
        sides = ours, eager
        results = [fn(direction, given[0], skip, *given[2:]) for fn in sides]
        exact = eager(direction, *(t.double() for t in (given[0], skip, *given[2:])))
        for triple in zip(*results, exact, strict=True):
            assert_error_rule(*triple)

    way = "forward+backward" if backward else "forward"
    moved = math.prod(shape) * (1 if direction == "down" else 2) + 2 * math.prod(out_shape)
    name = f"{direction} {form_name(dtype, LAST)} {way}"
    return Case(
        name=f"{direction} {'x'.join(map(str, shape))} {name.removeprefix(direction + ' ')}",
        group=name,
        inputs=inputs,
        sides={
            "ours": side(ours),
            "eager": side(eager),
            "compile": side(fresh_compile(eager)),
            "composed": side(composed),
        },
        check=check,
        bytes_moved=moved * dtype.itemsize * (2 if backward else 1),
    )
