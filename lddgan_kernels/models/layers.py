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

from lddgan_kernels.models._derived import Derived
from lddgan_kernels.models.conv3x3 import Conv3x3
from lddgan_kernels.models.feature_map import FeatureMap, residual_sum
from lddgan_kernels.ops import ada_group_norm, pixel_norm

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
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(embedding, (0, 1)) if width % 2 else embedding


class TimeEmbedding(nn.Module):
    """t (N,) -> (N, hidden): sinusoids, then two linear layers, each activated."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.width = width
        self.activation = activation
        self.linear0 = linear(width, hidden)
        self.linear1 = linear(hidden, hidden)

    def forward(self, t: Tensor) -> Tensor:
        return embed_time(t, self.width, self.activation, *self.parameters())


def embed_time(t: Tensor, width: int, activation: Activation, *weights: Tensor) -> Tensor:
    """`TimeEmbedding` as a function of its parameters: weight and bias of both layers."""
    h = timestep_embedding(t, width).to(weights[0].dtype)
    return activation(F.linear(activation(F.linear(h, *weights[:2])), *weights[2:]))


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
        self.total_bias = Derived(torch.add)
        with torch.no_grad():
            for rows in self.weight.split(self.sizes):
                uniform_(rows)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """One (N, size) bias a block, views of a single matrix."""
        return self.rows(embedding).split(self.sizes, dim=1)

    def rows(self, embedding: Tensor) -> Tensor:
        """The single matrix, (N, sum of sizes)."""
        return F.linear(embedding, self.weight, self.total_bias(self.bias, self.conv_bias))


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

    def forward(self, style: Tensor) -> Tensor:
        """scale, shift, scale, shift, ... of all norms side by side, (N, sum of `sizes`)."""
        return F.linear(style, self.weight, self.bias)


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

    def forward(self, h: FeatureMap) -> Tensor:
        return ada_group_norm(
            h.x,
            self.weight,
            self.bias,
            self.groups,
            activation=self.activation,
            moments=h.moments,
        )


def merge(
    x: Tensor,
    h: Tensor,
    rescale: bool,
    *,
    h2: Tensor | None = None,
    bias: Tensor | None = None,
    normed: bool = True,
) -> FeatureMap:
    """The residual sum x + h + h2 + bias, over sqrt(2) where `rescale`.

    `normed` says whether a norm reads the sum, and nothing beside it.
    """
    groups = group_count(x.shape[1]) if normed else None
    return residual_sum(x, h, groups, h2=h2, bias=bias, factor=math.sqrt(0.5) if rescale else 1.0)


class Attention(nn.Module):
    """Self-attention with one head over all positions, as a residual (Ho et al. 2020)."""

    def __init__(self, channels: int, rescale: bool) -> None:
        super().__init__()
        self.rescale = rescale
        self.normed = True  # whether a norm reads the output, and nothing beside it
        self.norm = GroupNorm(channels, activation=None)
        self.qkv = linear(channels, 3 * channels)
        self.out = linear(channels, channels, scale=0.0)
        with torch.no_grad():
            for rows in self.qkv.weight.chunk(3):
                uniform_(rows, 0.1)

    def forward(self, x: FeatureMap) -> FeatureMap:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        h = self.out(h).transpose(1, 2).unflatten(2, x.x.shape[2:])
        return merge(x.x, h, self.rescale, normed=self.normed)
