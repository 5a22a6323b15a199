"""Sampling in T generator calls (Algorithm 1 of the LDDGAN paper).

Each step predicts x_0 from x_{t+1} and a latent z, then draws x_t from the posterior. All noise is
a function of the sample's seed, so a seed gives the same image at any batch size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from lddgan_kernels.diffusion.schedule import Schedule
from lddgan_kernels.ops import posterior_sample, seeded_normal
from lddgan_kernels.ops._philox import STREAM_X_T, STREAM_Z

Path = list[tuple[Tensor, Tensor]]


@overload
def sample(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    *,
    z_dim: int,
    dtype: torch.dtype = ...,
    memory_format: torch.memory_format = ...,
    return_path: Literal[False] = False,
) -> Tensor: ...


@overload
def sample(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    *,
    z_dim: int,
    dtype: torch.dtype = ...,
    memory_format: torch.memory_format = ...,
    return_path: Literal[True],
) -> tuple[Tensor, Path]: ...


@torch.no_grad()
def sample(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    *,
    z_dim: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    return_path: bool = False,
) -> Tensor | tuple[Tensor, Path]:
    """Draws one sample for each seed.

    Args:
        generator: predicts x_0, called as generator(x, t, z) with x (N, *shape), t (N,) int64 and
            z (N, z_dim) on the seeds' device; put modules into `eval()` first. Those of `models`
            are asked for the `predictors` of all steps instead, where that is the same. Under
            autocast its result may have another dtype; it is converted.
        schedule: T steps, tables on the seeds' device.
        shape: (C, H, W) of one sample (a latent, for LDDGAN).
        seeds: (N,) int64, any values.
        z_dim: width of the generator's latent z.
        dtype: of x and z; float32, bfloat16 or float16.
        memory_format: of x as the generator gets it.
        return_path: also return the path.

    Returns:
        (N, *shape) of `dtype`; with `return_path` also the list of (x_{t+1}, predicted x_0) for
        t = T-1..0.
    """
    count = len(seeds)
    x = seeded_normal((count, *shape), seeds, STREAM_X_T, dtype=dtype, memory_format=memory_format)
    steps = range(schedule.num_steps)
    t = torch.arange(len(steps), device=seeds.device)[:, None].repeat(1, count)
    z = [seeded_normal((count, z_dim), seeds, STREAM_Z, step=i, dtype=dtype) for i in steps]
    predictors = _predictors(generator, t, torch.stack(z))
    path: Path = []
    for i in reversed(steps):
        x0 = predictors[i](x).to(dtype=dtype, memory_format=memory_format)
        if return_path:
            path.append((x, x0))
        x = posterior_sample(x0, x, t[i], schedule, seeds, step=i)
    return (x, path) if return_path else x


def _predictors(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor], t: Tensor, z: Tensor
) -> list[Callable[[Tensor], Tensor]]:
    """generator(x, t[i], z[i]) of each step as a function of x.

    The generators of `models` prepare all steps at once. A wrapper that lends their method has a
    call of its own.
    """
    prepare = getattr(generator, "predictors", None)
    if prepare is not None and getattr(prepare, "__self__", None) is generator:
        prepared: list[Callable[[Tensor], Tensor]] | None = prepare(t, z)
        if prepared is not None:
            return prepared
    return [partial(_call, generator, t[i], z[i]) for i in range(len(t))]


def _call(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor], t: Tensor, z: Tensor, x: Tensor
) -> Tensor:
    return generator(x, t, z)
