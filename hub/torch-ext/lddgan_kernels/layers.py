"""Forward passes for modules of others, as `kernels.kernelize` puts them in; they hold nothing."""

import torch
from torch import nn

from .ops import ada_group_norm, downsample2d, haar_dwt2d, haar_idwt2d, pixel_norm, upsample2d


class GroupNorm(nn.Module):
    """For `torch.nn.GroupNorm`."""

    num_groups: int
    eps: float
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    can_torch_compile: bool = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return ada_group_norm(
            input, self.weight, self.bias, self.num_groups, eps=self.eps, activation=None
        )


class GroupNormSiLU(nn.Module):
    """For a group norm with its SiLU."""

    num_groups: int
    eps: float
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    can_torch_compile: bool = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return ada_group_norm(
            input, self.weight, self.bias, self.num_groups, eps=self.eps, activation="silu"
        )


class PixelNorm(nn.Module):
    can_torch_compile: bool = True

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return pixel_norm(z)


class Upsample2d(nn.Module):
    """By 2, with StyleGAN's filter [1, 3, 3, 1]."""

    can_torch_compile: bool = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample2d(x)


class Downsample2d(nn.Module):
    """By 2, with StyleGAN's filter [1, 3, 3, 1]."""

    can_torch_compile: bool = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return downsample2d(x)


class HaarDWT2d(nn.Module):
    can_torch_compile: bool = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return haar_dwt2d(x)


class HaarIDWT2d(nn.Module):
    can_torch_compile: bool = True

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return haar_idwt2d(y)
