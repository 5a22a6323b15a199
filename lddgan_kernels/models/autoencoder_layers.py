"""The layers of the VQGAN encoder and decoder (Esser et al. 2021, after Ho et al. 2020).

All take and return (N, C, H, W) and keep the layout they are given. On a GPU the bias of a
convolution is a pass over its output, so whatever reads that next, a norm or a residual sum, adds
it: convolutions before a `ResnetBlock` run without, and hand it their bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels.models._derived import Derived
from lddgan_kernels.models.conv3x3 import Conv3x3
from lddgan_kernels.models.feature_map import FeatureMap, residual_sum
from lddgan_kernels.ops import ada_group_norm


def num_groups(channels: int) -> int:
    """Groups of a norm: 32, or the largest divisor of `channels` below it for widths 32 misses."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Affine group norm with SiLU (`activation="silu"`) or without (None)."""

    def __init__(self, channels: int, activation: str | None = "silu") -> None:
        super().__init__()
        self.groups = num_groups(channels)
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, h: FeatureMap, bias: Tensor | None = None) -> Tensor:
        """The norm of the map plus bias, (C,), which is given only where no sum made the map."""
        return ada_group_norm(
            h.x,
            self.weight,
            self.bias,
            self.groups,
            activation=self.activation,
            bias=None if bias is None else bias.expand(h.x.shape[0], -1),
            moments=h.moments,
        )


class ResnetBlock(nn.Module):
    """x + conv(dropout(norm(conv(norm(x))))), with a 1x1 shortcut where the width changes.

    `bias` (in_channels,) is still to be added to x. `normed` says whether a norm reads the output,
    and nothing beside it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float, normed: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        changes = in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else None
        self.shortcut_bias = Derived(_shortcut_bias)
        self.groups_out = self.norm2.groups if normed else None

    def forward(self, given: FeatureMap, bias: Tensor | None = None) -> FeatureMap:
        x = given.x
        h = self.conv1(self.norm1(given, bias), biased=False)
        h = self.dropout(self.norm2(FeatureMap(h), self.conv1.bias))
        if self.shortcut is not None:
            weight = self.shortcut.weight
            x, own = F.conv2d(x, weight), self.shortcut.bias
            bias = own if bias is None else self.shortcut_bias(weight, own, bias)
        if self.conv2.adds(h):
            return FeatureMap(self.conv2(h, x, bias))
        h, bias = self.conv2(h, biased=False), self.conv2.biases(bias)
        return residual_sum(x, h, self.groups_out, bias=bias, factor=1.0)


def _shortcut_bias(weight: Tensor, own: Tensor, bias: Tensor) -> Tensor:
    """What the 1x1 convolution makes of `bias`, which its input lacks, and its own bias."""
    return torch.addmv(own, weight.flatten(1), bias)


class AttentionBlock(nn.Module):
    """x + one-head self-attention over all positions, of the normalised x.

    `normed` as for `ResnetBlock`.
    """

    def __init__(self, channels: int, normed: bool = True) -> None:
        super().__init__()
        self.normed = normed
        self.norm = GroupNorm(channels, activation=None)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, given: FeatureMap) -> FeatureMap:
        # The 1x1 convolutions as linear layers, whose products add the bias. (N, HW, C) is a view
        # where the layout is channels_last.
        x = given.x
        tokens = self.norm(given).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight.flatten(1), self.qkv.bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        h = F.linear(h, self.out.weight.flatten(1), self.out.bias)
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])
        return residual_sum(x, h, self.norm.groups if self.normed else None, factor=1.0)


class Downsample(nn.Module):
    """Halves the resolution: 3x3 convolution of stride 2, zeros at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, *, biased: bool = True) -> Tensor:
        bias = self.conv.bias if biased else None
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, bias, stride=2)


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then a 3x3 convolution.

    Both at once: each of the four output phases sees only 2x2 inputs, with sums of the nine weights
    (4/9 of the multiplications, the same up to rounding). Together the phases are one transposed
    convolution of stride 2 with the 4x4 kernel of `fold_nearest`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.kernel = Derived(fold_nearest)

    def forward(self, x: Tensor, *, biased: bool = True) -> Tensor:
        kernel, bias = self.kernel(self.conv.weight), self.conv.bias if biased else None
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def fold_nearest(weight: Tensor) -> Tensor:
    """The transposed convolution's kernel (C, D, 4, 4) of doubling before `weight` (D, C, 3, 3).

    The 3x3 kernel convolved with the 2x2 box of ones, summed in float32 at least.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    turned = wide.flip(2, 3).transpose(0, 1)
    rows = F.pad(turned, (0, 0, 0, 1)) + F.pad(turned, (0, 0, 1, 0))
    kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
    return like_layout(kernel.to(weight.dtype), memory_format(weight))
