"""The kernels in a module of your own: adaptive group norm + SiLU, then FIR downsampling."""

import torch
from torch import nn

from lddgan_kernels import use_backend
from lddgan_kernels.ops import ada_group_norm, downsample2d


class StyledDown(nn.Module):
    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.affine = nn.Linear(style, 2 * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        scale, shift = self.affine(w).chunk(2, dim=1)
        return self.conv(downsample2d(ada_group_norm(x, 1 + scale, shift, num_groups=8)))


def main() -> None:
    torch.manual_seed(0)
    module = StyledDown(32, 16).to(memory_format=torch.channels_last)
    x = torch.randn(4, 32, 16, 16).to(memory_format=torch.channels_last)
    w = torch.randn(4, 16)
    y = module(x, w)
    y.square().mean().backward()
    with use_backend("reference"), torch.no_grad():
        plain = module(x, w)
    print(f"{tuple(y.shape)}, differs from plain PyTorch by {(y - plain).abs().max():.1e}")
    assert torch.allclose(y, plain, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
