"""What the Triton kernels share."""

import triton
import triton.language as tl


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (a block's size)."""
    return 1 << max(n - 1, 0).bit_length()


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x) in float32."""
    return 1.0 / (1.0 + tl.exp(-x))
