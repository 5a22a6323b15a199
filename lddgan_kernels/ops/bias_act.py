"""Bias and activation: out = act(x + bias), act being leaky_relu (slope 0.2) or silu.

What follows each convolution of the discriminators (Karras et al. 2020, "Analyzing and improving
the image quality of StyleGAN", without their gain). Dtypes float32, bfloat16, float16 (reference:
float64). Gradient: second order, as the R1 penalty differentiates a gradient.
"""

from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._checks import (
    check_float,
    check_tensor,
    dense,
    fail,
    like_layout,
    memory_format,
)

KERNELS = ("triton", "cpu")

ACTIVATIONS = ("leaky_relu", "silu")
SLOPE = 0.2


def bias_act(x: Tensor, bias: Tensor, activation: str, *, backend: str | None = None) -> Tensor:
    """act(x + bias), the bias per channel, in one pass.

    Args:
        x: (N, C, H, W) contiguous or channels_last, or (N, C); float32/bfloat16/float16.
        bias: (C,) of x's dtype or float32.
        activation: "leaky_relu" (slope 0.2, no gain) or "silu".
        backend: "reference", "cpu", "triton", "cuda" or None for the fastest that can run.

    Returns:
        A tensor like x, in x's layout.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the activation is unknown.
        RuntimeError: a named backend cannot run.
    """
    _check(x, bias, activation)
    chosen = select("bias_act", x, backend, KERNELS)
    if chosen == "reference":
        return bias_act_reference(x, bias, activation)
    x = dense(x)
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        return _BiasAct.apply(x, bias, activation, chosen)
    return _forward(x, bias, activation, chosen)


def bias_act_reference(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    y = x + _per_channel(bias, x)
    if activation == "leaky_relu":
        y = torch.nn.functional.leaky_relu(y, SLOPE)
    else:
        y = torch.nn.functional.silu(y)
    y = y.to(x.dtype)
    return like_layout(y, memory_format(x)) if x.ndim == 4 else y


class _BiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, activation: str, backend: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.options = activation, backend
        return _forward(x, bias, activation, backend)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        grad_out = like_layout(grad_out, memory_format(x))
        run = _BiasActGradient.apply if torch.is_grad_enabled() else _backward
        grad_x, grad_bias = run(grad_out, x, bias, *ctx.options)
        return grad_x, grad_bias, None, None


class _BiasActGradient(torch.autograd.Function):
    """The gradient as a function of its own, for gradients of gradients."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, bias: Tensor, activation: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(grad, x, bias)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        return _backward(grad, x, bias, activation, backend)

    @staticmethod
    def backward(
        ctx: Any, grad_x: Tensor | None, grad_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x, bias = ctx.saved_tensors
        if grad_x is None and grad_bias is None:
            return None, None, None, None, None
        # With u = x + bias: the two outputs are grad * act'(u) and its sum over all but channels.
        incoming = 0 if grad_x is None else grad_x
        if grad_bias is not None:
            incoming = incoming + _per_channel(grad_bias, x)
        u = x + _per_channel(bias, x)
        if ctx.activation == "leaky_relu":
            # act''(u) is zero.
            return (
                (incoming * torch.where(u > 0, 1.0, SLOPE)).to(grad.dtype),
                None,
                None,
                None,
                None,
            )
        s = torch.sigmoid(u)
        first = s * (1 + u * (1 - s))
        second = s * (1 - s) * (2 + u * (1 - 2 * s))
        grad_u = incoming * grad * second
        grad_bias = grad_u.sum([d for d in range(x.ndim) if d != 1])
        return (
            (incoming * first).to(x.dtype),
            grad_u.to(x.dtype),
            grad_bias.to(bias.dtype),
            None,
            None,
        )


def _per_channel(bias: Tensor, x: Tensor) -> Tensor:
    return bias[:, None, None] if x.ndim == 4 else bias


def _forward(x: Tensor, bias: Tensor, activation: str, backend: str) -> Tensor:
    silu = activation == "silu"
    if backend == "triton":
        from lddgan_kernels.triton import bias_act as kernel

        return kernel.forward(x, bias.contiguous(), silu)
    return torch.ops.lddgan.bias_act.default(x, bias, silu)


def _backward(
    grad: Tensor, x: Tensor, bias: Tensor, activation: str, backend: str
) -> tuple[Tensor, Tensor]:
    silu = activation == "silu"
    if backend == "triton":
        from lddgan_kernels.triton import bias_act as kernel

        grad_x, grad_bias = kernel.backward(grad, x, bias.contiguous(), silu)
    else:
        grad_x, grad_bias = torch.ops.lddgan.bias_act_backward.default(grad, x, bias, silu)
    return grad_x, grad_bias if bias.dtype == torch.float32 else grad_bias.to(bias.dtype)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::bias_act")
    def _(x: Tensor, bias: Tensor, silu: bool) -> Tensor:
        return torch.empty_like(x)

    @torch.library.register_fake("lddgan::bias_act_backward")
    def _(grad: Tensor, x: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), bias.new_empty(bias.shape, dtype=torch.float32)


def _check(x: Tensor, bias: Tensor, activation: str) -> None:
    check_tensor("bias_act", "x", x)
    if x.ndim not in (2, 4):
        raise fail("bias_act", "x", "of shape (N, C, H, W) or (N, C)", tuple(x.shape))
    check_float("bias_act", "x", x)
    check_tensor("bias_act", "bias", bias)
    if bias.shape != x.shape[1:2]:
        raise fail("bias_act", "bias", f"of shape ({x.shape[1]},)", tuple(bias.shape))
    if (bias.dtype != x.dtype and bias.dtype != torch.float32) or bias.device != x.device:
        raise fail(
            "bias_act",
            "bias",
            f"{x.dtype} or torch.float32 on {x.device} like x",
            f"{bias.dtype} on {bias.device}",
        )
    if activation not in ACTIVATIONS:
        raise fail("bias_act", "activation", "'leaky_relu' or 'silu'", repr(activation))
