"""A 3x3 convolution that keeps its weight packed for the CPU's kernels."""

import torch
from torch import Tensor, nn

from lddgan_kernels._backend import default_backend
from lddgan_kernels.models._derived import Derived
from lddgan_kernels.models._frozen import FrozenConv
from lddgan_kernels.ops.conv3x3 import conv3x3, pack_conv3x3, uses_winograd
from lddgan_kernels.ops.packed_conv2d import packs
from lddgan_kernels.ops.residual_scale import residual_scale


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
        bias = self.bias if biased else None
        if not self.training and packs(x, self.weight):
            return self.frozen(x, self.weight, bias, more_bias, residual=residual)
        packed = self.packed(self.weight) if uses_winograd(x, self.weight) else None
        if more_bias is not None:
            bias = more_bias if bias is None else self.total_bias(bias, more_bias)
        if residual is None or packed is not None or default_backend() == "triton":
            return conv3x3(x, self.weight, bias, residual=residual, packed=packed)
        return residual_scale(residual, conv3x3(x, self.weight), bias=bias, factor=1.0)
