"""What the Triton kernels share."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch(kernel, grid: tuple[int, ...], x: Tensor, *arguments, **options) -> None:
    """kernel[grid](x, ...) on x's device; Triton by itself takes the current one."""
    if x.is_cuda:
        with torch.cuda.device(x.device):
            kernel[grid](x, *arguments, **options)
    else:  # interpreted
        kernel[grid](x, *arguments, **options)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (a block's size)."""
    return 1 << max(n - 1, 0).bit_length()


@triton.jit
def sigmoid(x, EXACT: tl.constexpr):
    """1 / (1 + e^-x) of float32. EXACT, for results that are kept in float32: within a few
    roundings, as PyTorch's; the hardware's exponential and quotient alone are not."""
    if EXACT:
        y = tl.minimum(tl.maximum(-x, -128.0), 128.0)
        k = tl.floor(y * 1.4426950408889634 + 0.5)
        rest = (y - k * 0.693359375) + k * 2.12194440e-4
        power = tl.exp2(k) * tl.exp2(rest * 1.4426950408889634)
        result = tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + power)
    else:
        result = 1.0 / (1.0 + tl.exp(-x))
    return result


@triton.jit
def reciprocal_root(x):
    """1 / sqrt(x), rounded as PyTorch's: a group's factor is wrong for all of its elements."""
    root = tl.sqrt_rn(x)
    return tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)
