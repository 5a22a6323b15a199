"""A 3x3 convolution that keeps its weight packed for the CPU's kernels."""

import torch
from torch import Tensor, nn

from lddgan_kernels._backend import default_backend
from lddgan_kernels.models._derived import Derived
from lddgan_kernels.models._frozen import FrozenConv
from lddgan_kernels.ops.conv3x3 import conv3x3, pack_conv3x3, uses_winograd
from lddgan_kernels.ops.packed_conv2d import packs


class Conv3x3(nn.Conv2d):
    """nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias).

    Adds a residual, and a second bias (out_channels,), where they are given; without its own bias
    where not `biased`: on a GPU each bias of a convolution is a pass over its output, so what comes
    next adds it.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.packed = Derived(pack_conv3x3, differentiable=False)
        self.frozen = FrozenConv()
        self.total_bias = Derived(torch.add)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        more_bias: Tensor | None = None,
        *,
        biased: bool = True,
    ) -> Tensor:
        if self._is_frozen(x):
            bias = self.bias if biased else None
            return self.frozen(x, self.weight, bias, more_bias, residual=residual)
        packed = self.packed(self.weight) if uses_winograd(x, self.weight) else None
        bias = self.biases(more_bias) if biased else more_bias
        return conv3x3(x, self.weight, bias, residual=residual, packed=packed)

    def adds(self, x: Tensor) -> bool:
        """Whether the convolution of such an x adds a residual on its way; else it is a pass."""
        return self._is_frozen(x) or uses_winograd(x, self.weight) or default_backend() == "triton"

    def biases(self, more_bias: Tensor | None) -> Tensor | None:
        """Its own bias and `more_bias`, of which either may be missing."""
        if self.bias is None or more_bias is None:
            return more_bias if self.bias is None else self.bias
        return self.total_bias(self.bias, more_bias)

    def _is_frozen(self, x: Tensor) -> bool:
        return not self.training and packs(x, self.weight)
