"""Group norms: plain, and with scale and shift that a style sets; two rules for their groups."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn.feature_map import FeatureMap, as_map, as_tensor
from lddgan_kernels.ops import ada_group_norm, norm_resample

# Scale and shift of a norm, (N, C) each; the scale is gamma itself.
Style = tuple[Tensor, Tensor]


def group_count(channels: int) -> int:
    """Groups of a norm in NCSN++: at most 32, of at least 4 channels each.

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


def largest_group_count(channels: int) -> int:
    """Groups of a norm in VQGAN: 32, or the largest divisor of widths that 32 does not divide."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Affine group norm, then `activation`.

    Args:
        channels: C.
        num_groups: divides C.
        activation: "silu" or None.
    """

    def __init__(self, channels: int, num_groups: int, activation: str | None = "silu") -> None:
        super().__init__()
        self.num_groups = num_groups
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of 1, biases of 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor | FeatureMap) -> Tensor:
        """(N, C, H, W) of such a map, in its layout."""
        h, missing, moments = as_map(x).for_norm(self.num_groups)
        return ada_group_norm(
            h if moments is None else (h, moments),
            self.weight,
            self.bias,
            self.num_groups,
            activation=self.activation,
            bias=None if missing is None else missing.expand(h.shape[0], -1),
        )


class AdaGroupNorm(nn.Module):
    """act(scale * groupnorm(cat(x + bias, x2)) + shift), scale and shift given (AdaGN of DDGAN).

    Args:
        channels: C, of x and x2 together.
        activation: "silu" or None.
    """

    def __init__(self, channels: int, activation: str | None = "silu") -> None:
        super().__init__()
        self.num_groups = group_count(channels)
        self.activation = activation

    def forward(
        self,
        x: Tensor | FeatureMap,
        style: Style,
        x2: Tensor | FeatureMap | None = None,
        *,
        bias: Tensor | None = None,
    ) -> Tensor:
        """(N, C, H, W) of x (N, C1, H, W) and x2 (N, C2, H, W), as if they were concatenated.

        `bias`: (N, C1), added to x first.
        """
        moments = None
        if x2 is None and bias is None:
            x, missing, moments = as_map(x).for_norm(self.num_groups)
            if missing is not None:
                bias = missing.expand(x.shape[0], -1)
        x = as_tensor(x)
        return ada_group_norm(
            x if moments is None else (x, moments),
            *style,
            self.num_groups,
            activation=self.activation,
            x2=None if x2 is None else as_tensor(x2),
            bias=bias,
        )


class ResampledAdaGroupNorm(nn.Module):
    """`AdaGroupNorm` with SiLU and a resampling by 2 behind it, beside that of the shortcut.

    Args:
        channels: C.
        direction: "up" or "down".
        fir: by the filter [1, 3, 3, 1]; else nearest neighbour, and mean of 2x2.
    """

    def __init__(self, channels: int, direction: str, *, fir: bool = True) -> None:
        super().__init__()
        self.num_groups = group_count(channels)
        self.direction = direction
        self.fir = fir

    def forward(
        self, x: Tensor | FeatureMap, style: Style, shortcut: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """(resample(norm(x)), resample(shortcut(x))) of x (N, C, H, W); None: of x as it is."""
        h, missing, moments = as_map(x).for_norm(self.num_groups)
        if missing is not None:
            h = as_tensor(x)
        skip = None if shortcut is None else shortcut(h)
        given = h if moments is None else (h, moments)
        if self.fir:
            return norm_resample(given, *style, self.num_groups, self.direction, skip=skip)
        normed = ada_group_norm(given, *style, self.num_groups)
        return self._resample(normed), self._resample(h if skip is None else skip)

    def _resample(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
