"""FIR resampling by two against depthwise convolution, zero-stuffing and torch.compile.

`eager` is the fastest depthwise form: a strided `conv2d` down, a strided `conv_transpose2d` up.
`published` is how networks without a kernel of their own do it: zeros between the elements by
padding a view, then `conv2d` of all channels as samples, then every second element. `copy` moves as
many bytes between tensors that exist.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks._harness import Case, device, fresh_compile, with_gradient
from lddgan_kernels.ops import downsample2d, upsample2d
from lddgan_kernels.testing import assert_error_rule

BATCHES = (1, 16)
MAPS = ((128, 16), (256, 8), (128, 32), (128, 64))  # channels, height = width
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TARGETS = {"eager": 5}


def taps(x, gain):
    one = torch.tensor([1.0, 3, 3, 1], device=x.device, dtype=x.dtype) / 8
    return gain * one.outer(one)


def depthwise_down(x, weight):
    return F.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def depthwise_up(x, weight):
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def published_down(x, weight):
    n, c, h, w = x.shape
    out = F.conv2d(F.pad(x.reshape(n * c, 1, h, w), (1, 1, 1, 1)), weight[:1])[:, :, ::2, ::2]
    return out.reshape(n, c, h // 2, w // 2)


def published_up(x, weight):
    n, c, h, w = x.shape
    stuffed = F.pad(x.reshape(n * c, 1, h, 1, w, 1), (0, 1, 0, 0, 0, 1))
    stuffed = stuffed.reshape(n * c, 1, 2 * h, 2 * w)
    return F.conv2d(F.pad(stuffed, (2, 1, 2, 1)), weight[:1]).reshape(n, c, 2 * h, 2 * w)


SIDES = {
    "down": (downsample2d, depthwise_down, published_down),
    "up": (upsample2d, depthwise_up, published_up),
}


def cases() -> Iterator[Case]:
    for layout in LAYOUTS:
        for direction in SIDES:
            for backward in (False, True):
                for batch in BATCHES:
                    for channels, size in MAPS:
                        yield _case(direction, (batch, channels, size, size), layout, backward)


def _case(direction, shape, layout, backward) -> Case:
    op, depthwise, published = SIDES[direction]
    factor, gain = (2, 4) if direction == "up" else (0.5, 1)
    out_shape = (*shape[:2], *(int(factor * size) for size in shape[2:]))

    def inputs():
        x = torch.randn(shape, device=device())
        weight = taps(x, gain).expand(shape[1], 1, 4, 4).contiguous()
        grads = (torch.randn(out_shape, device=device()),) if backward else ()
        x, *grads = (t.to(memory_format=LAYOUTS[layout]) for t in (x, *grads))
        return x, weight, *grads

    def ours(x, _weight):
        return op(x)

    def check():
        x, weight = inputs()[:2]
        for other in (depthwise, published):
            assert_error_rule(op(x), other(x, weight), depthwise(x.double(), weight.double()))

    wrap = (lambda fn: with_gradient(fn, (0,))) if backward else (lambda fn: fn)
    way = "forward+backward" if backward else "forward"
    moved = 4 * (math.prod(shape) + math.prod(out_shape)) * (2 if backward else 1)
    source, target = torch.randn(2, moved // 8, device=device()).unbind()
    return Case(
        name=f"{direction} {'x'.join(map(str, shape))} float32 {layout} {way}",
        group=f"{direction} float32 {layout} {way}",
        inputs=inputs,
        sides={
            "ours": wrap(ours),
            "eager": wrap(depthwise),
            "compile": wrap(fresh_compile(depthwise)),
            "published": wrap(published),
            "copy": lambda *_: target.copy_(source),
        },
        check=check,
        bytes_moved=moved,
        targets=TARGETS,
    )
