"""Adaptive group norm: out = act(scale * groupnorm(cat(x + bias, x2)) + shift).

AdaGN of DDGAN (Xiao et al. 2022, "Tackling the generative learning trilemma with denoising
diffusion GANs", appendix C) with what surrounds it in the ResBlock: the time bias added before it,
the skip connection concatenated to it and SiLU after it. With `scale` and `shift` of shape (C,) it
is the plain group norm (Wu & He 2018, equations 1 and 2); with `one_plus_scale` the scale-shift
norm of ADM (Dhariwal & Nichol 2021).

Statistics are taken in float32 and hold for data far from zero. Dtypes float32, bfloat16, float16
(reference: float64). Gradient: first order, in all tensor inputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lddgan_kernels import _extension
from lddgan_kernels._backend import direct_calls, select
from lddgan_kernels._checks import (
    check_float,
    check_tensor,
    dense,
    fail,
    like_layout,
    memory_format,
    promoted,
)
from lddgan_kernels.ops._norm_plan import (
    NormPlan,
    apply_plan,
    device_size,
    gpu_plans,
    plan_numbers,
)
from lddgan_kernels.ops._norm_rows import adjacent, check_rows

KERNELS = ("cuda", "triton", "cpu")
ACTIVATIONS = ("silu", "gelu", "relu", None)


def ada_group_norm(
    x: Tensor | tuple[Tensor, Tensor | None],
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    *,
    eps: float = 1e-6,
    activation: str | None = "silu",
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    one_plus_scale: bool = False,
    backend: str | None = None,
) -> Tensor:
    """act(scale * groupnorm(cat(x + bias, x2)) + shift), in one kernel.

    Args:
        x: (N, C1, H, W) float32/bfloat16/float16, contiguous or channels_last; or (N, C1),
            (N, C1, L) or (N, C1, D, H, W) likewise. Or (x, moments), as `residual_scale_moments`
            returns them for the same num_groups: they spare "cuda" and "triton" the pass over x
            that takes statistics; the others take their own. Without x2 and bias.
        scale: (N, C) or (C,), C = C1 + C2; gamma itself. x's dtype or float32 (or narrower than a
            float32 x); the rows may be slices of a larger matrix. None: 1.
        shift: like scale; None: 0.
        num_groups: divides C; groups may straddle x and x2.
        eps: added to the variance.
        activation: "silu", "gelu" (by the error function), "relu" or None. "gelu" and "relu" are a
            pass of their own behind a kernel.
        x2: (N, C2, ...) of x's dtype, read as if concatenated to x on channels.
        bias: (N, C1), added to x before the statistics; of a dtype like scale's.
        one_plus_scale: multiply by 1 + scale instead, as ADM and diffusers do.
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        (N, C, ...) of x's dtype, in x's layout.

    Raises:
        ValueError: a shape, dtype or device does not fit, num_groups does not divide C, or the
            activation is unknown. RuntimeError: a named backend cannot run, or a gradient of a
            gradient is asked of a kernel (the reference has them).
    """
    direct = direct_calls(backend)
    if direct is not None and x2 is None and activation in ("silu", None) and not one_plus_scale:
        silu = activation is not None
        out = direct.ada_group_norm(x, scale, shift, num_groups, eps, silu, bias)
        if out is not None:
            return out
    given, moments = x if isinstance(x, tuple) else (x, None)
    image = _as_image("x", given)
    if x2 is not None:
        x2 = _as_image("x2", x2, given.ndim)
    image, x2 = promoted(image, x2)
    scale, shift = _rows(image, x2, scale, shift, one_plus_scale)
    scale, shift, bias = _check(image, scale, shift, num_groups, activation, x2, bias)
    if moments is not None:
        _check_moments(moments, image, num_groups, x2, bias)
    chosen = select("ada_group_norm", image, backend, KERNELS)
    if chosen == "reference":
        out = ada_group_norm_reference(image, scale, shift, num_groups, eps, activation, x2, bias)
    else:
        silu = activation == "silu"
        out = _run(chosen, image, x2, bias, scale, shift, num_groups, eps, silu, moments)
        if activation == "gelu":
            out = F.gelu(out)
        elif activation == "relu":
            out = F.relu(out, inplace=True)
    return out if given.ndim == 4 else _of_image(out, given.shape)


def _run(
    backend: str,
    x: Tensor,
    x2: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    moments: Tensor | None,
) -> Tensor:
    """By a kernel."""
    x = dense(x)
    if x2 is not None:
        x2 = like_layout(x2, memory_format(x))
    if backend == "cpu":  # its gradient is registered in python/ada_group_norm.cpp
        return _operator(x, x2, bias, scale, shift, num_groups, eps, silu)
    plans = gpu_plans(x, 0 if x2 is None else x2.shape[1], num_groups, backend)
    if moments is not None:
        plans = (_plan_of_given(x, num_groups, moments.shape[2]), plans[1])
    if backend == "cuda":
        numbers = plan_numbers(plans)
        operator = torch.ops.lddgan.ada_group_norm.default
        return operator(x, x2, bias, scale, shift, num_groups, eps, silu, numbers, moments)
    return _Triton.apply(x, x2, bias, scale, shift, num_groups, eps, silu, plans, moments)


def _as_image(arg: str, x: Tensor, dimensions: int | None = None) -> Tensor:
    """(N, C), (N, C, L) and (N, C, D, H, W) as (N, C, H, W), of the same layout."""
    check_tensor("ada_group_norm", arg, x)
    if dimensions is not None and x.ndim != dimensions:
        raise fail("ada_group_norm", arg, f"of x's dimensions, {dimensions}", x.ndim)
    if not 2 <= x.ndim <= 5:
        expected = "(N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W)"
        raise fail("ada_group_norm", arg, expected, f"shape {tuple(x.shape)}")
    if x.ndim == 2:
        return x[:, :, None, None]
    if x.ndim == 3:
        return x[:, :, :, None]
    return x.flatten(2, 3) if x.ndim == 5 else x


def _of_image(out: Tensor, shape: torch.Size) -> Tensor:
    """The output (N, C, H, W) for an input of that other shape."""
    if len(shape) == 5:
        return out.unflatten(2, shape[2:4])
    return out.squeeze(3) if len(shape) == 3 else out.squeeze(3).squeeze(2)


def _rows(
    x: Tensor, x2: Tensor | None, scale: Tensor | None, shift: Tensor | None, one_plus_scale: bool
) -> tuple[Tensor, Tensor]:
    """scale and shift as rows that are multiplied by and added."""
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    if shift is None:
        shift = x.new_zeros(channels)
    if scale is None:
        return x.new_ones(channels), shift
    if one_plus_scale:
        check_tensor("ada_group_norm", "scale", scale)
        # 1 + scale in 16 bits would keep fewer digits than scale has.
        scale = scale.to(torch.promote_types(scale.dtype, torch.float32)) + 1
    return scale, shift


def ada_group_norm_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float = 1e-6,
    activation: str | None = "silu",
    x2: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    layout, dtype = memory_format(x), x.dtype
    if bias is not None:
        x = x + bias[:, :, None, None]
    if x2 is not None:
        x = torch.cat([x, x2], 1)
    # PyTorch's channels_last statistics on the CPU lose digits far from zero; the others do not.
    y = torch.group_norm(x.contiguous(), num_groups, eps=eps)
    y = y * scale[..., None, None] + shift[..., None, None]
    if activation is not None:
        y = getattr(F, activation)(y)
    return like_layout(y.to(dtype), layout)


def _check(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    activation: str | None,
    x2: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """scale, shift and bias as the kernels take them."""
    op = "ada_group_norm"
    check_float(op, "x", x)
    dtype, device = x.dtype, x.device
    n, c1, h, w = x.shape
    c = c1
    if x2 is not None:
        if x2.shape[0] != n or x2.shape[2:] != (h, w):
            raise fail(op, "x2", f"of shape ({n}, C2, {h}, {w})", tuple(x2.shape))
        if x2.dtype != dtype or x2.device != device:
            raise fail(op, "x2", f"{dtype} on {device} like x", f"{x2.dtype} on {x2.device}")
        c += x2.shape[1]
    if not isinstance(num_groups, int) or num_groups < 1 or c % num_groups:
        raise fail(op, "num_groups", f"a divisor of the {c} channels", num_groups)
    if activation not in ACTIVATIONS:
        raise fail(op, "activation", "'silu', 'gelu', 'relu' or None", repr(activation))
    shapes = ((n, c), (c,))
    scale = check_rows(op, "scale", scale, shapes, x)
    shift = check_rows(op, "shift", shift, shapes, x)
    if bias is not None:
        bias = check_rows(op, "bias", bias, ((n, c1),), x)
    return scale, shift, bias


def _check_moments(
    moments: Tensor, x: Tensor, num_groups: int, x2: Tensor | None, bias: Tensor | None
) -> None:
    op = "ada_group_norm"
    check_tensor(op, "moments", moments)
    if x2 is not None or bias is not None:
        other = "bias" if x2 is None else "x2"
        raise fail(op, other, "None where moments (of x alone) are given", "a tensor")
    n = x.shape[0]
    if moments.ndim != 4 or moments.shape != (n, num_groups, max(moments.shape[2], 1), 2):
        expected = f"of shape ({n}, {num_groups}, parts, 2)"
        raise fail(op, "moments", expected, tuple(moments.shape))
    if moments.dtype != torch.float32 or moments.device != x.device:
        expected = f"torch.float32 on {x.device}"
        raise fail(op, "moments", expected, f"{moments.dtype} on {moments.device}")


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x2: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        num_groups: int,
        eps: float,
        silu: bool,
        plans: tuple[NormPlan, NormPlan],
        moments: Tensor | None,
    ) -> Tensor:
        from lddgan_kernels.triton import ada_group_norm as kernel

        scale, shift = adjacent(scale), adjacent(shift)
        bias = None if bias is None else adjacent(bias)
        moments = None if moments is None else moments.contiguous()
        out, mean, rstd = kernel.forward(
            x, scale, shift, num_groups, eps, silu, x2, bias, plans[0], moments
        )
        ctx.save_for_backward(x, x2, bias, scale, shift, mean, rstd)
        ctx.silu, ctx.plan = silu, plans[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        from lddgan_kernels.triton import ada_group_norm as kernel

        x, x2, bias, scale, shift, mean, rstd = ctx.saved_tensors
        grad_out = like_layout(grad_out, memory_format(x))
        grad_x, grad_x2, grad_scale, grad_shift, grad_bias = kernel.backward(
            grad_out, x, scale, shift, mean, rstd, ctx.silu, x2, bias, ctx.plan
        )
        if scale.ndim == 1:  # in double: what samples add may all but cancel
            grad_scale = grad_scale.sum(0, dtype=torch.float64)
        if shift.ndim == 1:
            grad_shift = grad_shift.sum(0, dtype=torch.float64)
        grad_bias = grad_bias if bias is None else grad_bias.to(bias.dtype)
        grads = (grad_x, grad_x2, grad_bias, grad_scale.to(scale.dtype), grad_shift.to(shift.dtype))
        return *grads, None, None, None, None, None


def _plan_of_given(x: Tensor, num_groups: int, parts: int) -> NormPlan:
    n, c, h, w = x.shape
    problem = (n, c // num_groups, num_groups, h * w)
    return apply_plan(
        problem, x.element_size(), not x.is_contiguous(), parts, device_size(x.device)
    )


def explain(
    x: Tensor, num_groups: int, *, x2: Tensor | None = None, backend: str | None = None
) -> dict[str, Any]:
    """What `ada_group_norm` does with such an input, without running it.

    Args:
        x, num_groups, x2, backend: as for `ada_group_norm`.

    Returns:
        backend: the one chosen. forward, backward: how the work is cut (GPU backends only; see
        `ops._norm_plan.NormPlan`). bytes_forward, bytes_backward: read and written by those plans.
        floor_forward, floor_backward: the least possible (each tensor read or written once).
    """
    chosen = select("ada_group_norm", x, backend, KERNELS)
    size = (x.numel() + (0 if x2 is None else x2.numel())) * x.element_size()
    report: dict[str, Any] = {"backend": chosen, "floor_forward": 2 * size}
    report["floor_backward"] = 3 * size
    if chosen in ("cuda", "triton"):
        channels2 = 0 if x2 is None else x2.shape[1]
        forward, backward = gpu_plans(x, channels2, num_groups, chosen)
        report |= {"forward": forward, "backward": backward}
        report["bytes_forward"] = (forward.passes + 1) * size
        report["bytes_backward"] = (2 * backward.passes + 1) * size
    return report


if _extension.is_loaded():
    _operator = torch.ops.lddgan.ada_group_norm.default

    @torch.library.register_fake("lddgan::ada_group_norm")
    def _fake(
        x: Tensor,
        x2: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        num_groups: int,
        eps: float,
        silu: bool,
        plan: Sequence[int] | None = None,
        moments: Tensor | None = None,
    ) -> Tensor:
        n, c, h, w = x.shape
        if x2 is not None:
            c += x2.shape[1]
        return torch.empty(
            (n, c, h, w), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
        )

    @torch.library.register_fake("lddgan::ada_group_norm_forward")
    def _fake_forward(
        x: Tensor,
        x2: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        num_groups: int,
        eps: float,
        silu: bool,
        plan: Sequence[int] | None = None,
        moments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        out = _fake(x, x2, bias, scale, shift, num_groups, eps, silu)
        return out, torch.empty((2, x.shape[0], num_groups), dtype=torch.float32, device=x.device)

    @torch.library.register_fake("lddgan::ada_group_norm_backward")
    def _fake_backward(
        grad_out: Tensor,
        x: Tensor,
        x2: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        statistics: Tensor,
        num_groups: int,
        silu: bool,
        plan: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            torch.empty_like(x),
            x.new_empty(0) if x2 is None else torch.empty_like(x2),
            x.new_empty(0) if bias is None else bias.new_empty(bias.shape),
            scale.new_empty(scale.shape),
            shift.new_empty(shift.shape),
        )
