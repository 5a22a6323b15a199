"""Adaptive group norm, then a resampling by two, beside that of the shortcut.

    h = resample(act(scale * groupnorm(x) + shift)),  s = resample(skip)

What a BigGAN ResBlock that changes the resolution begins with (Brock et al. 2019; with StyleGAN's
filter [1, 3, 3, 1] in NCSN++, Song et al. 2021): both its branches resampled, in one pass over x.
Fused in channels_last; on CPUs only going down without a gradient, as nothing else gains there.
What is not fused takes the norm and the filter one after the other. What lies between them is not
rounded where they are fused. Dtypes float32, bfloat16, float16 (reference: float64). Gradient:
first order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import (
    check_image,
    check_tensor,
    dense,
    fail,
    like_layout,
    memory_format,
)
from lddgan_kernels.ops._fir import taps
from lddgan_kernels.ops._norm_plan import device_size, gpu_plans, moments_plan, plan_numbers
from lddgan_kernels.ops._norm_rows import adjacent, check_rows

KERNELS = ("cuda", "triton", "cpu")
DIRECTIONS = ("up", "down")

LAST = torch.channels_last


def norm_resample(
    x: Tensor | tuple[Tensor, Tensor | None],
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    direction: str,
    *,
    skip: Tensor | None = None,
    eps: float = 1e-6,
    activation: str | None = "silu",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(resample(act(scale * groupnorm(x) + shift)), resample(skip)).

    Args:
        x: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last; at least 2x2 to go
            down. Or (x, moments) as `residual_scale_moments` returns them: they spare GPUs a pass.
        scale: (N, C) or (C,), as for `ada_group_norm`.
        shift: like scale.
        num_groups: divides C.
        direction: "up" (as `upsample2d`) or "down" (as `downsample2d`).
        skip: (N, D, H, W) of x's dtype; None: x itself.
        eps: added to the variance.
        activation: "silu" or None.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, C, H', W') and (N, D, H', W') with H' = 2 H, or H // 2; dtype and layout like x.

    Raises:
        ValueError: a shape, dtype or device does not fit, num_groups does not divide C, or the
            direction or activation is unknown. RuntimeError: a named backend cannot run.
    """
    x, moments = x if isinstance(x, tuple) else (x, None)
    scale, shift = _check(x, scale, shift, num_groups, direction, skip, activation, moments)
    chosen = select("norm_resample", x, backend, KERNELS)
    if chosen == "reference":
        return norm_resample_reference(
            x, scale, shift, num_groups, direction, skip, eps, activation
        )
    x = dense(x)
    if skip is not None:
        skip = like_layout(skip, memory_format(x))
    options = num_groups, eps, activation is not None, direction, chosen
    given = (x, scale, shift) if skip is None else (x, scale, shift, skip)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if chosen == "cpu" and (needs_gradient or direction == "up" or memory_format(x) is not LAST):
        return _one_by_one(x, skip, scale, shift, *options)
    if needs_gradient:
        return _NormResample.apply(x, skip, scale, shift, moments, *options)
    return _forward(x, skip, scale, shift, moments, *options)[:2]


def norm_resample_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    direction: str,
    skip: Tensor | None = None,
    eps: float = 1e-6,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch; the oracle in float64."""
    h = torch.group_norm(x.contiguous(), num_groups, eps=eps)
    h = h * scale[..., None, None] + shift[..., None, None]
    if activation == "silu":
        h = F.silu(h)
    layout = memory_format(x)
    images = h.to(x.dtype), x if skip is None else skip
    h, s = (like_layout(_resample(image, direction), layout) for image in images)
    return h, s


def _resample(x: Tensor, direction: str) -> Tensor:
    """By a depthwise convolution."""
    across = taps(direction, x.device).to(x.dtype)
    weight = across.outer(across).expand(x.shape[1], 1, 4, 4)
    convolve = F.conv_transpose2d if direction == "up" else F.conv2d
    with torch.autocast(x.device.type, enabled=False):  # x's dtype stays
        return convolve(x, weight, stride=2, padding=1, groups=x.shape[1])


def _check(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    direction: str,
    skip: Tensor | None,
    activation: str | None,
    moments: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """scale and shift as the kernels take them."""
    op = "norm_resample"
    check_image(op, "x", x)
    n, c, h, w = x.shape
    if not isinstance(num_groups, int) or num_groups < 1 or c % num_groups:
        raise fail(op, "num_groups", f"a divisor of the {c} channels", num_groups)
    if direction not in DIRECTIONS:
        raise fail(op, "direction", "'up' or 'down'", repr(direction))
    if direction == "down" and min(h, w) < 2:
        raise fail(op, "x", "at least 2x2 to go down", f"shape {tuple(x.shape)}")
    if activation not in ("silu", None):
        raise fail(op, "activation", "'silu' or None", repr(activation))
    shapes = ((n, c), (c,))
    scale = check_rows(op, "scale", scale, shapes, x)
    shift = check_rows(op, "shift", shift, shapes, x)
    if skip is not None:
        check_tensor(op, "skip", skip)
        if skip.ndim != 4 or skip.shape[0] != n or skip.shape[2:] != (h, w):
            raise fail(op, "skip", f"of shape ({n}, D, {h}, {w})", tuple(skip.shape))
        if skip.dtype != x.dtype or skip.device != x.device:
            raise fail(
                op, "skip", f"{x.dtype} on {x.device} like x", f"{skip.dtype} on {skip.device}"
            )
    if moments is not None:
        check_tensor(op, "moments", moments)
        fits = moments.ndim == 4 and moments.shape[:2] == (n, num_groups) and moments.shape[3] == 2
        if not fits or moments.dtype != torch.float32 or moments.device != x.device:
            expected = f"float32 of shape ({n}, {num_groups}, P, 2) on {x.device}"
            actual = f"{moments.dtype} of {tuple(moments.shape)} on {moments.device}"
            raise fail(op, "moments", expected, actual)
    return scale, shift


def _one_by_one(
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    direction: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """On a CPU: by the operators of norm and filter, which have gradients of their own."""
    h = torch.ops.lddgan.ada_group_norm.default(x, None, None, scale, shift, num_groups, eps, silu)
    images = h, x if skip is None else skip
    h, s = (_filter(image, direction, backend) for image in images)
    return h, s


class _NormResample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        moments: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        h, s, statistics = _forward(x, skip, scale, shift, moments, *options)
        ctx.save_for_backward(x, scale, shift, statistics)
        ctx.options, ctx.own_skip = options, skip is None
        return h, s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_s: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, statistics = ctx.saved_tensors
        num_groups, _, silu, direction, backend = ctx.options
        layout = memory_format(x)
        grad_h, grad_s = (
            like_layout(_filter(dense(grad), direction, backend, x.shape), layout)
            for grad in (grad_h, grad_s)
        )
        grad_x, grad_scale, grad_shift = _norm_backward(
            grad_h, x, scale, shift, statistics, num_groups, silu, backend
        )
        grad_skip = None
        if ctx.own_skip:
            grad_x = grad_x + grad_s
        else:
            grad_skip = grad_s
        return grad_x, grad_skip, grad_scale, grad_shift, *[None] * 6


def _forward(
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    moments: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    direction: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, s, statistics): mean and rstd of x, (2, N, num_groups) float32."""
    up = direction == "up"
    if memory_format(x) is not LAST:
        h, statistics = _norm(x, scale, shift, num_groups, eps, silu, backend)
        images = h, x if skip is None else skip
        h, s = (_filter(image, direction, backend) for image in images)
        return h, s, statistics
    if moments is None and backend != "cpu":
        moments = _moments(x, num_groups, backend)
    if backend == "triton":
        from lddgan_kernels.triton import norm_resample as kernel

        rows = adjacent(scale), adjacent(shift)
        h, s, statistics = kernel.forward(
            x, *rows, moments, num_groups, eps, silu, up, skip is None
        )
        return h, s if skip is None else _filter(skip, direction, backend), statistics
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.lddgan.norm_resample.default(
        x, skip, scale, shift, num_groups, eps, silu, up, moments
    )
    return found


def _moments(x: Tensor, num_groups: int, backend: str) -> Tensor:
    """Partial moments of x, as `residual_scale_moments` leaves them, by a pass over it."""
    n, c, h, w = x.shape
    problem = n, c // num_groups, num_groups, h * w
    plan = moments_plan(problem, x.element_size(), True, device_size(x.device))
    if backend == "triton":
        from lddgan_kernels.triton import _norm_moments as kernel

        return kernel.moments(x, None, None, num_groups, plan)
    out: Tensor = torch.ops.lddgan.group_moments.default(x, num_groups, [plan.groups, plan.parts])
    return out


def _filter(
    x: Tensor, direction: str, backend: str, adjoint_of: torch.Size | None = None
) -> Tensor:
    """x resampled in `direction`; or the adjoint of that, for images of the given shape."""
    up, down, pad = (2, 1, (2, 1, 2, 1)) if direction == "up" else (1, 2, (1, 1, 1, 1))
    if adjoint_of is not None:
        height, width = adjoint_of[2:]
        # Going down, an odd last row or column is seen by fewer outputs.
        up, down = down, up
        pad = (1, 1, 1, 1) if direction == "up" else (2, 1 + width % 2, 2, 1 + height % 2)
    filter_taps = taps(direction, x.device)
    if backend == "triton":
        from lddgan_kernels.triton import upfirdn2d as kernel

        return kernel.forward(x, filter_taps, up, down, pad, False)
    out: Tensor = torch.ops.lddgan.upfirdn2d.default(x, filter_taps, up, down, pad, False)
    return out


def _norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(norm and activation, statistics)."""
    plans = gpu_plans(x, 0, num_groups, backend)
    if backend == "triton":
        from lddgan_kernels.triton import ada_group_norm as kernel

        rows = adjacent(scale), adjacent(shift)
        out, *statistics = kernel.forward(
            x, *rows, num_groups, eps, silu, None, None, plans[0], None
        )
        return out, torch.stack(statistics)
    found: tuple[Tensor, Tensor] = torch.ops.lddgan.ada_group_norm_forward.default(
        x, None, None, scale, shift, num_groups, eps, silu, plan_numbers(plans)
    )
    return found


def _norm_backward(
    grad_out: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    statistics: Tensor,
    num_groups: int,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and shift."""
    plans = gpu_plans(x, 0, num_groups, backend)
    if backend == "triton":
        from lddgan_kernels.triton import ada_group_norm as kernel

        grad_x, _, *rows, _ = kernel.backward(
            grad_out, x, adjacent(scale), adjacent(shift), *statistics, silu, None, None, plans[1]
        )
        grad_scale, grad_shift = (
            (grad if given.ndim == 2 else grad.sum(0)).to(given.dtype)
            for grad, given in zip(rows, (scale, shift), strict=True)
        )
        return grad_x, grad_scale, grad_shift
    grad_x, _, _, grad_scale, grad_shift = torch.ops.lddgan.ada_group_norm_backward.default(
        grad_out, x, None, None, scale, shift, statistics, num_groups, silu, plan_numbers(plans)
    )
    return grad_x, grad_scale, grad_shift


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::group_moments")
    def _(x: Tensor, num_groups: int, plan: Sequence[int]) -> Tensor:
        shape = x.shape[0], num_groups, plan[1], 2
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    @torch.library.register_fake("lddgan::norm_resample")
    def _(
        x: Tensor,
        skip: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        num_groups: int,
        eps: float,
        silu: bool,
        up: bool,
        moments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, c, h, w = x.shape
        size = (2 * h, 2 * w) if up else (h // 2, w // 2)

        def make(channels: int) -> Tensor:
            shape = n, channels, *size
            return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)

        statistics = torch.empty((2, n, num_groups), dtype=torch.float32, device=x.device)
        return make(c), make(c if skip is None else skip.shape[1]), statistics
