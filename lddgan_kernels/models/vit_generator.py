"""A transformer generator: U-ViT with adaptive group norm (LDDGAN, appendix C).

U-ViT (Bao et al. 2023, "All are worth words") is a vision transformer with long skip connections:
patches and the step t are tokens, and block i of the second half also reads the output of block
i of the first, counted from the other end. Here z controls the scale and shift of every norm, over
groups of channels and all tokens, as in the convolutional generator.

LDDGAN prints of its three sizes the parameters alone, 28.0, 43.3 and 56.2 million, with the 8.6
million of its CIFAR-10 decoder. `VIT_SIZES` is derived: the width and heads of U-ViT-S, depths that
come near, and `mlp_width` (4 times the width in U-ViT) such that the sums are met.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels._options import Count, check
from lddgan_kernels.models._generator_base import GeneratorBase
from lddgan_kernels.models.generator_options import CommonOptions, LatentShape

VIT_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"depth": 5, "mlp_width": 1920},
    "mid": {"depth": 9, "mlp_width": 1928},
    "large": {"depth": 13, "mlp_width": 1752},
}


@dataclass(frozen=True)
class ViTOptions:
    """Options of a transformer generator alone."""

    width: Count = 512
    """Channels of a token; a multiple of num_heads."""
    depth: Count = 5
    """Blocks; odd."""
    num_heads: Count = 8
    """Heads of attention."""
    mlp_width: Count = 1920
    """Hidden width of the blocks' second halves."""


@dataclass(frozen=True)
class ViTConfig(CommonOptions, ViTOptions, LatentShape):
    """A transformer generator's structure."""

    patch_size: Count = 2
    """Side of the patch behind a token."""

    def __post_init__(self) -> None:
        check(self)
        for name, divisor in (("resolution", self.patch_size), ("width", self.num_heads)):
            value = getattr(self, name)
            if value % divisor:
                raise ValueError(f"ViTConfig: {name} must be a multiple of {divisor}, got {value}")
        if self.depth % 2 == 0:
            raise ValueError(f"ViTConfig: depth must be odd, got {self.depth}")

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (self.resolution // self.patch_size) ** 2


class ViTLinear(nn.PackedLinear):
    """A linear layer with the usual initialisation of transformers."""

    def reset_parameters(self) -> None:
        super().reset_parameters()  # a seed stands for the same network as ever
        torch.nn.init.normal_(self.weight, std=0.02)
        torch.nn.init.zeros_(self.bias)


class TokenNorm(nn.AdaGroupNorm):
    """Adaptive group norm of tokens (N, T, C), which are a channels_last image of T rows."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, activation=None)

    def forward(self, x: Tensor, style: nn.Style) -> Tensor:  # type: ignore[override]
        return nn.image_to_tokens(super().forward(nn.tokens_to_image(x), style))


class ViTBlock(torch.nn.Module):
    """norm(z)-attention and norm(z)-MLP, both residual, on tokens (N, T, width)."""

    def __init__(self, config: ViTConfig, long_skip: bool) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.norm0 = TokenNorm(width)
        self.norm1 = TokenNorm(width)
        self.skip = ViTLinear(2 * width, width) if long_skip else None
        self.qkv = ViTLinear(width, 3 * width)
        self.out = ViTLinear(width, width)
        self.mlp0 = ViTLinear(width, config.mlp_width)
        self.mlp1 = ViTLinear(config.mlp_width, width)

    def forward(self, x: Tensor, styles: Sequence[Tensor], skip: Tensor | None) -> Tensor:
        """`styles`: scale and shift of both norms, (N, width) each."""
        if self.skip is not None:
            x = self.skip(x, skip)
        h = self.qkv(self.norm0(x, (styles[0], styles[1])))
        x = x + self.out(nn.attend(h, self.num_heads))
        h = self.norm1(x, (styles[2], styles[3]))
        return x + self.mlp1(F.gelu(self.mlp0(h)))


class ViTGenerator(GeneratorBase):
    """x_0 from (x_t, t, z).

    Args:
        config: the structure.
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        width, patch_width = config.width, config.channels * config.patch_size**2
        self.embed = ViTLinear(patch_width, width)
        self.positions = torch.nn.Parameter(torch.empty(1, 1 + config.tokens, width))
        torch.nn.init.normal_(self.positions, std=0.02)
        half = config.depth // 2
        self.blocks = torch.nn.ModuleList(ViTBlock(config, i > half) for i in range(config.depth))
        self.norm_out = TokenNorm(width)
        self.predict = ViTLinear(width, patch_width)
        self.conv_out = nn.Conv2d(config.channels, config.channels, 3, init_scale=1.0)
        self.mapping = nn.Mapping(
            config.z_dim, config.mapping_width, config.mapping_layers, config.classes
        )
        self.style_bank = nn.StyleBank(config.mapping_width, [width] * (2 * config.depth + 1))

    def _conditions(self, t: Tensor, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._styles(z, labels), nn.timestep_embedding(t, self.config.width)

    def _predict(self, x: Tensor, style_rows: Tensor, step: Tensor) -> Tensor:
        config = self.config
        styles = style_rows.split(self.style_bank.sizes, dim=1)
        h = self.embed(self._patches(x))
        h = torch.cat([step.to(h.dtype)[:, None], h], dim=1) + self.positions.to(h.dtype)
        skips: list[Tensor] = []
        half = config.depth // 2
        for i, block in enumerate(cast(Sequence[ViTBlock], self.blocks)):
            h = block(h, styles[4 * i : 4 * i + 4], skips.pop() if i > half else None)
            if i < half:
                skips.append(h)
        h = self.norm_out(h, (styles[-2], styles[-1]))
        image = like_layout(self._image(self.predict(h[:, 1:])), memory_format(x))
        h = self.conv_out(image)
        return torch.tanh(h) if config.tanh_out else h

    def _patches(self, x: Tensor) -> Tensor:
        """Patches as tokens (N, tokens, channels * patch_size^2), of an image."""
        n, c, size, p = x.shape[0], x.shape[1], x.shape[2], self.config.patch_size
        patches = x.reshape(n, c, size // p, p, size // p, p).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(n, self.config.tokens, c * p * p)

    def _image(self, tokens: Tensor) -> Tensor:
        """The image whose patches are `tokens`."""
        n, p, side = tokens.shape[0], self.config.patch_size, self.config.resolution
        patches = tokens.reshape(n, side // p, side // p, self.config.channels, p, p)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, self.config.channels, side, side)
