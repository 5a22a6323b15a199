"""From z, and a class, to the scale and shift of every adaptive norm of a network."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn import init
from lddgan_kernels.nn._packed_conv import PackedConv
from lddgan_kernels.nn.linear import Linear
from lddgan_kernels.ops import pixel_norm


class ClassEmbedding(nn.Module):
    """Labels (N,) int64, below `classes` -> (N, width): a learned row for each class.

    The label -1, or None for all, stands for no class, which has a row of its own, the first.

    Args:
        classes, width: of the rows.
        std: of the normal numbers that they start with.
    """

    def __init__(self, classes: int, width: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(classes + 1, width))

    def forward(self, labels: Tensor | None) -> Tensor:
        return self.weight[:1] if labels is None else F.embedding(labels + 1, self.weight)


class Mapping(nn.Module):
    """z (N, z_dim) -> (N, width): pixel norm, then 1 + `depth` linear layers, each with SiLU.

    Without z (z_dim 0) a constant stands for it. With `classes` an embedding of the label is added
    to the first layer's output, which is what the layer would make of z beside the label as a
    one-hot vector.
    """

    def __init__(self, z_dim: int, width: int, depth: int, classes: int = 0) -> None:
        super().__init__()
        widths = [max(z_dim, 1)] + [width] * (1 + depth)
        self.layers = nn.ModuleList(Linear(i, o) for i, o in itertools.pairwise(widths))
        self.classes = ClassEmbedding(classes, width, 1.0) if classes else None

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = pixel_norm(z) if z.shape[1] else z.new_ones(z.shape[0], 1)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i == 0 and self.classes is not None:
                h = h + self.classes(labels).to(h.dtype)
            h = F.silu(h)
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
