"""The blocks of the VQGAN encoder and decoder (Esser et al. 2021, after Ho et al. 2020).

All take and return maps (N, C, H, W) and keep the layout they are given.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn

Map = Tensor | nn.FeatureMap


def norm(channels: int) -> nn.GroupNorm:
    """Group norm and SiLU."""
    return nn.GroupNorm(channels, nn.largest_group_count(channels))


class ResnetBlock(torch.nn.Module):
    """x + conv(dropout(norm(conv(norm(x))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.LateBiasConv2d(in_channels, out_channels, 3)
        self.norm2 = norm(out_channels)
        self.dropout = torch.nn.Dropout(dropout)
        self.conv2 = nn.ResidualConv(out_channels, out_channels, factor=1.0)
        changes = in_channels != out_channels
        self.shortcut = nn.Shortcut(in_channels, out_channels) if changes else None

    def forward(self, x: Map) -> nn.FeatureMap:
        h = self.conv1(self.norm1(x))
        h = self.dropout(self.norm2(h))
        return self.conv2(h, x, shortcut=self.shortcut)


class AttentionBlock(nn.Attention):
    """x + one-head self-attention over all positions, of the normalised x."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, nn.largest_group_count(channels), convolutions=True)


class Downsample(torch.nn.Module):
    """Halves the resolution: 3x3 convolution of stride 2, zeros at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.LateBiasConv2d(channels, channels, 3, stride=2)

    def forward(self, x: Map) -> nn.FeatureMap:
        return self.conv(F.pad(nn.as_tensor(x), (0, 1, 0, 1)))


class Upsample(torch.nn.Module):
    """Doubles the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.NearestUpsampleConv2d(channels)

    def forward(self, x: Map) -> nn.FeatureMap:
        return self.conv(x)


class Level(torch.nn.Module):
    """The blocks at one resolution, each followed by its attention if any, then the resampling."""

    def __init__(
        self,
        widths: list[int],
        attention: bool,
        resample: Downsample | Upsample | None,
        dropout: float,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.blocks = torch.nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attention = torch.nn.ModuleList(AttentionBlock(b) for _, b in pairs if attention)
        self.resample = resample

    def forward(self, h: Map) -> Map:
        for i, block in enumerate(self.blocks):
            h = block(h)
            if self.attention:
                h = self.attention[i](h)
        return h if self.resample is None else self.resample(h)


class Middle(torch.nn.Sequential):
    """Two blocks with attention between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(
            ResnetBlock(width, width, dropout),
            AttentionBlock(width),
            ResnetBlock(width, width, dropout),
        )
