"""A sampling step's posterior draw against its eager composition, at the presets' latent shapes."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, form_name, fresh_compile, with_gradient
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.ops import posterior_sample
from lddgan_kernels.testing import assert_error_rule

# (C, H, W) of the presets' latents and of a 256-pixel image, with their batch sizes.
SHAPES = (
    *((n, *shape) for shape in ((4, 16, 16), (3, 64, 64), (4, 32, 32)) for n in (1, 16, 100)),
    (1, 3, 256, 256),
    (16, 3, 256, 256),
)
TARGETS = {"eager": 14.0}


def plain(x0, x_next, t, schedule, noise=None):
    """As samplers write it: tables gathered, noise as a tensor, the variance masked at t = 0."""

    def at(table):
        return table.gather(0, t).reshape(-1, 1, 1, 1).to(x0.dtype)

    mean = at(schedule.posterior_mean_coef1) * x0 + at(schedule.posterior_mean_coef2) * x_next
    log_variance = at(schedule.posterior_log_variance_clipped)
    if noise is None:
        noise = torch.randn_like(x_next)
    mask = (1 - (t == 0).to(x0.dtype)).reshape(-1, 1, 1, 1)
    return mean + mask * torch.exp(0.5 * log_variance) * noise


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for backward in (False, True):
                for shape in SHAPES:
                    yield _case(shape, dtype, layout, backward)


def _case(shape, dtype, layout, backward) -> Case:
    schedule = Schedule(4, device())

    def inputs():
        tensors = [
            torch.randn(shape, device=device(), dtype=dtype).to(memory_format=layout)
            for _ in range(3 if backward else 2)
        ]
        t = torch.randint(1, 4, shape[:1], device=device())
        seeds = torch.arange(shape[0], device=device())
        return (*tensors[:2], t, seeds, *tensors[2:])

    def check():
        x0, x_next, t = inputs()[:3]
        noise = torch.randn_like(x0)
        exact = plain(x0.double(), x_next.double(), t, schedule, noise.double())
        ours = posterior_sample(x0, x_next, t, schedule, noise=noise)
        assert_error_rule(ours, plain(x0, x_next, t, schedule, noise), exact)

    def ours(x0, x_next, t, seeds):
        return posterior_sample(x0, x_next, t, schedule, seeds)

    def eager(x0, x_next, t, seeds):
        return plain(x0, x_next, t, schedule)

    wrap = (lambda fn: with_gradient(fn, (0, 1))) if backward else (lambda fn: fn)
    size = torch.Size(shape).numel() * dtype.itemsize
    direction = "forward+backward" if backward else "forward"
    group = f"{form_name(dtype, layout)} {direction}"
    return Case(
        name=f"{'x'.join(map(str, shape))} {group}",
        group=group,
        inputs=inputs,
        sides={"ours": wrap(ours), "eager": wrap(eager), "compile": wrap(fresh_compile(eager))},
        check=check,
        bytes_moved=size * (6 if backward else 3),
        targets=TARGETS if dtype == torch.float32 and not backward else {},
    )
