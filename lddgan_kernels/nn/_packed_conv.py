"""Convolutions for inference on the CPU: weights packed once, what follows folded into them."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor

from lddgan_kernels.nn.cached import Cached
from lddgan_kernels.nn.tracing import is_traced
from lddgan_kernels.ops import packed_conv2d
from lddgan_kernels.ops.conv3x3 import forward, pack_conv3x3, uses_winograd
from lddgan_kernels.ops.packed_conv2d import PackedForms, in_large_pages, packs

Packed = TypeVar("Packed")


class PackedConv:
    """factor * (conv2d(x, weight) + bias + more_bias) + residual, without gradients.

    For a convolution that keeps the resolution, where it `suits(x, weight)`. A changed weight is
    seen (see `Cached`).

    Args:
        factor: multiplied into weight and biases beforehand.
        channels: which input channels of the weight are meant.
    """

    def __init__(self, factor: float = 1.0, channels: slice = slice(None)) -> None:
        self.factor = factor
        self.channels = channels
        self.onednn: Cached[tuple[PackedForms, Tensor | None]] = Cached()
        self.winograd: Cached[tuple[Tensor, Tensor | None]] = Cached()

    @staticmethod
    def suits(x: Tensor, weight: Tensor) -> bool:
        """Whether such a convolution is better packed."""
        return packs(x, weight) and not is_traced()

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
        options = self.factor, self.channels
        if weight.shape[2] == 3 and uses_winograd(x, weight):
            make = partial(_pack, _for_winograd, *options)
            packed, total = self.winograd(make, weight, bias, more_bias)
            return forward(x, weight, packed, total, residual)
        forms, total = self.onednn(partial(_pack, PackedForms, *options), weight, bias, more_bias)
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
    return in_large_pages(pack_conv3x3(weight()))
