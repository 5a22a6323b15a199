"""Convolutions, each run by what is fastest on this processor; here that is chosen, for all.

Without gradients and in evaluation mode a CPU runs them from packed weights (`PackedConv`); in
training it keeps those of Winograd's 3x3 convolution. Everything else is PyTorch's convolution. On
a GPU each bias of a convolution is a pass over its output, which the layers here leave to what
comes next.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._backend import default_backend
from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels.nn import init
from lddgan_kernels.nn._packed_conv import PackedConv
from lddgan_kernels.nn.cached import Cached
from lddgan_kernels.nn.feature_map import FeatureMap, as_tensor
from lddgan_kernels.nn.tracing import is_traced
from lddgan_kernels.ops import bias_act, conv3x3
from lddgan_kernels.ops.conv3x3 import pack_conv3x3, uses_winograd


def in_fastest_layout(x: Tensor) -> Tensor:
    """The map x (N, C, H, W) in the layout that convolutions are fastest in here.

    Channels_last on CPUs, which convolutions then pass on; x itself on GPUs.
    """
    if x.device.type == "cpu" and default_backend() in (None, "cpu"):
        return like_layout(x, torch.channels_last)
    return x


class Conv2d(nn.Conv2d):
    """A convolution (N, C, H, W) -> (N, D, H', W') that keeps the layout.

    Padded so that the resolution stays where `stride` is 1; with a stride nothing is padded: what
    comes before does it.

    Args:
        in_channels, out_channels: C and D.
        kernel_size: odd.
        stride, groups, bias: as in PyTorch.
        init_scale: the weights start by `init.variance_scaling_` with it; None: as in PyTorch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        init_scale: float | None = None,
    ) -> None:
        self.init_scale = init_scale
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias
        )
        self.packed = PackedConv()
        self.winograd: Cached[Tensor] = Cached(differentiable=False)

    def reset_parameters(self) -> None:
        """As `init_scale` says; biases of 0 where it says anything."""
        super().reset_parameters()  # a seed stands for the same network as ever
        init.start(self, self.init_scale)

    def forward(self, x: Tensor | FeatureMap) -> Any:
        """The convolution of x, a tensor; subclasses leave parts of it open."""
        return self.convolve(as_tensor(x), self.weight, self.bias)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        """The convolution by this weight, plus bias and residual."""
        if self.runs_packed(x, weight):
            return self.packed(x, weight, bias, residual=residual)
        if self._is_plain_3x3:
            packed = None
            if uses_winograd(x, weight) and not is_traced():
                packed = self.winograd(pack_conv3x3, weight)
            return conv3x3(x, weight, bias, residual=residual, packed=packed)
        out = F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups)
        return out if residual is None else out + residual

    def runs_packed(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the weight is packed once for such an x."""
        keeps_size = self.stride == (1, 1) and self.groups == 1
        return not self.training and keeps_size and PackedConv.suits(x, weight)

    def adds_residual(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the convolution of x adds a residual on its way; else that is a pass."""
        if self.runs_packed(x, weight):
            return True
        return self._is_plain_3x3 and (uses_winograd(x, weight) or default_backend() == "triton")

    @property
    def _is_plain_3x3(self) -> bool:
        return self.kernel_size == (3, 3) and self.stride == (1, 1) and self.groups == 1


class LateBiasConv2d(Conv2d):
    """`Conv2d` of a map whose bias is left to what reads the output."""

    def forward(self, x: Tensor | FeatureMap) -> FeatureMap:  # type: ignore[override]
        return FeatureMap(self.convolve(as_tensor(x), self.weight, None), bias=self.bias)


class StemConv2d(LateBiasConv2d):
    """The first convolution of a network: whatever the layout of its input, what follows has the
    one that convolutions are fastest in here."""

    def forward(self, x: Tensor | FeatureMap) -> FeatureMap:  # type: ignore[override]
        x = in_fastest_layout(as_tensor(x))
        h = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return FeatureMap(h, bias=self.bias)


class LeakyReLUConv2d(Conv2d):
    """`Conv2d`, then leaky ReLU (0.2), which adds the bias."""

    def forward(self, x: Tensor | FeatureMap) -> Tensor:
        assert self.bias is not None
        h = self.convolve(as_tensor(x), self.weight, None)
        return bias_act(h, self.bias, "leaky_relu")


class Shortcut(Conv2d):
    """A 1x1 convolution on the shortcut of a `ResidualConv`, which adds its bias.

    Args:
        in_channels: of the map, or of its two sources together.
        out_channels, bias, init_scale: as for `Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        init_scale: float | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias, init_scale=init_scale)
        self._slices: dict[int, Cached[Tensor]] = {}
        self._packed_slices: dict[tuple[int, float], PackedConv] = {}

    def forward(
        self,
        x: Tensor | FeatureMap,
        *,
        first: int = 0,
        factor: float | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The convolution, without its bias, of the input channels from `first` on, which are x.

        With a `factor`, which only `ResidualConv` gives, from packed weights: times it, plus
        `residual`, whose memory is reused.
        """
        x, weight = as_tensor(x), self.weight
        channels = slice(first, first + x.shape[1])
        if factor is None and self.runs_packed(x, weight):
            factor = 1.0
        if factor is not None:
            packed = self._packed_slices.setdefault((first, factor), PackedConv(factor, channels))
            return packed(x, weight, residual=residual, overwrite=not self._forward_hooks)
        if x.shape[1] < weight.shape[1]:  # cuDNN would copy a slice in every call
            cached = self._slices.setdefault(first, Cached())
            weight = cached(lambda weight: weight[:, channels].contiguous(), weight)
        return F.conv2d(x, weight)


class NearestUpsampleConv2d(LateBiasConv2d):
    """Nearest-neighbour doubling, then a 3x3 convolution; the bias is left to what reads it.

    Both at once: each of the four output phases sees only 2x2 inputs, with sums of the nine weights
    (4/9 of the multiplications, the same up to rounding). Together the phases are one transposed
    convolution of stride 2 with the 4x4 kernel of `fold_nearest`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)
        self._kernel: Cached[Tensor] = Cached()

    def forward(self, x: Tensor | FeatureMap) -> FeatureMap:  # type: ignore[override]
        kernel = self._kernel(fold_nearest, self.weight)
        h = F.conv_transpose2d(as_tensor(x), kernel, None, stride=2, padding=1)
        return FeatureMap(h, bias=self.bias)


def fold_nearest(weight: Tensor) -> Tensor:
    """The transposed convolution's kernel (C, D, 4, 4) of doubling before `weight` (D, C, 3, 3).

    The 3x3 kernel convolved with the 2x2 box of ones, summed in float32 at least.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    turned = wide.flip(2, 3).transpose(0, 1)
    rows = F.pad(turned, (0, 0, 0, 1)) + F.pad(turned, (0, 0, 1, 0))
    kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
    return like_layout(kernel.to(weight.dtype), memory_format(weight))
