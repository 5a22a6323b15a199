"""Self-attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn import init
from lddgan_kernels.nn._packed_conv import PackedConv
from lddgan_kernels.nn.feature_map import FeatureMap, as_map
from lddgan_kernels.nn.group_norm import GroupNorm
from lddgan_kernels.nn.linear import Linear, linear


def attend(qkv: Tensor, num_heads: int = 1) -> Tensor:
    """Attention (N, T, C) of queries, keys and values side by side, (N, T, 3C)."""
    heads = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)


class TokenConv(nn.Conv2d):
    """A 1x1 convolution of tokens (N, T, C), whose product adds the bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.packed = PackedConv()

    def forward(self, x: Tensor) -> Tensor:
        packed = None if self.training else self.packed
        return linear(x, self.weight.flatten(1), self.bias, packed)


class Attention(nn.Module):
    """(x + self-attention(norm(x))) * factor, one head over all positions (Ho et al. 2020).

    Args:
        channels: C.
        num_groups: of the norm.
        factor: of the sum.
        convolutions: the weights are those of 1x1 convolutions, (out, in, 1, 1), and start as in
            PyTorch (VQGAN); else those of linear layers, which start as in DDPM.
    """

    def __init__(
        self, channels: int, num_groups: int, *, factor: float = 1.0, convolutions: bool = False
    ) -> None:
        super().__init__()
        self.factor = factor
        self.norm = GroupNorm(channels, num_groups, activation=None)
        self.qkv: nn.Module
        self.out: nn.Module
        if convolutions:
            self.qkv = TokenConv(channels, 3 * channels)
            self.out = TokenConv(channels, channels)
        else:
            self.qkv = Linear(channels, 3 * channels)
            self.out = Linear(channels, channels, init_scale=0.0)
            with torch.no_grad():
                for rows in self.qkv.weight.chunk(3):
                    init.variance_scaling_(rows, 0.1)

    def forward(self, x: Tensor | FeatureMap) -> FeatureMap:
        """(N, C, H, W) of such a map."""
        x = as_map(x)
        # A view where the layout is channels_last.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        h = self.out(attend(self.qkv(tokens)))
        h = h.transpose(1, 2).unflatten(2, x.x.shape[2:])
        return x.plus(h, self.factor)
