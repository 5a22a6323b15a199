"""Convolution of stride 1 for inference on the CPU, its weight packed once by oneDNN.

PyTorch hands oneDNN a plain weight and has it packed in every call: half the time of a small batch
in bfloat16. `torch.compile` with frozen weights packs once, and so does this, by the same operators
of PyTorch. Which form oneDNN wants depends on the input's size, and a weight in another form is
reordered in every call, so a weight is packed for a size. No gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lddgan_kernels._backend import select
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels._checks import check_image, dense, fail, memory_format

KERNELS = ()  # none of ours: the packed form is oneDNN's

MOST_FORMS = 4  # of one weight, kept at once
_MOST_SIZES = 64
_DTYPES = (torch.float32, torch.bfloat16)
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise_"
)
_CPU = torch.device("cpu")
_ONE = (1, 1)

Size = tuple[int, int, int]


class PackedWeight(NamedTuple):
    """A convolution's weight as oneDNN reads it for inputs of one size."""

    weight: Tensor  # opaque, of the plain weight's shape
    size: Size  # (N, H, W) of the inputs


class PackedForms:
    """A weight, packed for each size of input that it meets.

    Sizes for which oneDNN wants the same form share it: at most `MOST_FORMS` copies of the weight.

    Args:
        weight: makes the plain weight (D, C, K, K); called for each new size.
    """

    def __init__(self, weight: Callable[[], Tensor]) -> None:
        self._weight = weight
        self._forms: dict[bytes, Tensor] = {}
        self._sizes: dict[tuple[int, Size], PackedWeight] = {}

    def __call__(self, x: Tensor) -> PackedWeight:
        """The weight packed for inputs like x, (N, C, H, W)."""
        size = _size(x)
        key = (torch.get_num_threads(), size)  # oneDNN's choice depends on both
        packed = self._sizes.get(key)
        if packed is None:
            # Not an operator of the network that may be recorded or traced just now.
            with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
                packed = pack_conv2d(self._weight(), size)
            layout = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed.weight).tolist())
            full = len(self._forms) == MOST_FORMS and layout not in self._forms
            if full or len(self._sizes) == _MOST_SIZES:
                self._forms.clear()
                self._sizes.clear()
            packed = PackedWeight(self._forms.setdefault(layout, packed.weight), size)
            self._sizes[key] = packed
        return packed


def packs(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x is better packed: on the CPU, channels_last, without gradients."""
    return (
        _HAS_ONEDNN
        and not torch.is_grad_enabled()
        and type(x) is Tensor  # no fake
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES
        and (x.dtype == torch.float32 or multiplies_bfloat16(_CPU)[0])
        and x.numel() > 0
        and (memory_format(x) is torch.channels_last or (x.shape[1] == 1 and dense(x) is x))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which packs by itself
        and select("packed_conv2d", x, None, ("cpu",)) == "cpu"
    )


def pack_conv2d(weight: Tensor, size: Size) -> PackedWeight:
    """`weight` (D, C, K, K), K odd, as oneDNN reads it for inputs (N, C, H, W) of size (N, H, W).

    Raises:
        ValueError: weight is not float32 or bfloat16 of such a shape.
        RuntimeError: it is bfloat16, which this processor does not multiply.
    """
    op = "pack_conv2d"
    if weight.ndim != 4 or not (weight.shape[2] % 2 and weight.shape[3] % 2):
        raise fail(op, "weight", "of shape (D, C, K, K), K odd", tuple(weight.shape))
    if weight.dtype not in _DTYPES:
        raise fail(op, "weight", "float32 or bfloat16", weight.dtype)
    if len(size) != 3 or min(size) < 1:
        raise fail(op, "size", "(N, H, W) of an input that is not empty", size)
    if weight.dtype == torch.bfloat16:
        multiplies, why = multiplies_bfloat16(_CPU)
        if not multiplies:
            raise RuntimeError(f"{op}: bfloat16 weights cannot be packed: {why}")
    n, h, w = size
    pad = (weight.shape[2] // 2, weight.shape[3] // 2)
    plain = weight.detach().contiguous().to_mkldnn()
    packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(
        plain, pad, _ONE, _ONE, 1, [n, weight.shape[1], h, w]
    )
    return PackedWeight(packed, size)


def packed_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    overwrite: bool = False,
    backend: str | None = None,
) -> Tensor:
    """conv2d(x, weight, bias) + residual, padded so that the resolution stays.

    Args:
        x: (N, C, H, W) float32 or bfloat16 on the CPU, in any layout.
        packed: `pack_conv2d(weight, (N, H, W))`.
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
    weight = packed.weight
    pad = (weight.shape[2] // 2, weight.shape[3] // 2)
    if select("packed_conv2d", x, backend, ("cpu",)) == "reference":
        out = F.conv2d(x, weight.to_dense(), bias, padding=pad)
        out = out if residual is None else out + residual
        return out.contiguous(memory_format=torch.channels_last)
    options = (bias, pad, _ONE, _ONE, 1)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise.default(x, weight, *options, "none", [], "")
    added: tuple[Any, ...] = ("add", None, None, [], None)
    if overwrite and residual.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, weight, *options, *added
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, weight, *options, *added)


def _size(x: Tensor) -> Size:
    n, _, h, w = x.shape
    return n, h, w


def _check(x: Tensor, packed: PackedWeight, residual: Tensor | None) -> None:
    op = "packed_conv2d"
    check_image(op, "x", x)
    if not isinstance(packed, PackedWeight):
        raise fail(op, "packed", "what pack_conv2d returns", type(packed).__name__)
    weight = packed.weight
    if weight.shape[1] != x.shape[1]:
        raise fail(op, "x", f"of {weight.shape[1]} channels", tuple(x.shape))
    if x.dtype != weight.dtype:
        raise fail(op, "x", f"{weight.dtype} like packed", x.dtype)
    if packed.size != _size(x):
        raise fail(op, "packed", f"made for inputs of (N, H, W) {_size(x)}", packed.size)
    if residual is not None:
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        if residual.shape != shape or residual.dtype != x.dtype:
            expected = f"of shape {shape} and {x.dtype}"
            raise fail(op, "residual", expected, f"{tuple(residual.shape)} and {residual.dtype}")
