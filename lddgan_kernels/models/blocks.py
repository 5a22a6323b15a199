"""The residual blocks of the generators, and what changes the resolution between them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.models._derived import Derived
from lddgan_kernels.models._frozen import FrozenConv
from lddgan_kernels.models.feature_map import FeatureMap
from lddgan_kernels.models.layers import BlockControl, bias_of, conv2d, group_count, merge
from lddgan_kernels.ops import ada_group_norm, norm_resample, upfirdn2d
from lddgan_kernels.ops.packed_conv2d import packs


class Block(nn.Module):
    """What all ResBlocks share: norms, convolutions and shortcut, without their order.

    Args:
        index: the block's place in the network's order of execution.
        in_channels: of its input, or of its two inputs together.
        out_channels: of its output.
        rescale: whether the residual sum is divided by sqrt(2).
        dropout: probability, before the last convolution.
        shortcut: whether a 1x1 convolution stands on the shortcut even where the widths agree.
        normed: whether a norm reads the output, and nothing beside it.
    """

    def __init__(
        self,
        index: int,
        in_channels: int,
        out_channels: int,
        *,
        rescale: bool,
        dropout: float,
        shortcut: bool = False,
        normed: bool = True,
    ) -> None:
        super().__init__()
        self.index = index
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = (group_count(in_channels), group_count(out_channels))
        self.rescale = rescale
        self.dropout = dropout
        self.normed = normed
        self.conv0 = conv2d(in_channels, out_channels, 3, bias=False)
        self.conv1 = conv2d(out_channels, out_channels, 3, scale=0.0)
        shortcut = shortcut or in_channels != out_channels
        self.shortcut = conv2d(in_channels, out_channels, 1) if shortcut else None
        # For inference on packed weights: the two halves of the sum come scaled, the shortcut of
        # each source added to the next.
        factor = math.sqrt(0.5) if rescale else 1.0
        self.frozen_shortcuts: dict[int, FrozenConv] = {}
        self.frozen_conv1 = FrozenConv(factor)
        self.factor = factor
        self.total_bias = Derived(torch.add)
        # cuDNN would copy a slice of the weight in every call.
        self.slices: dict[int, Derived[Tensor]] = {}

    def first_norm(self, x: FeatureMap, mine: BlockControl, x2: Tensor | None = None) -> Tensor:
        """The first norm and SiLU."""
        moments = x.moments if x2 is None else None
        return ada_group_norm(x.x, mine.scale0, mine.shift0, self.groups[0], x2=x2, moments=moments)

    def folds(self, x: Tensor) -> bool:
        """Whether, for an input x, the shortcut comes scaled and the rest is added to it."""
        fits = self.shortcut is not None and not self.training
        return fits and packs(x, self.conv1.weight)

    def project(self, x: Tensor, first: int = 0, *, folds: bool = False) -> Tensor:
        """The shortcut's convolution of its channels from `first` on, which are x.

        Without its bias, which `finish` adds.
        """
        if self.shortcut is None:
            return x
        if folds:
            return self._frozen_shortcut(x, first, None)
        weight = self.shortcut.weight
        if x.shape[1] < weight.shape[1]:
            if first not in self.slices:
                self.slices[first] = Derived(partial(_channels, first, x.shape[1]))
            weight = self.slices[first](weight)
        return F.conv2d(x, weight)

    def finish(
        self,
        x: Tensor,
        h: Tensor,
        mine: BlockControl,
        *,
        h2: Tensor | None = None,
        folds: bool = False,
    ) -> FeatureMap:
        """The second half of the block on `h`, summed with what `project` made: `x`, `h2`."""
        h = ada_group_norm(h, mine.scale1, mine.shift1, self.groups[1], bias=mine.bias)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        conv, more_bias = self.conv1, None if self.shortcut is None else self.shortcut.bias
        bias = bias_of(conv)
        if folds:
            return FeatureMap(
                self.frozen_conv1(h, conv.weight, bias, more_bias, residual=x, overwrite=True)
            )
        if more_bias is not None:
            bias = self.total_bias(bias, more_bias)
        h = conv(h, biased=False)
        return merge(x, h, self.rescale, h2=h2, bias=bias, normed=self.normed)

    def _frozen_shortcut(self, x: Tensor, first: int, residual: Tensor | None) -> Tensor:
        """The shortcut of the channels from `first` on, scaled, added to `residual`."""
        assert self.shortcut is not None
        if first not in self.frozen_shortcuts:
            channels = slice(first, first + x.shape[1])
            self.frozen_shortcuts[first] = FrozenConv(self.factor, channels)
        conv = self.frozen_shortcuts[first]
        return conv(x, self.shortcut.weight, residual=residual, overwrite=True)


def _channels(first: int, count: int, weight: Tensor) -> Tensor:
    """The input channels of a convolution's weight from `first` on."""
    return weight[:, first : first + count].contiguous()


class ResBlock(Block):
    """BigGAN's ResBlock with adaptive norms (NCSN++, Song et al. 2021; AdaGN of DDGAN).

    norm(z)-SiLU-conv, time bias, norm(z)-SiLU-dropout-conv, plus the shortcut. The second norm adds
    the time bias, and with it the first convolution's own.
    """

    def forward(
        self, given: FeatureMap, control: Sequence[BlockControl], x2: Tensor | None = None
    ) -> FeatureMap:
        """The given map, read as if `x2` were concatenated to it on channels, through the block."""
        mine, x = control[self.index], given.x
        folds = self.folds(x)
        h = self.conv0(self.first_norm(given, mine, x2))
        shortcut, h2 = self.project(x, folds=folds), None
        if x2 is not None and folds:
            shortcut = self._frozen_shortcut(x2, x.shape[1], shortcut)
        elif x2 is not None:
            h2 = self.project(x2, x.shape[1])
        return self.finish(shortcut, h, mine, h2=h2, folds=folds)


class DownBlock(Block):
    """A ResBlock that halves the resolution after its first norm."""

    def __init__(self, index: int, channels: int, *, fir: bool, **options: Any) -> None:
        super().__init__(index, channels, channels, shortcut=True, **options)
        self.fir = fir

    def forward(
        self, given: FeatureMap, control: Sequence[BlockControl]
    ) -> tuple[FeatureMap, Tensor | None]:
        """(output, None): nothing is kept for the block that doubles the resolution again."""
        mine, folds = control[self.index], self.folds(given.x)
        if self.fir:
            h, x = norm_resample(
                given.x, mine.scale0, mine.shift0, self.groups[0], "down", moments=given.moments
            )
        else:
            h, x = (F.avg_pool2d(map_, 2) for map_ in (self.first_norm(given, mine), given.x))
        h = self.conv0(h)
        return self.finish(self.project(x, folds=folds), h, mine, folds=folds), None


class UpBlock(Block):
    """A ResBlock that doubles the resolution after its first norm."""

    def __init__(self, index: int, channels: int, *, fir: bool, **options: Any) -> None:
        super().__init__(index, channels, channels, shortcut=True, **options)
        self.fir = fir

    def forward(
        self, given: FeatureMap, control: Sequence[BlockControl], kept: Tensor | None
    ) -> FeatureMap:
        """The block on the given map; `kept` is what the matching DownBlock kept: None."""
        mine, folds = control[self.index], self.folds(given.x)
        # The 1x1 convolution has no bias here, so it may come first, on a quarter of the pixels.
        x = self.project(given.x, folds=folds)
        if self.fir:
            h, x = norm_resample(
                given.x, mine.scale0, mine.shift0, self.groups[0], "up", skip=x,
                moments=given.moments,
            )  # fmt: skip
        else:
            h, x = (
                F.interpolate(map_, scale_factor=2.0, mode="nearest")
                for map_ in (self.first_norm(given, mine), x)
            )
        return self.finish(x, self.conv0(h), mine, folds=folds)


class PyramidDown(nn.Module):
    """The input pyramid's step down: FIR filter, then a 3x3 convolution of stride 2, plus h.

    Without `fir` only the convolution, after one row and column of zeros at the end. The sum is
    over sqrt(2) where `rescale`.
    """

    taps: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, fir: bool, rescale: bool) -> None:
        super().__init__()
        self.fir = fir
        self.rescale = rescale
        self.conv = conv2d(in_channels, out_channels, 3, stride=2)
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, persistent=False)

    def forward(self, x: Tensor, h: Tensor) -> FeatureMap:
        x = upfirdn2d(x, self.taps, pad=(2, 2)) if self.fir else F.pad(x, (0, 1, 0, 1))
        x = F.conv2d(x, self.conv.weight, stride=2)
        return merge(x, h, self.rescale, bias=self.conv.bias)
