"""The residual blocks of the generators, and what changes the resolution between them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels.ops import upfirdn2d


class Modulation(NamedTuple):
    """What z and t set in a block.

    Attributes:
        norm0: scale and shift of its first norm, (N, in_channels) each.
        norm1: those of its second, (N, out_channels) each.
        bias: (N, out_channels), added after its first convolution.
    """

    norm0: nn.Style
    norm1: nn.Style
    bias: Tensor


class Block(torch.nn.Module):
    """What all ResBlocks share: convolutions, second norm and shortcut.

    Args:
        in_channels: of its input, or of its two inputs together.
        out_channels: of its output.
        index: the block's place in the network's order of execution.
        factor: of the residual sum.
        dropout: probability, before the last convolution.
        shortcut: whether a 1x1 convolution stands on the shortcut even where the widths agree.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        index: int,
        factor: float,
        dropout: float,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.index = index
        # The bias of the first convolution is the modulation's.
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, bias=False, init_scale=1.0)
        self.norm1 = nn.AdaGroupNorm(out_channels)
        self.dropout = torch.nn.Dropout(dropout)
        self.conv1 = nn.ResidualConv(out_channels, out_channels, factor=factor, init_scale=0.0)
        self.shortcut = None
        if shortcut or in_channels != out_channels:
            self.shortcut = nn.Shortcut(in_channels, out_channels, init_scale=1.0)


class ResBlock(Block):
    """BigGAN's ResBlock with adaptive norms (NCSN++, Song et al. 2021; AdaGN of DDGAN).

    norm(z)-SiLU-conv, time bias, norm(z)-SiLU-dropout-conv, plus the shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, index: int, factor: float, dropout: float
    ) -> None:
        super().__init__(
            in_channels, out_channels, index=index, factor=factor, dropout=dropout, shortcut=False
        )
        self.norm0 = nn.AdaGroupNorm(in_channels)

    def forward(
        self, x: Tensor | nn.FeatureMap, mod: Modulation, x2: Tensor | nn.FeatureMap | None = None
    ) -> nn.FeatureMap:
        """The map x, read as if `x2` were concatenated to it on channels, through the block."""
        h = self.conv0(self.norm0(x, mod.norm0, x2))
        h = self.dropout(self.norm1(h, mod.norm1, bias=mod.bias))
        return self.conv1(h, x, x2, shortcut=self.shortcut)


class DownBlock(Block):
    """A ResBlock that halves the resolution after its first norm."""

    def __init__(
        self, channels: int, *, index: int, factor: float, dropout: float, fir: bool
    ) -> None:
        super().__init__(channels, channels, index=index, factor=factor, dropout=dropout)
        self.norm0 = nn.ResampledAdaGroupNorm(channels, "down", fir=fir)

    def forward(
        self, x: Tensor | nn.FeatureMap, mod: Modulation
    ) -> tuple[nn.FeatureMap, Tensor | None]:
        """(output, None): the block that doubles the resolution again needs nothing of it."""
        h, s = self.norm0(x, mod.norm0)
        h = self.dropout(self.norm1(self.conv0(h), mod.norm1, bias=mod.bias))
        return self.conv1(h, s, shortcut=self.shortcut), None


class UpBlock(Block):
    """A ResBlock that doubles the resolution after its first norm."""

    def __init__(
        self, channels: int, *, index: int, factor: float, dropout: float, fir: bool
    ) -> None:
        super().__init__(channels, channels, index=index, factor=factor, dropout=dropout)
        self.norm0 = nn.ResampledAdaGroupNorm(channels, "up", fir=fir)

    def forward(
        self, x: Tensor | nn.FeatureMap, mod: Modulation, high: Tensor | None
    ) -> nn.FeatureMap:
        """The block on the map x; `high` is what the matching DownBlock gave: None."""
        # Without its bias the 1x1 convolution may come first, on a quarter of the pixels.
        h, s = self.norm0(x, mod.norm0, self.shortcut)
        h = self.dropout(self.norm1(self.conv0(h), mod.norm1, bias=mod.bias))
        return self.conv1(h, s, shortcut=self.shortcut, projected=True)


class PyramidDown(torch.nn.Module):
    """The input pyramid's step down: FIR filter, then a 3x3 convolution of stride 2, plus h.

    Without `fir` only the convolution, after one row and column of zeros at the end. The sum is
    times `factor`.
    """

    taps: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, fir: bool, factor: float) -> None:
        super().__init__()
        self.fir = fir
        self.factor = factor
        self.conv = nn.LateBiasConv2d(in_channels, out_channels, 3, stride=2, init_scale=1.0)
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, persistent=False)

    def forward(self, x: Tensor | nn.FeatureMap, h: Tensor | nn.FeatureMap) -> nn.FeatureMap:
        x = nn.as_tensor(x)
        x = upfirdn2d(x, self.taps, pad=(2, 2)) if self.fir else F.pad(x, (0, 1, 0, 1))
        return self.conv(x).plus(h, self.factor)
