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
def sigmoid(x):
    """1 / (1 + e^-x) in float32."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def reciprocal_root(x):
    """1 / sqrt(x), rounded as PyTorch's: a group's factor is wrong for all of its elements."""
    root = tl.sqrt_rn(x)
    return tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)
