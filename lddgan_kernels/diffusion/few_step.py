"""Sampling in T generator calls (Algorithm 1 of the LDDGAN paper).

Each step predicts x_0 from x_{t+1} and a latent z, then draws x_t from the posterior. All noise is
a function of the sample's seed, so a seed gives the same image at any batch size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from lddgan_kernels.diffusion.guidance import guide, twice
from lddgan_kernels.diffusion.schedule import Schedule
from lddgan_kernels.ops import posterior_sample, seeded_normal
from lddgan_kernels.ops._philox import STREAM_X_T, STREAM_Z

Path = list[tuple[Tensor, Tensor]]


@overload
def sample(
    generator: Callable[..., Tensor],
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    *,
    z_dim: int,
    labels: Tensor | None = ...,
    guidance: float = ...,
    dtype: torch.dtype = ...,
    memory_format: torch.memory_format = ...,
    return_path: Literal[False] = False,
) -> Tensor: ...


@overload
def sample(
    generator: Callable[..., Tensor],
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    *,
    z_dim: int,
    labels: Tensor | None = ...,
    guidance: float = ...,
    dtype: torch.dtype = ...,
    memory_format: torch.memory_format = ...,
    return_path: Literal[True],
) -> tuple[Tensor, Path]: ...


@torch.no_grad()
def sample(
    generator: Callable[..., Tensor],
    schedule: Schedule,
    shape: Sequence[int],
    seeds: Tensor,
    *,
    z_dim: int,
    labels: Tensor | None = None,
    guidance: float = 0.0,
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
        labels: (N,) int64 on the seeds' device, classes to draw, which the generator takes fourth.
        guidance: strength w of classifier-free guidance at each step: x_0 becomes (1 + w) times
            that of the label minus w times that of no label, in [-1, 1] as the data.
        dtype: of x and z; float32, bfloat16 or float16.
        memory_format: of x as the generator gets it.
        return_path: also return the path.

    Returns:
        (N, *shape) of `dtype`; with `return_path` also the list of (x_{t+1}, predicted x_0) for
        t = T-1..0.
    """
    count = seeds.shape[0]  # not len, which would bind a batch that is exported
    x = seeded_normal((count, *shape), seeds, STREAM_X_T, dtype=dtype, memory_format=memory_format)
    steps = range(schedule.num_steps)
    t = torch.arange(len(steps), device=seeds.device)[:, None].repeat(1, count)
    z_list = [seeded_normal((count, z_dim), seeds, STREAM_Z, step=i, dtype=dtype) for i in steps]
    z = torch.stack(z_list)
    predictors = (
        _guided(generator, t, z, labels, guidance)
        if guidance and labels is not None
        else _predictors(generator, t, z, labels)
    )
    path: Path = []
    for i in reversed(steps):
        x0 = predictors[i](x).to(dtype=dtype, memory_format=memory_format)
        if return_path:
            path.append((x, x0))
        x = posterior_sample(x0, x, t[i], schedule, seeds, step=i)
    return (x, path) if return_path else x


def _guided(
    generator: Callable[..., Tensor], t: Tensor, z: Tensor, labels: Tensor, strength: float
) -> list[Callable[[Tensor], Tensor]]:
    """As `_predictors`, guided; both predictions of a step are one call."""
    both = _predictors(generator, t.repeat(1, 2), z.repeat(1, 2, 1), twice(labels))

    def predict(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        count, found = x.shape[0], call(torch.cat([x, x]))  # chunk(2) would bind a batch
        return guide(found[:count], found[count:], strength).clamp(-1.0, 1.0)

    return [partial(predict, call) for call in both]


def _predictors(
    generator: Callable[..., Tensor], t: Tensor, z: Tensor, labels: Tensor | None
) -> list[Callable[[Tensor], Tensor]]:
    """generator(x, t[i], z[i]), with labels where there are some, of each step, of x alone.

    The generators of `models` prepare all steps at once. A wrapper that lends their method has a
    call of its own.
    """
    given = () if labels is None else (labels,)
    prepare = getattr(generator, "predictors", None)
    if prepare is not None and getattr(prepare, "__self__", None) is generator:
        prepared: list[Callable[[Tensor], Tensor]] | None = prepare(t, z, *given)
        if prepared is not None:
            return prepared
    return [partial(_call, generator, t[i], z[i], *given) for i in range(len(t))]


def _call(generator: Callable[..., Tensor], t: Tensor, z: Tensor, *rest: Tensor) -> Tensor:
    *labels, x = rest
    return generator(x, t, z, *labels)
