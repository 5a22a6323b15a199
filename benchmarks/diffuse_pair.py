"""The discriminator's pair (x_t, x_{t+1}) against its eager composition, at the latent shapes."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, form_name, fresh_compile
from benchmarks.posterior_sample import SHAPES
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.ops import diffuse_pair
from lddgan_kernels.testing import assert_error_rule

TARGETS = {"eager": 10.0}


def plain(x0, t, schedule, noise=None):
    """As trainers write it: tables gathered, two noises as tensors."""

    def at(table, t):
        return table.gather(0, t).reshape(-1, 1, 1, 1).to(x0.dtype)

    n_t, n_next = noise or (torch.randn_like(x0), torch.randn_like(x0))
    x_t = at(schedule.a_s_cum, t) * x0 + at(schedule.sigmas_cum, t) * n_t
    return x_t, at(schedule.a_s, t + 1) * x_t + at(schedule.sigmas, t + 1) * n_next


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape in SHAPES:
                yield _case(shape, dtype, layout)


def _case(shape, dtype, layout) -> Case:
    schedule = Schedule(4, device())

    def inputs():
        x0 = torch.randn(shape, device=device(), dtype=dtype).to(memory_format=layout)
        t = torch.randint(0, 4, shape[:1], device=device())
        return x0, t, torch.arange(shape[0], device=device())

    def check():
        x0, t, _ = inputs()
        noise = torch.randn_like(x0), torch.randn_like(x0)
        exact = plain(x0.double(), t, schedule, tuple(n.double() for n in noise))
        ours = diffuse_pair(x0, t, schedule, noise=noise)
        for three in zip(ours, plain(x0, t, schedule, noise), exact, strict=True):
            assert_error_rule(*three)

    def ours(x0, t, seeds):
        return diffuse_pair(x0, t, schedule, seeds)

    def eager(x0, t, seeds):
        return plain(x0, t, schedule)

    size = torch.Size(shape).numel() * dtype.itemsize
    group = form_name(dtype, layout)
    return Case(
        name=f"{'x'.join(map(str, shape))} {group}",
        group=group,
        inputs=inputs,
        sides={"ours": ours, "eager": eager, "compile": fresh_compile(eager)},
        check=check,
        bytes_moved=size * 3,
        targets=TARGETS if dtype == torch.float32 else {},
    )
