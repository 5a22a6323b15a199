"""Haar DWT and inverse against a copy of the same bytes, slices, dense matrices and torch.compile.

`copy` is copy_ into a tensor that exists; `eager` and `slices` are the strided arithmetic with 8
additions a block and with 12; `dense` multiplies by the transform's matrices along H and W, built
in NumPy on each call, as WDDGAN's published network does.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks._harness import Case, device, fresh_compile
from lddgan_kernels.ops import haar_dwt2d, haar_idwt2d
from lddgan_kernels.ops.haar import haar_dwt2d_reference, haar_idwt2d_reference
from lddgan_kernels.testing import assert_error_rule

BATCHES = (1, 16, 64)
IMAGE = (3, 256, 256)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TARGETS = {"copy": 1, "slices": 6, "dense": 30}


def slices_dwt(x):
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    bands = a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d
    return torch.cat(bands, dim=1) * 0.5


def slices_idwt(y):
    ll, lh, hl, hh = (y * 0.5).chunk(4, dim=1)
    n, c, h, w = ll.shape
    x = y.new_empty(n, c, 2 * h, 2 * w)
    x[..., 0::2, 0::2] = ll + lh + hl + hh
    x[..., 0::2, 1::2] = ll - lh + hl - hh
    x[..., 1::2, 0::2] = ll + lh - hl - hh
    x[..., 1::2, 1::2] = ll - lh - hl + hh
    return x


def matrices(like, size):
    """The low-pass and high-pass halves of the transform along an axis of `size`."""
    rows = np.arange(size // 2)
    low, high = np.zeros((2, size // 2, size), dtype=np.float32)
    low[rows, 2 * rows] = low[rows, 2 * rows + 1] = high[rows, 2 * rows] = 1 / math.sqrt(2)
    high[rows, 2 * rows + 1] = -1 / math.sqrt(2)
    return (torch.from_numpy(m).to(like.device, like.dtype) for m in (low, high))


def dense_dwt(x):
    low_h, high_h = matrices(x, x.shape[2])
    low_w, high_w = matrices(x, x.shape[3])
    low, high = low_h @ x, high_h @ x
    bands = low @ low_w.T, low @ high_w.T, high @ low_w.T, high @ high_w.T
    return torch.cat(bands, dim=1)


def dense_idwt(y):
    low_h, high_h = matrices(y, 2 * y.shape[2])
    low_w, high_w = matrices(y, 2 * y.shape[3])
    ll, lh, hl, hh = y.chunk(4, dim=1)
    return low_h.T @ (ll @ low_w + lh @ high_w) + high_h.T @ (hl @ low_w + hh @ high_w)


SIDES = {
    "dwt": (haar_dwt2d, haar_dwt2d_reference, slices_dwt, dense_dwt),
    "idwt": (haar_idwt2d, haar_idwt2d_reference, slices_idwt, dense_idwt),
}


def cases() -> Iterator[Case]:
    for layout in LAYOUTS:
        for direction in SIDES:
            for batch in BATCHES:
                yield _case(direction, batch, layout)


def _case(direction, batch, layout) -> Case:
    ours, eager, slices, dense = SIDES[direction]
    channels, height, width = IMAGE
    shape = (batch, channels, height, width)
    if direction == "idwt":
        shape = (batch, 4 * channels, height // 2, width // 2)

    def inputs():
        x = torch.randn(shape, device=device()).to(memory_format=LAYOUTS[layout])
        return x, torch.empty_like(x)

    def check():
        x = inputs()[0]
        for other in (eager, dense):
            assert_error_rule(ours(x), other(x), slices(x.double()))

    sides = {
        "ours": ours,
        "eager": eager,
        "compile": fresh_compile(eager),
        "slices": slices,
        "dense": dense,
    }
    return Case(
        name=f"{direction} {batch}x{'x'.join(map(str, IMAGE))} float32 {layout}",
        group=f"{direction} float32 {layout}",
        inputs=inputs,
        sides={
            **{name: (lambda x, _, fn=fn: fn(x)) for name, fn in sides.items()},
            "copy": lambda x, out: out.copy_(x),
        },
        check=check,
        bytes_moved=2 * 4 * math.prod(shape),
        targets=TARGETS if layout == "contiguous" else {},
    )
