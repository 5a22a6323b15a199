"""The time-conditioned discriminator of DDGAN, WDDGAN and LDDGAN.

ResBlocks on the pair (x_t, x_{t+1}) that say whether x_t is real (Xiao et al. 2022, appendix C).
Gradients of gradients work, as the R1 penalty needs them.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels._checks import check_labels
from lddgan_kernels._options import Count, Whole, check


@dataclass(frozen=True)
class DiscriminatorOptions:
    """Options of a discriminator; the defaults are those of CIFAR-10."""

    kind: Literal["small", "large"] = "small"
    """Small keeps the resolution in its first block, large halves it in every one."""
    base_channels: Count = 64
    """The stem has twice as many channels, the deepest blocks 8 times."""
    time_embedding: Count = 128
    """Width of the time embedding."""
    num_blocks: Count = 3
    """Residual blocks: 3 or 4 (small), 3 to 6 (large)."""
    patch_size: Count = 1
    """Patches of this side become channels."""


@dataclass(frozen=True)
class Pair:
    """What a discriminator sees; follows from the images and the codec."""

    channels: Count
    """Channels of x alone."""
    classes: Whole = field(default=0, kw_only=True)
    """Classes of the images; 0: none."""


@dataclass(frozen=True)
class DiscriminatorConfig(DiscriminatorOptions, Pair):
    """A discriminator's structure."""

    def __post_init__(self) -> None:
        check(self)
        most = 4 if self.kind == "small" else 6
        if not 3 <= self.num_blocks <= most:
            raise ValueError(
                f"DiscriminatorConfig: num_blocks must be 3 to {most} for kind {self.kind!r}, "
                f"got {self.num_blocks}"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of the stem and of each block."""
        multiples = [2, 2, 4, 8, 8] if self.kind == "small" else [2, 4, 8, 8, 8, 8, 8]
        return [self.base_channels * multiple for multiple in multiples[: self.num_blocks + 1]]


def leaky_relu(x: Tensor) -> Tensor:
    """The discriminator's activation."""
    return F.leaky_relu(x, 0.2)


class DiscriminatorBlock(torch.nn.Module):
    """act-conv, time bias, act, FIR downsampling, conv, plus a 1x1 shortcut, over sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int, down: bool) -> None:
        super().__init__()
        self.resample = nn.FIRDownsample() if down else None
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, bias=False, init_scale=1.0)
        self.conv1 = nn.ResidualConv(out_channels, out_channels, init_scale=0.0)
        self.shortcut = nn.Shortcut(in_channels, out_channels, bias=False, init_scale=1.0)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`bias`: (N, out_channels), of time and of the first convolution."""
        h = self.conv0(leaky_relu(x))
        h = leaky_relu(h + bias[:, :, None, None])
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        return nn.as_tensor(self.conv1(h, x, shortcut=self.shortcut))


class Discriminator(torch.nn.Module):
    """How real x is as the denoised x_next.

    Args:
        config: the structure.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths, large = config.widths, config.kind == "large"
        self.time_embedding = nn.TimeEmbedding(
            config.time_embedding, config.time_embedding, leaky_relu
        )
        self.time_bank = nn.TimeBank(config.time_embedding, widths[1:])
        stem_channels = 2 * config.channels * config.patch_size**2
        self.stem = nn.Conv2d(stem_channels, widths[0], 1, init_scale=1.0)
        self.blocks = torch.nn.ModuleList(
            DiscriminatorBlock(widths[i], widths[i + 1], down=large or i > 0)
            for i in range(config.num_blocks)
        )
        self.stddev = nn.MinibatchStddev()
        self.final = nn.LeakyReLUConv2d(
            widths[-1] + 1, widths[-1], 3, init_scale=1.0 if large else 0.0
        )
        self.out = nn.Linear(widths[-1], 1)
        self.projection = (
            nn.ClassEmbedding(config.classes, widths[-1], 0.0) if config.classes else None
        )

    def forward(self, x: Tensor, t: Tensor, x_next: Tensor, labels: Tensor | None = None) -> Tensor:
        """One logit a sample.

        Args:
            x: (N, channels, H, W) of the parameters' dtype (or float32 under autocast),
                contiguous or channels_last; at least 2^halvings high and wide.
            t: (N,) steps of x, int64.
            x_next: like x, one step noisier.
            labels: (N,) classes of x, int64, below `classes`; -1, or None, stands for none. They
                join by projection (Miyato & Koyama 2018, equation 3).

        Returns:
            (N, 1).

        Raises:
            ValueError: a shape does not fit the configuration.
        """
        self._check(x, t, x_next, labels)
        p = self.config.patch_size
        if p > 1:
            x, x_next = F.pixel_unshuffle(x, p), F.pixel_unshuffle(x_next, p)
        h = self.stem(torch.cat([x, x_next], dim=1))
        biases = self.time_bank(self.time_embedding(t)).split(self.time_bank.sizes, dim=1)
        for block, bias in zip(self.blocks, biases, strict=True):
            h = block(h, bias)
        h = self.final(self.stddev(h))
        h = h.sum(dim=(2, 3))
        logit: Tensor = self.out(h)
        if self.projection is None:
            return logit
        return logit + (h * self.projection(labels)).sum(dim=1, keepdim=True)

    def _check(self, x: Tensor, t: Tensor, x_next: Tensor, labels: Tensor | None) -> None:
        n, channels = x.shape[0], self.config.channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"Discriminator: x must be of shape (N, {channels}, H, W), got {tuple(x.shape)}"
            )
        halvings = self.config.num_blocks - (self.config.kind == "small")
        factor = self.config.patch_size * 2**halvings
        if min(x.shape[2:]) < factor:
            raise ValueError(
                f"Discriminator: x must be at least {factor} high and wide, got {tuple(x.shape)}"
            )
        if x_next.shape != x.shape:
            raise ValueError(
                f"Discriminator: x_next must be of shape {tuple(x.shape)}, "
                f"got {tuple(x_next.shape)}"
            )
        if t.shape != (n,):
            raise ValueError(f"Discriminator: t must be of shape ({n},), got {tuple(t.shape)}")
        check_labels("Discriminator", labels, n, self.config.classes)
