"""NCSN++ with adaptive group norm: the generator of DDGAN and LDDGAN.

A U-Net (Song et al. 2021) that predicts x_0 from x_t, the step t and a latent z (Xiao et al. 2022).
One definition for every backend: all memory-bound steps are public ops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels._options import Count, Fraction, check
from lddgan_kernels.models._generator_base import GeneratorBase
from lddgan_kernels.models.blocks import (
    Block,
    DownBlock,
    Modulation,
    PyramidDown,
    ResBlock,
    UpBlock,
)
from lddgan_kernels.models.generator_options import CommonOptions, LatentShape

Map = Tensor | nn.FeatureMap


@dataclass(frozen=True)
class UNetOptions:
    """Options of a convolutional generator; the defaults are the published CIFAR-10 ones."""

    base_channels: Count = 128
    """Width of the finest level."""
    channel_multipliers: tuple[Count, ...] = (1, 2, 2)
    """Each level's width over base_channels, finest first."""
    num_blocks: Count = 2
    """Residual blocks a level on the way down; one more on the way up."""
    attention_resolutions: tuple[Count, ...] = ()
    """Resolutions whose blocks have attention; the middle always has it."""
    dropout: Fraction = 0.0
    """In the residual blocks; under 1."""
    input_pyramid: bool = True
    """Whether each level adds a downsampled input ("residual")."""
    fir: bool = True
    """Resample by the [1, 3, 3, 1] filter; else nearest neighbour and mean."""
    skip_rescale: bool = True
    """Divide residual sums by sqrt(2)."""
    centered: bool = True
    """x lies in [-1, 1]; else in [0, 1]."""


@dataclass(frozen=True)
class GeneratorConfig(CommonOptions, UNetOptions, LatentShape):
    """A generator's structure."""

    def __post_init__(self) -> None:
        check(self)
        if not self.channel_multipliers:
            raise ValueError("GeneratorConfig: channel_multipliers must hold one a level, got ()")
        if self.dropout == 1:
            raise ValueError("GeneratorConfig: dropout must be in [0, 1), got 1")
        factor = self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
        if self.resolution % factor:
            raise ValueError(
                f"GeneratorConfig: resolution must be a multiple of {factor} for "
                f"{len(self.channel_multipliers)} levels and patches of {self.patch_size}, "
                f"got {self.resolution}"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    def has_attention(self, level: int) -> bool:
        """Whether the blocks of `level` (0: the finest) get attention."""
        return self.resolution // self.patch_size // 2**level in self.attention_resolutions


class DownLevel(torch.nn.Module):
    """One resolution on the way down: blocks, each with attention or none, and the step down."""

    def __init__(
        self,
        blocks: Sequence[ResBlock],
        attentions: Sequence[nn.Attention],
        resample: Block | None,
        pyramid: torch.nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)
        self.attentions = torch.nn.ModuleList(attentions)
        self.resample = resample
        self.pyramid = pyramid

    def forward(
        self, h: Map, pyramid: Map, mods: Sequence[Modulation]
    ) -> tuple[Map, Map, list[Map], Tensor | None]:
        """(h, input pyramid, maps for the way up, what the step up needs of the step down)."""
        maps: list[Map] = []
        high = None
        for i, block in enumerate(cast(Sequence[ResBlock], self.blocks)):
            h = block(h, mods[block.index])
            if self.attentions:
                h = self.attentions[i](h)
            maps.append(h)
        if self.resample is not None:
            h, high = self.resample(h, mods[self.resample.index])
            if self.pyramid is not None:
                h = pyramid = self.pyramid(pyramid, h)
            maps.append(h)
        return h, pyramid, maps, high


class UpLevel(torch.nn.Module):
    """One resolution on the way up: blocks, attention after the last or none, and the step up."""

    def __init__(
        self, blocks: Sequence[ResBlock], attention: nn.Attention | None, resample: Block | None
    ) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)
        self.attention = attention
        self.resample = resample

    def forward(
        self, h: Map, skips: list[Map], highs: list[Tensor | None], mods: Sequence[Modulation]
    ) -> Map:
        """h a level finer; takes what it reads from the ends of `skips` and `highs`."""
        for block in cast(Sequence[ResBlock], self.blocks):
            h = block(h, mods[block.index], skips.pop())
        if self.attention is not None:
            h = self.attention(h)
        if self.resample is not None:
            h = self.resample(h, mods[self.resample.index], highs.pop())
        return h


class Generator(GeneratorBase):
    """x_0 from (x_t, t, z).

    Args:
        config: the structure.
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        base, widths = config.base_channels, config.widths
        self._factor = math.sqrt(0.5) if config.skip_rescale else 1.0
        self._block_widths: list[tuple[int, int]] = []  # in the order of execution

        channels = config.channels * config.patch_size**2
        self.conv_in = nn.Conv2d(channels, base, 3, init_scale=1.0)
        skip_widths, width, pyramid_width = [base], base, channels
        down = []
        for level, out in enumerate(widths):
            blocks, attentions = [], []
            for _ in range(config.num_blocks):
                blocks.append(self._block(width, out))
                width = out
                if config.has_attention(level):
                    attentions.append(self._attention(width))
                skip_widths.append(width)
            resample, pyramid = None, None
            if level < len(widths) - 1:
                resample = self._down_block(width)
                if config.input_pyramid:
                    pyramid = self._pyramid_down(pyramid_width, width)
                    pyramid_width = width
                skip_widths.append(width)
            down.append(DownLevel(blocks, attentions, resample, pyramid))
        self.down = torch.nn.ModuleList(down)

        self.middle0 = self._block(width, width)
        self.middle_attention = self._attention(width)
        self.middle1 = self._block(width, width)

        up = []
        for level, out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(config.num_blocks + 1):
                blocks.append(self._block(width + skip_widths.pop(), out))
                width = out
            attention = self._attention(width) if config.has_attention(level) else None
            up.append(UpLevel(blocks, attention, self._up_block(width, level) if level else None))
        self.up = torch.nn.ModuleList(up)
        self.norm_out = nn.GroupNorm(width, nn.group_count(width))
        self.conv_out = nn.Conv2d(width, channels, 3, init_scale=0.0)

        self.mapping = nn.Mapping(
            config.z_dim, config.mapping_width, config.mapping_layers, config.classes
        )
        norm_widths = [width for pair in self._block_widths for width in pair]
        self.style_bank = nn.StyleBank(config.mapping_width, norm_widths)
        self.time_embedding = nn.TimeEmbedding(base, 4 * base, F.silu)
        self.time_bank = nn.TimeBank(4 * base, [out for _, out in self._block_widths])
        self.time_biases = nn.TimeBiases(self.time_embedding, self.time_bank)

    def _conditions(self, t: Tensor, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._styles(z, labels), self.time_biases(t)

    def _conditioners(self) -> list[torch.nn.Module]:
        return [*super()._conditioners(), self.time_embedding, self.time_bank]

    def _predict(self, x: Tensor, styles: Tensor, biases: Tensor) -> Tensor:
        mods = self._modulations(styles, biases)
        layout = memory_format(x)
        x = nn.in_fastest_layout(self._fold(x))
        if not self.config.centered:
            x = 2 * x - 1
        h: Map = self.conv_in(x)
        pyramid: Map = x
        skips: list[Map] = [h]
        highs: list[Tensor | None] = []
        for level in self.down:
            h, pyramid, maps, high = level(h, pyramid, mods)
            skips += maps
            highs.append(high)
        highs.pop()  # the coarsest level has no step down
        h = self._middle(h, mods)
        for level in self.up:
            h = level(h, skips, highs, mods)
        out = like_layout(self._unfold(self.conv_out(self.norm_out(h))), layout)
        return torch.tanh(out) if self.config.tanh_out else out

    def _modulations(self, styles: Tensor, biases: Tensor) -> list[Modulation]:
        """Each block's share of what z and t set, in the order of execution."""
        rows = styles.split(self.style_bank.sizes, dim=1)
        split = biases.split(self.time_bank.sizes, dim=1)
        return [
            Modulation((rows[4 * i], rows[4 * i + 1]), (rows[4 * i + 2], rows[4 * i + 3]), bias)
            for i, bias in enumerate(split)
        ]

    def down_levels(self) -> Sequence[DownLevel]:
        """The levels on the way down, finest first."""
        return cast(Sequence[DownLevel], self.down)

    def up_levels(self) -> Sequence[UpLevel]:
        """The levels on the way up, coarsest first."""
        return cast(Sequence[UpLevel], self.up)

    def _middle(self, h: Map, mods: Sequence[Modulation]) -> Map:
        h = self.middle_attention(self.middle0(h, mods[self.middle0.index]))
        return self.middle1(h, mods[self.middle1.index])

    def _block_options(self, in_channels: int, out_channels: int) -> dict[str, Any]:
        """Of a new block, which joins the banks."""
        self._block_widths.append((in_channels, out_channels))
        index = len(self._block_widths) - 1
        return {"index": index, "factor": self._factor, "dropout": self.config.dropout}

    def _block(self, in_channels: int, out_channels: int) -> ResBlock:
        options = self._block_options(in_channels, out_channels)
        return ResBlock(in_channels, out_channels, **options)

    def _attention(self, channels: int) -> nn.Attention:
        return nn.Attention(channels, nn.group_count(channels), factor=self._factor)

    def _down_block(self, channels: int) -> Block:
        options = self._block_options(channels, channels)
        return DownBlock(channels, fir=self.config.fir, **options)

    def _up_block(self, channels: int, level: int) -> Block:
        options = self._block_options(channels, channels)
        return UpBlock(channels, fir=self.config.fir, **options)

    def _pyramid_down(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        return PyramidDown(in_channels, out_channels, fir=self.config.fir, factor=self._factor)

    def _fold(self, x: Tensor) -> Tensor:
        """Patches into channels, ordered (row, column, channel) within the patch."""
        p = self.config.patch_size
        if p == 1:
            return x
        n, c, h, w = x.shape
        patches = x.reshape(n, c, h // p, p, w // p, p).permute(0, 3, 5, 1, 2, 4)
        return patches.reshape(n, p * p * c, h // p, w // p)

    def _unfold(self, x: Tensor) -> Tensor:
        """Channels into patches, ordered (channel, row, column): unlike `_fold`, as published."""
        return F.pixel_shuffle(x, self.config.patch_size) if self.config.patch_size > 1 else x
