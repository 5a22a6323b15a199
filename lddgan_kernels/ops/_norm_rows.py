"""The rows of the norms: scale, shift and bias, a value a channel."""

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail


def check_rows(
    op: str,
    arg: str,
    rows: Tensor,
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """`rows` must have one of `shapes`, x's device, and x's dtype or float32."""
    check_tensor(op, arg, rows)
    if rows.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise fail(op, arg, f"of shape {expected}", tuple(rows.shape))
    if rows.dtype not in (dtype, torch.float32) or rows.device != device:
        expected = f"{dtype} or torch.float32 on {device} like x"
        raise fail(op, arg, expected, f"{rows.dtype} on {rows.device}")


def adjacent(rows: Tensor) -> Tensor:
    """Rows may be any slice of a matrix; only strides within a row need a copy."""
    return rows if rows.size(-1) <= 1 or rows.stride(-1) == 1 else rows.contiguous()
