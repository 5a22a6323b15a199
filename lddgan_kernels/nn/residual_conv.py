"""The last convolution of a residual block together with the sum that it ends in."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels.nn._packed_conv import PackedConv
from lddgan_kernels.nn.cached import Cached
from lddgan_kernels.nn.conv2d import Conv2d, Shortcut
from lddgan_kernels.nn.feature_map import FeatureMap, as_map

SQRT_HALF = math.sqrt(0.5)


class ResidualConv(Conv2d):
    """(conv(h) + shortcut(cat(x, x2))) * factor, in as few passes as this processor needs.

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size, stride, init_scale: as for `Conv2d`.
        factor: of the sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        factor: float = SQRT_HALF,
        init_scale: float | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, init_scale=init_scale
        )
        self.factor = factor
        self._scaled = PackedConv(factor)
        self._biases: Cached[Tensor] = Cached()
        self._shortcut_bias: Cached[Tensor] = Cached()

    def forward(  # type: ignore[override]
        self,
        h: Tensor,
        x: Tensor | FeatureMap,
        x2: Tensor | FeatureMap | None = None,
        *,
        shortcut: Shortcut | None = None,
        projected: bool = False,
    ) -> FeatureMap:
        """The sum, (N, out_channels, H', W').

        Args:
            h: (N, in_channels, H, W).
            x: what the shortcut reads.
            x2: its second source, read as if concatenated to x on channels; needs a shortcut.
            shortcut: a 1x1 convolution; None: x is added as it is.
            projected: x has passed the shortcut already, and what came between; its bias has not
                been added.
        """
        weight, bias = self.weight, self.bias
        s, missing = as_map(x).without_bias()
        more_bias = self._bias_of(shortcut, missing)
        packed = self.runs_packed(h, weight)
        if packed and shortcut is not None and not projected:
            s = shortcut(s, factor=self.factor)
            if x2 is not None:
                first = as_map(x).x.shape[1]
                s = shortcut(x2, first=first, factor=self.factor, residual=s)
            overwrite = not shortcut._forward_hooks
            return FeatureMap(
                self._scaled(h, weight, bias, more_bias, residual=s, overwrite=overwrite)
            )
        others: tuple[Tensor, ...] = ()
        if shortcut is not None and not projected:
            if x2 is not None:
                others = (shortcut(x2, first=s.shape[1]),)
            s = shortcut(s)
        total = self.total_bias(bias, more_bias)
        if self.factor == 1.0 and not others and self.adds_residual(h, weight):
            return FeatureMap(self.convolve(h, weight, total, residual=s))
        h = self.convolve(h, weight, None)
        return FeatureMap(s, h, *others, bias=total, factor=self.factor)

    def reference(
        self,
        h: Tensor,
        x: Tensor | FeatureMap,
        x2: Tensor | FeatureMap | None = None,
        *,
        shortcut: Shortcut | None = None,
        projected: bool = False,
    ) -> Tensor:
        """`forward` in plain PyTorch, as one reads it in the papers."""
        s = as_map(x).x
        if shortcut is not None and projected:
            s = s if shortcut.bias is None else s + shortcut.bias[:, None, None]
        elif shortcut is not None:
            s = s if x2 is None else torch.cat([s, as_map(x2).x], dim=1)
            s = F.conv2d(s, shortcut.weight, shortcut.bias)
        return (s + F.conv2d(h, self.weight, self.bias, self.stride, self.padding)) * self.factor

    def _bias_of(self, shortcut: Shortcut | None, missing: Tensor | None) -> Tensor | None:
        """What the shortcut adds beside its product: its bias, and what it makes of the one that
        its input lacks."""
        if shortcut is None or missing is None:
            return missing if shortcut is None else shortcut.bias
        return self._shortcut_bias(_through, shortcut.weight, missing, shortcut.bias)

    def total_bias(self, bias: Tensor | None, more_bias: Tensor | None) -> Tensor | None:
        """Their sum; either may be missing."""
        if bias is None or more_bias is None:
            return more_bias if bias is None else bias
        return self._biases(torch.add, bias, more_bias)


def _through(weight: Tensor, bias: Tensor, own: Tensor | None) -> Tensor:
    """A 1x1 convolution of the constant map `bias`."""
    flat = weight.flatten(1)
    return flat.mv(bias) if own is None else torch.addmv(own, flat, bias)
