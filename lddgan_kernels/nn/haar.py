"""The Haar wavelet transform, split into its low band and its three high bands."""

import torch
from torch import Tensor, nn

from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels.nn.feature_map import FeatureMap, as_tensor
from lddgan_kernels.ops import haar_dwt2d, haar_idwt2d


class Haar(nn.Module):
    """(N, C, 2H, 2W) -> low band (N, C, H, W) and high bands (N, 3C, H, W), times `scale`.

    With a scale of 1/2 the low band is the mean of 2x2.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor | FeatureMap) -> tuple[Tensor, Tensor]:
        x = as_tensor(x)
        low, high = haar_dwt2d(x, self.scale).tensor_split([x.shape[1]], dim=1)
        return like_layout(low, memory_format(x)), high  # of which a slice of x has none


class InverseHaar(nn.Module):
    """The inverse of `Haar` with the same scale."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return haar_idwt2d(torch.cat([low, high], dim=1), 1.0 / self.scale)
