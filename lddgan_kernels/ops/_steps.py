"""What `diffuse_pair` and `posterior_sample` share: their arguments' checks and table lookups."""

from typing import Protocol

import torch
from torch import Tensor

from lddgan_kernels._checks import check_image, check_like, check_shape, check_tensor, fail
from lddgan_kernels.ops._philox import draw_seeds


class ScheduleTables(Protocol):
    """A schedule of T = `num_steps` steps: float32 tables on the samples' device.

    `diffusion.Schedule` is one. The first four have T + 1 entries, the posterior's T.
    """

    num_steps: int
    a_s: Tensor
    sigmas: Tensor
    a_s_cum: Tensor
    sigmas_cum: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    posterior_log_variance_clipped: Tensor


_TABLES = {  # and how many entries they have beside T
    "a_s": 1,
    "sigmas": 1,
    "a_s_cum": 1,
    "sigmas_cum": 1,
    "posterior_mean_coef1": 0,
    "posterior_mean_coef2": 0,
    "posterior_log_variance_clipped": 0,
}


def check_seeds(op: str, seeds: Tensor, count: int, device: torch.device) -> None:
    """`seeds` must be int64 of shape (count,) on `device`."""
    check_tensor(op, "seeds", seeds)
    if seeds.dtype != torch.int64:
        raise fail(op, "seeds", "int64", seeds.dtype)
    check_shape(op, "seeds", seeds, (count,))
    if seeds.device != device:
        raise fail(op, "seeds", f"on {device}", seeds.device)


def check_word(op: str, arg: str, value: int) -> None:
    """`value` must fit a counter word."""
    if not 0 <= value < 2**32:
        raise fail(op, arg, "in 0..2^32-1", value)


def check_steps(
    op: str,
    x: Tensor,
    t: Tensor,
    schedule: ScheduleTables,
    seeds: Tensor | None,
    noise: tuple[Tensor, ...] | None,
    step: int,
) -> Tensor | None:
    """Checks everything but the values of `t`; returns the seeds, drawn where the caller gave none.

    With `noise` there are no seeds, and None is returned.
    """
    check_image(op, "x0", x)
    check_tensor(op, "t", t)
    if t.dtype != torch.int64:
        raise fail(op, "t", "int64", t.dtype)
    count, device = x.shape[0], x.device
    check_shape(op, "t", t, (count,))
    if t.device != device:
        raise fail(op, "t", f"on {device} like x0", t.device)
    if schedule.a_s_cum.device != device:
        raise fail(op, "schedule", f"on {device} like x0", schedule.a_s_cum.device)
    for name, more in _TABLES.items():
        expected, entries = schedule.num_steps + more, len(getattr(schedule, name))
        if entries != expected:
            raise fail(op, f"schedule.{name}", f"of {expected} entries", entries)
    check_word(op, "step", step)
    if noise is None:
        if seeds is None:
            return draw_seeds(count, device)
        check_seeds(op, seeds, count, device)
        return seeds
    if seeds is not None:
        raise ValueError(f"{op}: give seeds or noise, not both")
    for tensor in noise:
        check_tensor(op, "noise", tensor)
        check_shape(op, "noise", tensor, x.shape)
        check_like(op, "noise", tensor, x, "x0")
    return None


def check_t_values(op: str, t: Tensor, schedule: ScheduleTables) -> None:
    """Off the GPU, `t` must lie in 0..T-1. (On one, looking would stall: see `take`.)

    The native CPU kernels look themselves; this serves the backends that cannot raise.
    """
    if t.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = t[(t < 0) | (t >= schedule.num_steps)]
        if len(wrong):
            raise fail(op, "t", f"in 0..{schedule.num_steps - 1}", int(wrong[0]))


def take(table: Tensor, t: Tensor, num_steps: int, dtype: torch.dtype) -> Tensor:
    """table[t] as (N, 1, 1, 1) of `dtype`; NaN where t lies outside 0..num_steps - 1."""
    valid = (t >= 0) & (t < num_steps)
    value = torch.where(valid, table[t.clamp(0, num_steps - 1)], torch.nan)
    return value.to(dtype)[:, None, None, None]
