"""Convolution of stride 1 for inference on the CPU, its weight packed once.

Small batches of float32 run our kernel: there PyTorch's way to oneDNN takes as long as the
arithmetic, and what is left is reading the weights. All else is oneDNN's.

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

from lddgan_kernels import _extension
from lddgan_kernels._backend import select
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels._checks import check_image, fail

KERNELS = ("cpu",)

PANEL, LANE = 32, 16  # csrc/cpu/conv3x3.h
# The most pixels of a batch at which our kernel is ahead or even (and more exact), by kernel
# size: measured with AVX2 and AVX-512, taken over for NEON. From 32 on, Winograd's 3x3 is faster
# still (conv3x3).
_ISA = _extension.build_info().get("cpu_isa", "")
_MOST_PIXELS = {1: 1024, 3: 256} if _ISA.startswith(("avx", "neon")) else {}

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
    """A convolution's weight as it is read for inputs of one size."""

    weight: Tensor  # oneDNN's opaque one, or ours: (D / PANEL, K * K * C, PANEL)
    shape: tuple[int, ...]  # (D, C, K, K)
    size: Size  # (N, H, W) of the inputs

    @property
    def layout(self) -> bytes:
        """The same for weights that are packed alike."""
        if not self.weight.is_mkldnn:
            return b""
        return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(self.weight).tolist())

    def dense(self) -> Tensor:
        """The plain weight."""
        if self.weight.is_mkldnn:
            return self.weight.to_dense()
        d, c, *kernel = self.shape
        return self.weight.transpose(0, 1).reshape(*kernel, c, d).permute(3, 2, 0, 1)


class PackedForms:
    """A weight, packed for each size of input that it meets.

    Sizes that want the same form share it: at most `MOST_FORMS` copies of the weight.

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
            layout = packed.layout
            full = len(self._forms) == MOST_FORMS and layout not in self._forms
            if full or len(self._sizes) == _MOST_SIZES:
                self._forms.clear()
                self._sizes.clear()
            packed = packed._replace(weight=self._forms.setdefault(layout, packed.weight))
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
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which packs by itself
        and select("packed_conv2d", x, None, KERNELS) == "cpu"  # not inside vmap either
        and x.is_contiguous(memory_format=torch.channels_last)  # vectors and one channel too
    )


def pack_conv2d(weight: Tensor, size: Size) -> PackedWeight:
    """`weight` (D, C, K, K), K odd, as it is read for inputs (N, C, H, W) of size (N, H, W).

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
    shape = tuple(weight.shape)
    if _suits_kernel(weight, size):
        panels = weight.detach().permute(2, 3, 1, 0).reshape(-1, shape[0] // PANEL, PANEL)
        return PackedWeight(in_large_pages(panels.transpose(0, 1)), shape, size)
    n, h, w = size
    pad = (weight.shape[2] // 2, weight.shape[3] // 2)
    plain = weight.detach().contiguous().to_mkldnn()
    packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(
        plain, pad, _ONE, _ONE, 1, [n, weight.shape[1], h, w]
    )
    return PackedWeight(packed, shape, size)


def in_large_pages(packed: Tensor) -> Tensor:
    """A contiguous copy of packed weights, which are read in one stream, for being kept.

    Where Linux gives pages of 2 MB, in such.
    """
    return torch.ops.lddgan.in_large_pages(packed)


def _suits_kernel(weight: Tensor, size: Size) -> bool:
    d, c, kernel, width = weight.shape
    n, h, w = size
    return (
        weight.dtype == torch.float32
        and kernel == width
        and d % PANEL == 0
        and c % LANE == 0
        and n * h * w <= _MOST_PIXELS.get(kernel, 0)
    )


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
        overwrite: the residual's memory may be reused, and returned.
        backend: "reference" unpacks; "cpu" and None run what the weight was packed for.

    Returns:
        (N, D, H, W) of x's dtype, channels_last.

    Raises:
        ValueError: a shape or dtype does not fit. RuntimeError: a named backend cannot run.
    """
    _check(x, packed, bias, residual)
    if bias is not None:
        bias = bias.contiguous()  # oneDNN reads it so whatever its stride
    weight, shape = packed.weight, packed.shape
    pad = (shape[2] // 2, shape[3] // 2)
    if select("packed_conv2d", x, backend, KERNELS) == "reference":
        out = F.conv2d(x, packed.dense(), bias, padding=pad)
        out = out if residual is None else out + residual
        return out.contiguous(memory_format=torch.channels_last)
    if not weight.is_mkldnn:
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        return torch.ops.lddgan.packed_conv2d(x, weight, shape[2], bias, residual)
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


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, residual: Tensor | None) -> None:
    op = "packed_conv2d"
    check_image(op, "x", x)
    if not isinstance(packed, PackedWeight):
        raise fail(op, "packed", "what pack_conv2d returns", type(packed).__name__)
    d, c = packed.shape[:2]
    if c != x.shape[1]:
        raise fail(op, "x", f"of {c} channels", tuple(x.shape))
    if x.dtype != packed.weight.dtype:
        raise fail(op, "x", f"{packed.weight.dtype} like packed", x.dtype)
    if packed.size != _size(x):
        raise fail(op, "packed", f"made for inputs of (N, H, W) {_size(x)}", packed.size)
    if bias is not None and (bias.shape != (d,) or bias.dtype != x.dtype):
        expected = f"of shape ({d},) and {x.dtype}"
        raise fail(op, "bias", expected, f"{tuple(bias.shape)} and {bias.dtype}")
    if residual is not None:
        shape = (x.shape[0], d, *x.shape[2:])
        if residual.shape != shape or residual.dtype != x.dtype:
            expected = f"of shape {shape} and {x.dtype}"
            raise fail(op, "residual", expected, f"{tuple(residual.shape)} and {residual.dtype}")


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::packed_conv2d")
    def _(
        x: Tensor, packed: Tensor, kernel: int, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        shape = (x.shape[0], packed.shape[0] * PANEL, x.shape[2], x.shape[3])
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    @torch.library.register_fake("lddgan::in_large_pages")
    def _(x: Tensor) -> Tensor:
        return x.new_empty(x.shape)
