"""3x3 convolution of stride 1 with zero padding 1, as torch.nn.functional.conv2d computes it.

On the CPU in float32, channels_last, by Winograd's F(2x2, 3x3) (Lavin & Gray 2016, "Fast algorithms
for convolutional neural networks", section 4.1): 16 multiplications where direct convolution has
36, at direct convolution's accuracy; both gradients likewise. Everything else goes to PyTorch's
convolution, which has matrix units for bfloat16 and on GPUs, and small inputs, whose time is that
of reading the weights. On a GPU Triton has an implicit matrix product for channels_last, which adds
bias and residual too; it must be named, as no GPU has compared it with PyTorch's yet. Gradient: any
order; those that are to be differentiated again are PyTorch's convolution's.
"""

import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lddgan_kernels import _extension
from lddgan_kernels._backend import default_backend, select
from lddgan_kernels._checks import check_image, check_tensor, fail, like_layout, memory_format

KERNELS = ("triton", "cpu")

PANEL, LANE = 32, 16  # csrc/cpu/conv3x3.h
# Pixels in a batch. Below the first, reading 16/9 of the weights costs more than multiplications
# saved; below the second, so does packing them for one call or one step of training.
_LEAST_PACKED, _LEAST = 32, 256
# Plain code is slower than the vendor's kernels, and NEON than the matrix units that Apple's use.
_ISA = _extension.build_info().get("cpu_isa", "")
_HAS_KERNEL = _ISA.startswith("avx") or (_ISA == "neon" and sys.platform != "darwin")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """conv2d(x, weight, bias, padding=1) + residual.

    Args:
        x: (N, C, H, W) float32/bfloat16/float16, contiguous or channels_last.
        weight: (D, C, 3, 3) of x's dtype.
        bias: (D,) of x's dtype.
        residual: (N, D, H, W) of x's dtype.
        packed: `pack_conv3x3(weight)`, to spare packing it in this call. That of any other weight
            is refused: what is known to be packed from this one, and not written to since, is
            compared in one tap a filter, all else whole, at the cost of packing.
        backend: "reference", "cpu", "triton" or None: "cpu" on the CPU, else PyTorch's.

    Returns:
        (N, D, H, W) of x's dtype, in x's layout.

    Raises:
        ValueError: a shape does not fit. RuntimeError: a named backend cannot run.
    """
    _check(x, weight, bias, residual, packed)
    kernels = KERNELS if backend or default_backend() else ("cpu",)
    chosen = select("conv3x3", x, backend, kernels)
    if chosen == "cpu":
        fits = _suits(x, weight, *weight.shape[:2]) and (packed is not None or _pixels(x) >= _LEAST)
    else:
        fits = chosen == "triton" and _suits_triton(x, weight)
    if not fits:
        return conv3x3_reference(x, weight, bias, residual)
    if chosen == "triton":
        packed = None
    elif packed is None:
        packed = pack_conv3x3(weight)
    elif not _is_packed(packed, weight):
        raise fail("conv3x3", "packed", "pack_conv3x3(weight)", "that of another weight")
    if torch.is_grad_enabled() and _needs_grad(x, weight, bias, residual):
        return _Conv3x3.apply(x, weight, bias, residual, packed)
    return forward(x, weight, packed, bias, residual)


def conv3x3_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """The same in plain PyTorch; the oracle in float64."""
    out = F.conv2d(x, weight, bias, padding=1)
    return like_layout(out if residual is None else out + residual, memory_format(x))


def uses_winograd(x: Tensor, weight: Tensor) -> bool:
    """Whether the CPU kernel, not PyTorch's convolution, runs this x and packed weight."""
    return default_backend() in (None, "cpu") and _suits(x, weight, *weight.shape[:2])


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def pack_conv3x3(weight: Tensor) -> Tensor:
    """`weight` (D, C, 3, 3) as the CPU kernel reads it: G g G', (D/32, 16, C, 32); no gradient.

    Only for weights of which `uses_winograd` holds.
    """
    packed = torch.ops.lddgan.pack_conv3x3(weight.detach(), False)
    _remember(packed, weight)
    return packed


class _Origin(NamedTuple):
    """What a packed weight was made from, and how both were then."""

    weight: Tensor  # shares its memory and version counter, and keeps the address from others
    version: int
    packed_version: int


_origins = WeakTensorKeyDictionary()  # of packed weights


def _remember(packed: Tensor, weight: Tensor) -> None:
    if not (packed.is_inference() or weight.is_inference()):  # which have no version counters
        _origins[packed] = _Origin(weight.detach(), weight._version, packed._version)


def _is_packed(packed: Tensor, weight: Tensor) -> bool:
    """Whether it is of this weight, as that is now.

    Not looked at under a dispatch mode: fakes have no values, and a recording may read none.
    """
    if torch._C._len_torch_dispatch_stack():
        return True
    weight = weight.detach()
    origin = _origins.get(packed)
    if (
        origin is not None
        and origin.version == origin.weight._version
        and origin.packed_version == packed._version
        and origin.weight.is_set_to(weight)
    ):
        # Only writing behind PyTorch's back could have changed it: filters' first taps, which are
        # packed as they are.
        return _same(packed[:, 0, 0], weight[:, 0, 0, 0].view(-1, PANEL))
    if not _same(packed, torch.ops.lddgan.pack_conv3x3(weight, False)):
        return False
    _remember(packed, weight)
    return True


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))  # NaN equals NaN


def _suits_triton(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype
        and memory_format(x) is torch.channels_last
        and not torch.is_autocast_enabled(x.device.type)
    )


def _suits(x: Tensor, weight: Tensor, c_out: int, c_in: int) -> bool:
    return (
        _HAS_KERNEL
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and c_in % LANE == 0
        and c_in > LANE
        and c_out % PANEL == 0
        and _pixels(x) >= (_LEAST if torch.is_grad_enabled() else _LEAST_PACKED)
        and memory_format(x) is torch.channels_last
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which packs PyTorch's weights itself
    )


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    packed: Tensor | None,
) -> None:
    op = "conv3x3"
    check_image(op, "x", x)
    check_tensor(op, "weight", weight)
    if weight.ndim != 4 or weight.shape[1] != x.shape[1] or weight.shape[2:] != (3, 3):
        raise fail(op, "weight", f"of shape (D, {x.shape[1]}, 3, 3)", tuple(weight.shape))
    d = weight.shape[0]
    if bias is not None and bias.shape != (d,):
        raise fail(op, "bias", f"of shape ({d},)", tuple(bias.shape))
    if residual is not None:
        shape = (x.shape[0], d, *x.shape[2:])
        if residual.shape != shape:
            raise fail(op, "residual", f"of shape {shape}", tuple(residual.shape))
    if packed is not None and packed.shape != (d // PANEL, 16, x.shape[1], PANEL):
        raise fail(op, "packed", "pack_conv3x3(weight)", f"one of shape {tuple(packed.shape)}")


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        packed: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return forward(x, weight, packed, bias, residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, need_residual, _ = ctx.needs_input_grad
        grad_x = grad_weight = None
        # To be differentiated again, all must be PyTorch's.
        if (need_x or need_weight) and not torch.is_grad_enabled():
            grad = like_layout(grad, torch.channels_last)
            large = _pixels(grad) >= _LEAST
            if need_x and large and _suits(grad, weight, weight.shape[1], weight.shape[0]):
                packed = torch.ops.lddgan.pack_conv3x3(weight, True)
                grad_x = torch.ops.lddgan.conv3x3(grad, packed, None, None)
            if need_weight and large and _suits(x, weight, *weight.shape[:2]):
                in_layout = memory_format(weight) is torch.channels_last
                grad_weight = torch.ops.lddgan.conv3x3_weight_grad(grad, x, in_layout)
        sizes = (weight.shape[0],) if need_bias else None
        one = (1, 1)
        mask = (need_x and grad_x is None, need_weight and grad_weight is None, need_bias)
        others: tuple[Tensor | None, ...] = (None, None, None)
        if any(mask):
            others = torch.ops.aten.convolution_backward(
                grad, x, weight, sizes, one, one, one, False, (0, 0), 1, mask
            )
        return (
            others[0] if grad_x is None else grad_x,
            others[1] if grad_weight is None else grad_weight,
            others[2],
            grad if need_residual else None,
            None,
        )


def forward(
    x: Tensor,
    weight: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Winograd's on the CPU, which has a packed weight, else Triton's; without checks."""
    if residual is not None:
        residual = like_layout(residual, torch.channels_last)
    if bias is not None:
        bias = bias.contiguous()
    if packed is None:
        from lddgan_kernels.triton import conv3x3 as kernel

        return kernel.forward(x, weight, bias, residual)
    return torch.ops.lddgan.conv3x3(x, packed, bias, residual)


if _extension.is_loaded():

    @torch.library.register_fake("lddgan::conv3x3")
    def _(x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        shape = (x.shape[0], packed.shape[0] * PANEL, x.shape[2], x.shape[3])
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    @torch.library.register_fake("lddgan::pack_conv3x3")
    def _(weight: Tensor, transposed: bool) -> Tensor:
        d, c = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
        return weight.new_empty(d // PANEL, 16, c, PANEL)

    @torch.library.register_fake("lddgan::conv3x3_weight_grad")
    def _(grad: Tensor, x: Tensor, channels_last: bool) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        shape = (grad.shape[1], x.shape[1], 3, 3)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
