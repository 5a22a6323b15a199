"""Bias and activation: out = act(x + bias), act being leaky_relu (slope 0.2) or silu.

What follows each convolution of the discriminators (Karras et al. 2020, "Analyzing and improving
the image quality of StyleGAN", without their gain). Dtypes float32, bfloat16, float16 (reference:
float64). Gradient: second order, as the R1 penalty differentiates a gradient.
"""

import torch
from torch import Tensor

from lddgan_kernels._backend import select
from lddgan_kernels._checks import (
    check_float,
    check_tensor,
    fail,
    like_layout,
    memory_format,
)

KERNELS = ()

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
    select("bias_act", x, backend, KERNELS)
    return bias_act_reference(x, bias, activation)


def bias_act_reference(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    y = x + (bias[:, None, None] if x.ndim == 4 else bias)
    if activation == "leaky_relu":
        y = torch.nn.functional.leaky_relu(y, SLOPE)
    else:
        y = torch.nn.functional.silu(y)
    y = y.to(x.dtype)
    return like_layout(y, memory_format(x)) if x.ndim == 4 else y


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
