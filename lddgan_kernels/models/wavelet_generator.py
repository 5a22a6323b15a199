"""WDDGAN's generator: NCSN++ that changes resolution by Haar wavelets.

Phung et al. 2023, "Wavelet diffusion models are fast and scalable image generators". Three changes
to NCSN++: blocks that halve the resolution keep the low band and hand their high bands to the block
that doubles it again; the middle works on the low band; the input pyramid sees all four bands. All
bands are halved, so that the low band, then the mean of 2x2, keeps the range of its input.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels.models.blocks import Block, Modulation, ResBlock
from lddgan_kernels.models.generator import Generator, GeneratorConfig, Map
from lddgan_kernels.ops import haar_dwt2d


class WaveletDownBlock(Block):
    """A ResBlock that halves the resolution after its first convolution; keeps the high bands."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, channels, **options)
        self.norm0 = nn.AdaGroupNorm(channels)
        self.haar = nn.Haar(0.5)

    def forward(self, x: Map, mod: Modulation) -> tuple[nn.FeatureMap, Tensor]:
        """(output, high bands (N, 3C, H/2, W/2))."""
        h = self.conv0(self.norm0(x, mod.norm0))
        # The modulation's bias shifts the low band alone, so the second norm adds it.
        low, high = self.haar(h)
        h = self.dropout(self.norm1(low, mod.norm1, bias=mod.bias))
        # The shortcut's high bands are not used, and its halved low band is the mean of 2x2, which
        # commutes with the 1x1 convolution.
        return self.conv1(h, F.avg_pool2d(nn.as_tensor(x), 2), shortcut=self.shortcut), high


class WaveletUpBlock(Block):
    """A ResBlock that doubles the resolution after its first convolution, with high bands given.

    Args:
        high_channels: of each high band that its WaveletDownBlock keeps.
    """

    def __init__(self, channels: int, high_channels: int, **options: Any) -> None:
        super().__init__(channels, channels, **options)
        self.norm0 = nn.AdaGroupNorm(channels)
        self.conv_high = nn.Conv2d(3 * high_channels, 3 * channels, 3, groups=3, init_scale=1.0)
        self.inverse = nn.InverseHaar(0.5)

    def forward(self, x: Map, mod: Modulation, high: Tensor) -> nn.FeatureMap:
        """The block on the map x, with the high bands of its WaveletDownBlock."""
        assert self.shortcut is not None
        h = self.conv0(self.norm0(x, mod.norm0))
        high = self.conv_high(high)
        h, s = self.inverse(h, high), self.inverse(self.shortcut(x), high)
        h = self.dropout(self.norm1(h, mod.norm1, bias=mod.bias))
        return self.conv1(h, s, shortcut=self.shortcut, projected=True)


class WaveletPyramidDown(torch.nn.Module):
    """The input pyramid's step down: all four bands, then a 3x3 convolution, plus h.

    The sum is times `factor`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.LateBiasConv2d(4 * in_channels, out_channels, 3, init_scale=1.0)

    def forward(self, x: Map, h: Map) -> nn.FeatureMap:
        return self.conv(haar_dwt2d(nn.as_tensor(x), 0.5)).plus(h, self.factor)


class WaveletGenerator(Generator):
    """x_0 from (x_t, t, z); for WDDGAN, of the halved Haar bands of an image.

    Args:
        config: the structure; `fir` is not used. The coarsest level's resolution must be even.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        factor = config.patch_size * 2 ** len(config.channel_multipliers)
        if config.resolution % factor:
            raise ValueError(
                f"WaveletGenerator: resolution must be a multiple of {factor} for "
                f"{len(config.channel_multipliers)} levels and patches of {config.patch_size}, "
                f"got {config.resolution}"
            )
        super().__init__(config)
        self.haar, self.inverse = nn.Haar(0.5), nn.InverseHaar(0.5)

    def _middle(self, h: Map, mods: Sequence[Modulation]) -> Map:
        h = self._on_low_band(self.middle0, h, mods)
        h = self.middle1(self.middle_attention(h), mods[self.middle1.index])
        return self._on_low_band(self.middle1, h, mods)

    def _on_low_band(self, block: ResBlock, h: Map, mods: Sequence[Modulation]) -> Tensor:
        low, high = self.haar(h)
        return self.inverse(nn.as_tensor(block(low, mods[block.index])), high)

    def _down_block(self, channels: int) -> Block:
        return WaveletDownBlock(channels, **self._block_options(channels, channels))

    def _up_block(self, channels: int, level: int) -> Block:
        # The matching WaveletDownBlock ends the next finer level.
        high_channels = self.config.widths[level - 1]
        return WaveletUpBlock(channels, high_channels, **self._block_options(channels, channels))

    def _pyramid_down(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        return WaveletPyramidDown(in_channels, out_channels, factor=self._factor)
