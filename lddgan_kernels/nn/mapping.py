"""From z to the scale and shift of every adaptive norm of a network."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn import init
from lddgan_kernels.nn._packed_conv import PackedConv
from lddgan_kernels.nn.linear import Linear
from lddgan_kernels.ops import pixel_norm


class Mapping(nn.Module):
    """z (N, z_dim) -> (N, width): pixel norm, then 1 + `depth` linear layers, each with SiLU.

    Without z (z_dim 0) a constant stands for it.
    """

    def __init__(self, z_dim: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [max(z_dim, 1)] + [width] * (1 + depth)
        self.layers = nn.ModuleList(Linear(i, o) for i, o in itertools.pairwise(widths))

    def forward(self, z: Tensor) -> Tensor:
        h = pixel_norm(z) if z.shape[1] else z.new_ones(z.shape[0], 1)
        for layer in self.layers:
            h = F.silu(layer(h))
        return h


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
        self.bias = nn.Parameter(torch.empty(sum(self.sizes)))
        self._packed = PackedConv()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights by `init.variance_scaling_` norm by norm; scales of 1 and shifts of 0."""
        for rows in self.weight.split([2 * size for size in self.sizes[::2]]):
            init.variance_scaling_(rows)
        for i, part in enumerate(self.bias.split(self.sizes)):
            part.fill_(float(i % 2 == 0))

    def forward(self, style: Tensor) -> Tensor:
        """scale, shift, scale, shift, ... of all norms side by side, (N, sum of `sizes`)."""
        x, weight = style[:, :, None, None], self.weight[:, :, None, None]
        if style.dtype == torch.float32 and not self.training and PackedConv.suits(x, weight):
            # As a 1x1 convolution: of few rows all threads read a part of the weights, once.
            return self._packed(x, weight, self.bias).flatten(1)
        return F.linear(style, self.weight, self.bias)
