"""NCSN++ with adaptive group norm: the generator of DDGAN and LDDGAN.

A U-Net (Song et al. 2021) that predicts x_0 from x_t, the step t and a latent z (Xiao et al. 2022).
One definition for every backend: all memory-bound steps are public ops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._module_state import ModuleState
from lddgan_kernels._options import Count, Fraction, check
from lddgan_kernels.models._derived import Derived
from lddgan_kernels.models._generator_base import GeneratorBase
from lddgan_kernels.models.blocks import Block, DownBlock, PyramidDown, ResBlock, UpBlock
from lddgan_kernels.models.feature_map import FeatureMap
from lddgan_kernels.models.generator_options import CommonOptions, LatentShape
from lddgan_kernels.models.layers import (
    Attention,
    BlockControl,
    GroupNorm,
    Mapping,
    StyleBank,
    TimeBank,
    TimeEmbedding,
    conv2d,
    embed_time,
)

# Steps whose time biases are kept for inference: all that a schedule may have.
TABLED_STEPS = 8


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


def _time_table(width: int, *weights: Tensor) -> Tensor:
    """The time biases of all steps, (TABLED_STEPS, sum of widths)."""
    t = torch.arange(TABLED_STEPS, device=weights[0].device)
    embedding = embed_time(t, width, F.silu, *weights[:4])
    return F.linear(embedding, weights[4], weights[5] + weights[6])


class DownLevel(nn.Module):
    """One resolution on the way down: blocks, each with attention or none, and the step down."""

    def __init__(
        self,
        blocks: Sequence[ResBlock],
        attentions: Sequence[Attention],
        resample: Block | None,
        pyramid: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample
        self.pyramid = pyramid


class UpLevel(nn.Module):
    """One resolution on the way up: blocks, attention after the last or none, and the step up."""

    def __init__(
        self, blocks: Sequence[ResBlock], attention: Attention | None, resample: Block | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.resample = resample


class Generator(GeneratorBase):
    """x_0 from (x_t, t, z).

    Args:
        config: the structure.
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        base, widths = config.base_channels, config.widths
        self._block_widths: list[tuple[int, int]] = []  # in the order of execution
        self._block_options: dict[str, Any] = {
            "rescale": config.skip_rescale,
            "dropout": config.dropout,
        }

        channels = config.channels * config.patch_size**2
        self.conv_in = conv2d(channels, base, 3)
        skip_widths, width, pyramid_width = [base], base, channels
        down = []
        for level, out in enumerate(widths):
            blocks, attentions = [], []
            for _ in range(config.num_blocks):
                blocks.append(self._block(width, out))
                width = out
                if config.has_attention(level):
                    attentions.append(Attention(width, config.skip_rescale))
                skip_widths.append(width)
            resample, pyramid = None, None
            if level < len(widths) - 1:
                resample = self._down_block(width)
                if config.input_pyramid:
                    pyramid = self._pyramid_down(pyramid_width, width)
                    pyramid_width = width
                skip_widths.append(width)
            down.append(DownLevel(blocks, attentions, resample, pyramid))
        self.down = nn.ModuleList(down)

        self.middle0 = self._block(width, width)
        self.middle_attention = Attention(width, config.skip_rescale)
        self.middle1 = self._block(width, width, normed=False)

        up = []
        for level, out in reversed(list(enumerate(widths))):
            blocks = []
            for i in range(config.num_blocks + 1):
                # All but the last are read by a norm together with a skip.
                normed = i == config.num_blocks
                blocks.append(self._block(width + skip_widths.pop(), out, normed))
                width = out
            attention = None
            if config.has_attention(level):
                attention = Attention(width, config.skip_rescale)
            up.append(UpLevel(blocks, attention, self._up_block(width, level) if level else None))
        self.up = nn.ModuleList(up)
        self.norm_out = GroupNorm(width, activation="silu")
        self.conv_out = conv2d(width, channels, 3, scale=0.0)

        self.mapping = Mapping(config.z_dim, config.mapping_width, config.mapping_layers)
        norm_widths = [width for pair in self._block_widths for width in pair]
        self.style_bank = StyleBank(config.mapping_width, norm_widths)
        self.time_embedding = TimeEmbedding(base, 4 * base, F.silu)
        self.time_bank = TimeBank(4 * base, [out for _, out in self._block_widths])
        self.time_table = Derived(partial(_time_table, base))

    def _conditions(self, state: ModuleState | None, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.replay(state, self._styles, z), self._time_biases(t)

    def _predict(self, x: Tensor, styles: Tensor, biases: Tensor) -> Tensor:
        control = self._control(styles, biases)
        x = self._fold(x)
        if not self.config.centered:
            x = 2 * x - 1
        h = FeatureMap(self.conv_in(x))
        pyramid = x
        skips = [h.x]
        kept: list[Tensor | None] = []
        for level in self.down_levels():
            for i, block in enumerate(level.blocks):
                h = block(h, control)
                if level.attentions:
                    h = level.attentions[i](h)
                skips.append(h.x)
            if level.resample is not None:
                h, keep = level.resample(h, control)
                kept.append(keep)
                if level.pyramid is not None:
                    h = level.pyramid(pyramid, h.x)
                    pyramid = h.x
                skips.append(h.x)
        h = self._middle(h, control)
        for up in self.up_levels():
            for block in up.blocks:
                h = block(h, control, skips.pop())
            if up.attention is not None:
                h = up.attention(h)
            if up.resample is not None:
                h = up.resample(h, control, kept.pop())
        out = self._unfold(self.conv_out(self.norm_out(h)))
        return torch.tanh(out) if self.config.tanh_out else out

    def _control(self, styles: Tensor, biases: Tensor) -> list[BlockControl]:
        """Each block's share of the conditions, in the order of execution."""
        rows = styles.split(self.style_bank.sizes, dim=1)
        split = biases.split(self.time_bank.sizes, dim=1)
        return [
            BlockControl._make((*rows[4 * i : 4 * i + 4], bias)) for i, bias in enumerate(split)
        ]

    def _time_biases(self, t: Tensor) -> Tensor:
        """All time biases (N, sum of widths); for inference on the CPU out of a table."""
        bank = self.time_bank
        if (
            t.is_cuda
            or t.numel() == 0
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or type(t) is not Tensor
            or not 0 <= int(t.min()) <= int(t.max()) < TABLED_STEPS
        ):
            return bank.rows(self.time_embedding(t))
        weights = bank.weight, bank.bias, bank.conv_bias
        return self.time_table(*self.time_embedding.parameters(), *weights)[t]

    def down_levels(self) -> Sequence[DownLevel]:
        """The levels on the way down, finest first."""
        return cast(Sequence[DownLevel], self.down)

    def up_levels(self) -> Sequence[UpLevel]:
        """The levels on the way up, coarsest first."""
        return cast(Sequence[UpLevel], self.up)

    def _middle(self, h: FeatureMap, control: Sequence[BlockControl]) -> FeatureMap:
        h = self.middle_attention(self.middle0(h, control))
        return cast(FeatureMap, self.middle1(h, control))

    def _next(self, in_channels: int, out_channels: int) -> int:
        """The index of a new block; its norms join the banks."""
        self._block_widths.append((in_channels, out_channels))
        return len(self._block_widths) - 1

    def _block(self, in_channels: int, out_channels: int, normed: bool = True) -> ResBlock:
        index = self._next(in_channels, out_channels)
        return ResBlock(index, in_channels, out_channels, normed=normed, **self._block_options)

    def _down_block(self, channels: int) -> Block:
        index = self._next(channels, channels)
        options = self._block_options | {"normed": not self.config.input_pyramid}
        return DownBlock(index, channels, fir=self.config.fir, **options)

    def _up_block(self, channels: int, level: int) -> Block:
        index = self._next(channels, channels)
        options = self._block_options | {"normed": False}
        return UpBlock(index, channels, fir=self.config.fir, **options)

    def _pyramid_down(self, in_channels: int, out_channels: int) -> nn.Module:
        config = self.config
        return PyramidDown(in_channels, out_channels, fir=config.fir, rescale=config.skip_rescale)

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
