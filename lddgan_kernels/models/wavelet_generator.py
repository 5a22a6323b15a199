"""WDDGAN's generator: NCSN++ that changes resolution by Haar wavelets.

Phung et al. 2023, "Wavelet diffusion models are fast and scalable image generators". Three changes
to NCSN++: blocks that halve the resolution keep the low band and hand their high bands to the block
that doubles it again; the middle works on the low band; the input pyramid sees all four bands. All
bands are halved, so that the low band, then the mean of 2x2, keeps the range of its input.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels.models.blocks import Block
from lddgan_kernels.models.feature_map import FeatureMap
from lddgan_kernels.models.generator import Generator, GeneratorConfig
from lddgan_kernels.models.layers import BlockControl, conv2d, merge
from lddgan_kernels.ops import haar_dwt2d, haar_idwt2d


def split_bands(x: Tensor) -> tuple[Tensor, Tensor]:
    """(low band, high bands) of x, halved; the low one in x's layout, which a slice has not."""
    low, high = haar_dwt2d(x, 0.5).tensor_split([x.shape[1]], dim=1)
    return like_layout(low, memory_format(x)), high


class WaveletDownBlock(Block):
    """A ResBlock that halves the resolution after its first convolution; keeps the high bands."""

    def __init__(self, index: int, channels: int, **options: Any) -> None:
        super().__init__(index, channels, channels, shortcut=True, **options)

    def forward(
        self, given: FeatureMap, control: Sequence[BlockControl]
    ) -> tuple[FeatureMap, Tensor]:
        """(output, high bands (N, 3C, H/2, W/2))."""
        mine, folds = control[self.index], self.folds(given.x)
        h = self.conv0(self.first_norm(given, mine))
        # Time bias and convolution bias shift the low band alone, so the second norm adds them.
        low, high = split_bands(h)
        # The shortcut's high bands are not used, and its halved low band is the mean of 2x2, which
        # commutes with the 1x1 convolution.
        x = self.project(F.avg_pool2d(given.x, 2), folds=folds)
        return self.finish(x, low, mine, folds=folds), high


class WaveletUpBlock(Block):
    """A ResBlock that doubles the resolution after its first convolution, with high bands given.

    Args:
        high_channels: of each high band that its WaveletDownBlock keeps.
    """

    def __init__(self, index: int, channels: int, high_channels: int, **options: Any) -> None:
        super().__init__(index, channels, channels, shortcut=True, **options)
        self.conv_high = conv2d(3 * high_channels, 3 * channels, 3, groups=3)

    def forward(
        self, given: FeatureMap, control: Sequence[BlockControl], kept: Tensor
    ) -> FeatureMap:
        """The block on the given map, with the high bands `kept`."""
        mine = control[self.index]
        h = self.conv0(self.first_norm(given, mine))
        high = self.conv_high(kept)
        h = haar_idwt2d(torch.cat([h, high], dim=1), 2.0)
        x = haar_idwt2d(torch.cat([self.project(given.x), high], dim=1), 2.0)
        return self.finish(x, h, mine)


class WaveletPyramidDown(nn.Module):
    """The input pyramid's step down: all four bands, then a 3x3 convolution, plus h.

    The sum is over sqrt(2) where `rescale`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rescale: bool) -> None:
        super().__init__()
        self.rescale = rescale
        self.conv = conv2d(4 * in_channels, out_channels, 3)

    def forward(self, x: Tensor, h: Tensor) -> FeatureMap:
        x = self.conv(haar_dwt2d(x, 0.5), biased=False)
        return merge(x, h, self.rescale, bias=self.conv.bias)


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
        # The middle works on low bands: these outputs are split, or joined with other bands.
        last = self.down_levels()[-1]
        for part in (self.middle0, [*last.blocks, *last.attentions][-1]):
            cast(Any, part).normed = False

    def _middle(self, h: FeatureMap, control: Sequence[BlockControl]) -> FeatureMap:
        h = self.middle_attention(self._on_low_band(self.middle0, h, control))
        return self._on_low_band(self.middle1, self.middle1(h, control), control)

    def _on_low_band(
        self, block: Block, h: FeatureMap, control: Sequence[BlockControl]
    ) -> FeatureMap:
        low, high = split_bands(h.x)
        low = block(FeatureMap(low), control).x
        return FeatureMap(haar_idwt2d(torch.cat([low, high], dim=1), 2.0))

    def _down_block(self, channels: int) -> Block:
        options = self._block_options | {"normed": not self.config.input_pyramid}
        return WaveletDownBlock(self._next(channels, channels), channels, **options)

    def _up_block(self, channels: int, level: int) -> Block:
        # The matching WaveletDownBlock ends the next finer level.
        high_channels = self.config.widths[level - 1]
        index = self._next(channels, channels)
        options = self._block_options | {"normed": False}
        return WaveletUpBlock(index, channels, high_channels, **options)

    def _pyramid_down(self, in_channels: int, out_channels: int) -> nn.Module:
        return WaveletPyramidDown(in_channels, out_channels, rescale=self.config.skip_rescale)
