"""The layers of the generators and discriminators, all on the public ops.

Images are (N, C, H, W), contiguous or channels_last, and keep their layout. What z and t control
is computed once for a whole network, in `Conditioning`; a block is handed its share.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.models.conv3x3 import Conv3x3
from lddgan_kernels.ops import (
    ada_group_norm,
    downsample2d,
    pixel_norm,
    residual_scale,
    upfirdn2d,
    upsample2d,
)

Activation = Callable[[Tensor], Tensor]


class BlockControl(NamedTuple):
    """One ResBlock's share of the conditioning: scale and shift of its two norms, its time bias.

    Each is (N, C of what it acts on): a view of the network's banks.
    """

    scale0: Tensor
    shift0: Tensor
    scale1: Tensor
    shift1: Tensor
    bias: Tensor


def uniform_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fills a weight (out, in, ...) uniformly with variance 2 scale / (fan_in + fan_out).

    A scale of 0 stands for 1e-10: such layers start as almost nothing.
    """
    fans = (weight.shape[0] + weight.shape[1]) * math.prod(weight.shape[2:])
    bound = math.sqrt(6.0 * (scale or 1e-10) / fans)
    return nn.init.uniform_(weight, -bound, bound)


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    bias: bool = True,
    scale: float = 1.0,
    stride: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution of odd `kernel_size` that keeps the resolution where `stride` is 1.

    With a stride it pads nothing: what comes before it does.
    """
    padding = kernel_size // 2 if stride == 1 else 0
    if kernel_size == 3 and stride == groups == 1:
        layer: nn.Conv2d = Conv3x3(in_channels, out_channels, bias)
    else:
        layer = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias
        )
    uniform_(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def bias_of(layer: nn.Conv2d) -> Tensor:
    """The bias of a convolution that has one."""
    assert layer.bias is not None
    return layer.bias


def linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    """A linear layer with the initialisation of `uniform_`."""
    layer = nn.Linear(in_features, out_features)
    uniform_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


def leaky_relu(x: Tensor) -> Tensor:
    """The discriminator's activation."""
    return F.leaky_relu(x, 0.2)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the step: (N, width) float32 from t (N,), sines first (Vaswani et al. 2017).

    Frequencies fall from 1 to 1/10000, both included, as in DDPM.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponents * -(math.log(10000.0) / (half - 1)))
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class TimeEmbedding(nn.Module):
    """t (N,) -> (N, hidden): sinusoids, then two linear layers, each activated."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.width = width
        self.activation = activation
        self.linear0 = linear(width, hidden)
        self.linear1 = linear(hidden, hidden)

    def forward(self, t: Tensor) -> Tensor:
        h = timestep_embedding(t, self.width).to(self.linear0.weight.dtype)
        return self.activation(self.linear1(self.activation(self.linear0(h))))


class TimeBank(nn.Module):
    """All biases that the time embedding controls in a network: one matrix product.

    A block adds its bias after a convolution, whose own bias is therefore kept here as well
    (`conv_bias`) and added to the bank's, so that the convolution runs without.

    Args:
        width: of the time embedding.
        sizes: channels of each block's bias, in the order of execution.
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.weight = nn.Parameter(torch.empty(sum(sizes), width))
        self.bias = nn.Parameter(torch.zeros(sum(sizes)))
        self.conv_bias = nn.Parameter(torch.zeros(sum(sizes)))
        with torch.no_grad():
            for rows in self.weight.split(self.sizes):
                uniform_(rows)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """One (N, size) bias a block, views of a single matrix."""
        biases = F.linear(embedding, self.weight, self.bias + self.conv_bias)
        return biases.split(self.sizes, dim=1)


class StyleBank(nn.Module):
    """Scale and shift of every adaptive norm of a network: one matrix product.

    Args:
        width: of the mapped z.
        sizes: channels of each norm, in the order of execution.
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [size for size in sizes for _ in range(2)]
        self.weight = nn.Parameter(torch.empty(sum(self.sizes), width))
        ones = [torch.full((size,), float(i % 2 == 0)) for i, size in enumerate(self.sizes)]
        self.bias = nn.Parameter(torch.cat(ones))
        with torch.no_grad():
            for rows in self.weight.split([2 * size for size in sizes]):
                uniform_(rows)

    def forward(self, style: Tensor) -> tuple[Tensor, ...]:
        """scale, shift, scale, shift, ... of all norms, (N, C) views of a single matrix."""
        return F.linear(style, self.weight, self.bias).split(self.sizes, dim=1)


class Mapping(nn.Module):
    """z (N, z_dim) -> (N, width): pixel norm, then 1 + `depth` linear layers, each with SiLU."""

    def __init__(self, z_dim: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [z_dim] + [width] * (1 + depth)
        self.layers = nn.ModuleList(linear(i, o) for i, o in itertools.pairwise(widths))

    def forward(self, z: Tensor) -> Tensor:
        h = pixel_norm(z)
        for layer in self.layers:
            h = F.silu(layer(h))
        return h


def group_count(channels: int) -> int:
    """Groups of a norm over `channels`: at most 32, of at least 4 channels each.

    Raises:
        ValueError: they do not divide the channels.
    """
    groups = min(channels // 4, 32)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"norm: channels must be a multiple of 32, or at most 127 and a multiple of 4, "
            f"got {channels}"
        )
    return groups


class GroupNorm(nn.Module):
    """Affine group norm, then `activation`: "silu" or None."""

    def __init__(self, channels: int, activation: str | None) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return ada_group_norm(x, self.weight, self.bias, self.groups, activation=self.activation)


def merge(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """The residual sum, over sqrt(2) where `rescale`."""
    return residual_scale(x, h) if rescale else x + h


class Attention(nn.Module):
    """Self-attention with one head over all positions, as a residual (Ho et al. 2020)."""

    def __init__(self, channels: int, rescale: bool) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = GroupNorm(channels, activation=None)
        self.qkv = linear(channels, 3 * channels)
        self.out = linear(channels, channels, scale=0.0)
        with torch.no_grad():
            for rows in self.qkv.weight.chunk(3):
                uniform_(rows, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        h = self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])
        return merge(x, h, self.rescale)


def upsample(x: Tensor, fir: bool) -> Tensor:
    """Twice the resolution: FIR [1, 3, 3, 1], or nearest neighbour."""
    return upsample2d(x) if fir else F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor, fir: bool) -> Tensor:
    """Half the resolution: FIR [1, 3, 3, 1], or the mean of each 2x2."""
    return downsample2d(x) if fir else F.avg_pool2d(x, 2)


class Block(nn.Module):
    """What all ResBlocks share: norms, convolutions and shortcut, without their order.

    Args:
        index: the block's place in the network's order of execution.
        in_channels: of its input, or of its two inputs together.
        out_channels: of its output.
        rescale: whether the residual sum is divided by sqrt(2).
        dropout: probability, before the last convolution.
        shortcut: whether a 1x1 convolution stands on the shortcut even where the widths agree.
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
    ) -> None:
        super().__init__()
        self.index = index
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = (group_count(in_channels), group_count(out_channels))
        self.rescale = rescale
        self.dropout = dropout
        self.conv0 = conv2d(in_channels, out_channels, 3, bias=False)
        self.conv1 = conv2d(out_channels, out_channels, 3, scale=0.0)
        shortcut = shortcut or in_channels != out_channels
        self.shortcut = conv2d(in_channels, out_channels, 1) if shortcut else None

    def first_norm(self, x: Tensor, mine: BlockControl, x2: Tensor | None = None) -> Tensor:
        """The first norm and SiLU."""
        return ada_group_norm(x, mine.scale0, mine.shift0, self.groups[0], x2=x2)

    def project(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        """The shortcut's convolution, without its bias (which `finish` adds)."""
        if self.shortcut is None:
            return x
        weight = self.shortcut.weight
        if x2 is None:
            return F.conv2d(x, weight)
        return F.conv2d(x, weight[:, : x.shape[1]]) + F.conv2d(x2, weight[:, x.shape[1] :])

    def finish(self, x: Tensor, h: Tensor, mine: BlockControl) -> Tensor:
        """The second half of the block on `h`, summed with the shortcut `x`."""
        h = ada_group_norm(h, mine.scale1, mine.shift1, self.groups[1], bias=mine.bias)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        shortcut_bias = None if self.shortcut is None else self.shortcut.bias
        return merge(x, self.conv1(h, more_bias=shortcut_bias), self.rescale)


class ResBlock(Block):
    """BigGAN's ResBlock with adaptive norms (NCSN++, Song et al. 2021; AdaGN of DDGAN).

    norm(z)-SiLU-conv, time bias, norm(z)-SiLU-dropout-conv, plus the shortcut. The second norm adds
    the time bias, and with it the first convolution's own.
    """

    def forward(
        self, x: Tensor, control: Sequence[BlockControl], x2: Tensor | None = None
    ) -> Tensor:
        """`x`, read as if `x2` were concatenated to it on channels, through the block."""
        mine = control[self.index]
        h = self.conv0(self.first_norm(x, mine, x2))
        return self.finish(self.project(x, x2), h, mine)


class DownBlock(Block):
    """A ResBlock that halves the resolution after its first norm."""

    def __init__(
        self, index: int, channels: int, *, fir: bool, rescale: bool, dropout: float
    ) -> None:
        super().__init__(index, channels, channels, rescale=rescale, dropout=dropout, shortcut=True)
        self.fir = fir

    def forward(self, x: Tensor, control: Sequence[BlockControl]) -> tuple[Tensor, Tensor | None]:
        """(output, None): nothing is kept for the block that doubles the resolution again."""
        mine = control[self.index]
        h = self.conv0(downsample(self.first_norm(x, mine), self.fir))
        return self.finish(self.project(downsample(x, self.fir)), h, mine), None


class UpBlock(Block):
    """A ResBlock that doubles the resolution after its first norm."""

    def __init__(
        self, index: int, channels: int, *, fir: bool, rescale: bool, dropout: float
    ) -> None:
        super().__init__(index, channels, channels, rescale=rescale, dropout=dropout, shortcut=True)
        self.fir = fir

    def forward(self, x: Tensor, control: Sequence[BlockControl], kept: Tensor | None) -> Tensor:
        """The block on `x`; `kept` is what the matching DownBlock kept: None."""
        mine = control[self.index]
        h = self.conv0(upsample(self.first_norm(x, mine), self.fir))
        # The 1x1 convolution has no bias here, so it may come first, on a quarter of the pixels.
        return self.finish(upsample(self.project(x), self.fir), h, mine)


class PyramidDown(nn.Module):
    """The input pyramid's step down: FIR filter, then a 3x3 convolution of stride 2.

    Without `fir` only the convolution, after one row and column of zeros at the end.
    """

    taps: Tensor

    def __init__(self, in_channels: int, out_channels: int, fir: bool) -> None:
        super().__init__()
        self.fir = fir
        self.conv = conv2d(in_channels, out_channels, 3, stride=2)
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = upfirdn2d(x, self.taps, pad=(2, 2)) if self.fir else F.pad(x, (0, 1, 0, 1))
        return self.conv(x)
