"""A call of every op that has a derivative, for tests that go through all of them."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lddgan_kernels import ops
from lddgan_kernels.diffusion import Schedule

SCHEDULE, T = Schedule(2), torch.tensor([0, 1])
SEEDS = torch.tensor([3, -4])
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


class Case(NamedTuple):
    """call(*inputs, backend=...) of an op; each input has a derivative."""

    op: str
    module: str
    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Fresh ones; images are channels_last, where conv3x3 has its kernel."""
        made = [torch.randn(shape, dtype=dtype) for shape in self.shapes]
        return [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in made]

    def kernels(self) -> tuple[str, ...]:
        return sys.modules[f"lddgan_kernels.ops.{self.module}"].KERNELS


IMAGE, ROWS, ROW = (2, 8, 6, 4), (2, 8), (8,)


def _case(op: str, call: Callable[..., Tensor], *shapes: tuple[int, ...], module: str = "") -> Case:
    return Case(op, module or op, call, shapes)


CASES = [
    _case(
        "ada_group_norm",
        lambda x, s, b, x2, bias, **k: ops.ada_group_norm(x, s, b, 4, x2=x2, bias=bias, **k),
        *(IMAGE, (2, 16), (2, 16), IMAGE, ROWS),
    ),
    _case("bias_act", lambda x, b, **k: ops.bias_act(x, b, "silu", **k), IMAGE, ROW),
    _case("bias_act", lambda x, b, **k: ops.bias_act(x, b, "leaky_relu", **k), ROWS, ROW),
    _case(
        "conv3x3",
        lambda x, w, b, r, **k: ops.conv3x3(x, w, b, residual=r, **k),
        *((1, 32, 16, 16), (32, 32, 3, 3), (32,), (1, 32, 16, 16)),
    ),
    _case("downsample2d", ops.downsample2d, IMAGE, module="upfirdn2d"),
    _case("haar_dwt2d", lambda x, **k: ops.haar_dwt2d(x, 0.5, **k), IMAGE, module="haar"),
    _case("haar_idwt2d", lambda x, **k: ops.haar_idwt2d(x, 0.5, **k), IMAGE, module="haar"),
    _case("minibatch_stddev", ops.minibatch_stddev, IMAGE),
    _case(
        "norm_resample",
        lambda x, s, b, skip, **k: torch.cat(
            ops.norm_resample(x, s, b, 4, "down", skip=skip, **k), 1
        ),
        *(IMAGE, ROWS, ROW, IMAGE),
    ),
    _case(
        "norm_resample",
        lambda x, s, b, **k: torch.cat(ops.norm_resample(x, s, b, 4, "up", **k), 1),
        *(IMAGE, ROWS, ROWS),
    ),
    _case("pixel_norm", ops.pixel_norm, ROWS),
    _case(
        "posterior_sample",
        lambda x0, x_next, **k: ops.posterior_sample(x0, x_next, T, SCHEDULE, SEEDS, **k),
        *(IMAGE, IMAGE),
    ),
    _case(
        "residual_scale",
        lambda x, h, h2, b, **k: ops.residual_scale(x, h, h2=h2, bias=b, **k),
        *(IMAGE, IMAGE, IMAGE, ROW),
    ),
    _case(
        "residual_scale_moments",
        lambda x, h, **k: ops.residual_scale_moments(x, h, 4, **k)[0],
        *(IMAGE, IMAGE),
        module="residual_scale",
    ),
    _case("upfirdn2d", lambda x, **k: ops.upfirdn2d(x, TAPS, 2, 3, (2, 1), **k), IMAGE),
    _case("upsample2d", ops.upsample2d, IMAGE, module="upfirdn2d"),
]
