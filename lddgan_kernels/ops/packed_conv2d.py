"""Convolution of stride 1 for inference on the CPU, its weight packed once by oneDNN.

PyTorch hands oneDNN a plain weight and has it packed in every call: half the time of a small batch
in bfloat16. `torch.compile` with frozen weights packs once, and so does this, by the same operators
of PyTorch. No gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels._backend import select
from lddgan_kernels._checks import check_image, dense, fail, memory_format

KERNELS = ()  # none of ours: the packed form is oneDNN's

_DTYPES = (torch.float32, torch.bfloat16)
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise_"
)
_HAS_BFLOAT16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_ONE = (1, 1)


def packs(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x is better packed: on the CPU, channels_last, without gradients."""
    return (
        _HAS_ONEDNN
        and not torch.is_grad_enabled()
        and type(x) is Tensor  # no fake
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES
        and (x.dtype == torch.float32 or _HAS_BFLOAT16)
        and x.numel() > 0
        and (memory_format(x) is torch.channels_last or (x.shape[1] == 1 and dense(x) is x))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which packs by itself
        and select("packed_conv2d", x, None, ("cpu",)) == "cpu"
    )


def pack_conv2d(weight: Tensor) -> Tensor:
    """`weight` (D, C, K, K), K odd, as oneDNN reads it: an opaque tensor of the same shape."""
    pad = (weight.shape[2] // 2, weight.shape[3] // 2)
    plain = weight.detach().contiguous().to_mkldnn()
    return torch.ops.aten.mkldnn_reorder_conv2d_weight(plain, pad)


def packed_conv2d(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    overwrite: bool = False,
    backend: str | None = None,
) -> Tensor:
    """conv2d(x, weight, bias) + residual, padded so that the resolution stays.

    Args:
        x: (N, C, H, W) float32 or bfloat16 on the CPU, in any layout.
        packed: `pack_conv2d(weight)`.
        bias: (D,) of x's dtype.
        residual: (N, D, H, W) of x's dtype.
        overwrite: add to `residual` in place, where it is channels_last (and return it).
        backend: "reference" unpacks; "cpu" and None run oneDNN.

    Returns:
        (N, D, H, W) of x's dtype, channels_last.

    Raises:
        ValueError: a shape or dtype does not fit. RuntimeError: a named backend cannot run.
    """
    _check(x, packed, residual)
    pad = (packed.shape[2] // 2, packed.shape[3] // 2)
    if select("packed_conv2d", x, backend, ("cpu",)) == "reference":
        out = F.conv2d(x, packed.to_dense(), bias, padding=pad)
        out = out if residual is None else out + residual
        return out.contiguous(memory_format=torch.channels_last)
    options = (bias, pad, _ONE, _ONE, 1)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise.default(x, packed, *options, "none", [], "")
    added: tuple[Any, ...] = ("add", None, None, [], None)
    if overwrite and residual.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, packed, *options, *added
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, packed, *options, *added)


def _check(x: Tensor, packed: Tensor, residual: Tensor | None) -> None:
    op = "packed_conv2d"
    check_image(op, "x", x)
    if not packed.is_mkldnn:
        raise fail(op, "packed", "what pack_conv2d returns", f"a tensor of layout {packed.layout}")
    if packed.shape[1] != x.shape[1]:
        raise fail(op, "x", f"of {packed.shape[1]} channels", tuple(x.shape))
    if x.dtype != packed.dtype:
        raise fail(op, "x", f"{packed.dtype} like packed", x.dtype)
    if residual is not None:
        shape = (x.shape[0], packed.shape[0], *x.shape[2:])
        if residual.shape != shape or residual.dtype != x.dtype:
            expected = f"of shape {shape} and {x.dtype}"
            raise fail(op, "residual", expected, f"{tuple(residual.shape)} and {residual.dtype}")
