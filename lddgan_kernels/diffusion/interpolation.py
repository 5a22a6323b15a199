"""On the way between samples: all noise of two seeds, mixed so that it stays normal."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lddgan_kernels._checks import fail
from lddgan_kernels.diffusion.schedule import Schedule
from lddgan_kernels.ops import posterior_sample, seeded_normal
from lddgan_kernels.ops._philox import STREAM_POSTERIOR, STREAM_X_T, STREAM_Z


@torch.no_grad()
def interpolate(
    generator: nn.Module,
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    other: Tensor,
    fractions: Tensor,
    *,
    z_dim: int,
    labels: Tensor | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Samples on the way from `seeds` to `other`, as `sample` draws them at both ends.

    Each noise n of a sample is cos(a) n(seed) + sin(a) n(other), a = fraction * pi / 2, which is
    normal again, as both are independent: x_T, the latents z and that of every step.

    Args:
        generator, schedule, shape, z_dim, labels, memory_format: as for `sample`.
        seeds, other: (N,) int64, on the generator's device.
        fractions: (N,) in [0, 1], how far each sample has come.

    Returns:
        (N, *shape).

    Raises:
        ValueError: a fraction lies outside [0, 1].
    """
    if not ((fractions >= 0) & (fractions <= 1)).all():
        raise fail("interpolate", "fractions", "in [0, 1]", fractions.tolist())
    count, given = seeds.shape[0], () if labels is None else (labels,)
    angle = fractions.to(seeds.device, torch.float32) * (math.pi / 2)

    def noise(size: Sequence[int], stream: int, step: int = 0) -> Tensor:
        weight = angle.view(count, *(1 for _ in size))
        first, second = (
            seeded_normal((count, *size), some, stream, step=step) for some in (seeds, other)
        )
        return weight.cos() * first + weight.sin() * second

    x = noise(shape, STREAM_X_T).contiguous(memory_format=memory_format)
    for step in reversed(range(schedule.num_steps)):
        t = torch.full((count,), step, device=seeds.device)
        x0 = generator(x, t, noise((z_dim,), STREAM_Z, step), *given).to(x.dtype)
        x0 = x0.contiguous(memory_format=memory_format)
        n = noise(shape, STREAM_POSTERIOR, step).contiguous(memory_format=memory_format)
        x = posterior_sample(x0, x, t, schedule, noise=n, step=step)
    return x
