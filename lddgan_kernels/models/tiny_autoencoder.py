"""Encoder and decoder of TAESD, the tiny autoencoder of Stable Diffusion's latents (O. B. Bohan).

Plain 3x3 convolutions and ReLUs. Layers are numbered as published, and so are their weights.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 3.0  # to which the decoder clamps latents, softly


def conv(in_channels: int, out_channels: int, *, bias: bool = True) -> torch.nn.Conv2d:
    """A 3x3 convolution."""
    return torch.nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


class TinyBlock(torch.nn.Module):
    """relu(x + conv(relu(conv(relu(conv(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Sequential(
            *(conv(width, width), torch.nn.ReLU()),
            *(conv(width, width), torch.nn.ReLU()),
            conv(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class TinyEncoder(torch.nn.Module):
    """Images (N, C, H, W) in [-1, 1] -> (N, latent, H / 2^(levels - 1), W / 2^(levels - 1))."""

    def __init__(self, channels: int, width: int, levels: int, blocks: int, latent: int) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = [conv(channels, width), TinyBlock(width)]
        for _ in range(levels - 1):
            layers.append(torch.nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            layers += [TinyBlock(width) for _ in range(blocks)]
        self.layers = torch.nn.Sequential(*layers, conv(width, latent))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers((x + 1) / 2)
        return h


class TinyDecoder(torch.nn.Module):
    """Latents back to images in about [-1, 1]."""

    def __init__(self, channels: int, width: int, levels: int, blocks: int, latent: int) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = [conv(latent, width), torch.nn.ReLU()]
        for _ in range(levels - 1):
            layers += [TinyBlock(width) for _ in range(blocks)]
            layers += [torch.nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
        self.layers = torch.nn.Sequential(*layers, TinyBlock(width), conv(width, channels))

    @property
    def conv_out(self) -> torch.nn.Conv2d:
        """The last layer."""
        return cast(torch.nn.Conv2d, self.layers[-1])

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(BOUND * torch.tanh(z / BOUND))
        return 2 * image - 1
