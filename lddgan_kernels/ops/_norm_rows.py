"""The rows of the norms: scale, shift and bias, a value a channel."""

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail


def check_rows(
    op: str, arg: str, rows: Tensor, shapes: tuple[tuple[int, ...], ...], x: Tensor
) -> Tensor:
    """`rows`, which must have one of `shapes`, x's device, and x's dtype or float32.

    Beside an x in float32 they may be narrower, as a linear layer's are under autocast; they are
    widened then.
    """
    check_tensor(op, arg, rows)
    # Size by size, and other ranks left out first: a batch that is traced or exported stays free.
    fits = [shape for shape in shapes if len(shape) == rows.ndim]
    if not any(all(a == b for a, b in zip(rows.shape, shape, strict=True)) for shape in fits):
        expected = " or ".join(map(str, shapes))
        raise fail(op, arg, f"of shape {expected}", tuple(rows.shape))
    narrower = (torch.bfloat16, torch.float16) if x.dtype == torch.float32 else ()
    dtypes = dict.fromkeys((x.dtype, torch.float32, *narrower))
    if rows.dtype not in dtypes or rows.device != x.device:
        expected = f"{' or '.join(map(str, dtypes))} on {x.device} like x"
        raise fail(op, arg, expected, f"{rows.dtype} on {rows.device}")
    return rows.float() if rows.dtype in narrower else rows


def adjacent(rows: Tensor) -> Tensor:
    """Rows may be any slice of a matrix; only strides within a row need a copy."""
    return rows if rows.size(-1) <= 1 or rows.stride(-1) == 1 else rows.contiguous()
