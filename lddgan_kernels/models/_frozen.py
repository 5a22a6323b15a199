"""Convolutions for inference on the CPU: weights packed once, what follows folded into them."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor

from lddgan_kernels.models._derived import Derived
from lddgan_kernels.ops import conv3x3, packed_conv2d
from lddgan_kernels.ops.conv3x3 import pack_conv3x3, uses_winograd
from lddgan_kernels.ops.packed_conv2d import PackedForms

Packed = TypeVar("Packed")


class FrozenConv:
    """factor * (conv2d(x, weight) + bias + more_bias) + residual, without gradients.

    For a convolution that keeps the resolution, where `packs(x, weight)`. A changed weight is seen
    (see `Derived`).

    Args:
        factor: multiplied into weight and biases beforehand.
        channels: which input channels of the weight are meant.
    """

    def __init__(self, factor: float = 1.0, channels: slice = slice(None)) -> None:
        self.onednn = Derived(partial(_pack, PackedForms, factor, channels))
        self.winograd = Derived(partial(_pack, _for_winograd, factor, channels))

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        more_bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """The convolution; with `overwrite` the residual's memory may be reused."""
        if weight.shape[2] == 3 and uses_winograd(x, weight):
            packed, total = self.winograd(weight, bias, more_bias)
            return conv3x3(x, weight, total, residual=residual, packed=packed)
        forms, total = self.onednn(weight, bias, more_bias)
        return packed_conv2d(x, forms(x), total, residual=residual, overwrite=overwrite)


def _pack(
    pack: Callable[[Callable[[], Tensor]], Packed],
    factor: float,
    channels: slice,
    weight: Tensor,
    bias: Tensor | None,
    more_bias: Tensor | None,
) -> tuple[Packed, Tensor | None]:
    """(`pack` of what makes the weight, sum of the biases), times `factor`."""
    part = weight.detach()[:, channels]
    biases = [b for b in (bias, more_bias) if b is not None]
    total = sum(biases[1:], biases[0]) * factor if biases else None
    return pack(lambda: part if factor == 1.0 else part * factor), total


def _for_winograd(weight: Callable[[], Tensor]) -> Tensor:
    return pack_conv3x3(weight())
