"""Resampling by 2 with StyleGAN's filter [1, 3, 3, 1]."""

from torch import Tensor, nn

from lddgan_kernels.ops import downsample2d, upsample2d


class FIRUpsample(nn.Module):
    """(N, C, H, W) -> (N, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample2d(x)


class FIRDownsample(nn.Module):
    """(N, C, H, W) -> (N, C, H/2, W/2)."""

    def forward(self, x: Tensor) -> Tensor:
        return downsample2d(x)
