"""The FID Inception: Inception-v3 (Szegedy et al. 2015) as TensorFlow's 2015-12-05 graph has it.

Against the usual Inception-v3, average pools leave the padding out and the last block pools by
maximum. The names of its parts are those of the published weights `pt_inception-2015-12-05`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A layer: (name, output channels, kernel (height, width), stride).
Layer = tuple[str, int, tuple[int, int], int]
# The layers of a step all read what the step before gave, and are concatenated.
Chain = tuple[tuple[Layer, ...], ...]


class FidInception(nn.Module):
    """(N, 3, 299, 299) float images in [-1, 1] -> (N, 2048) pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _ConvNorm(3, 32, (3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = _ConvNorm(32, 32, (3, 3), 1, padded=False)
        self.Conv2d_2b_3x3 = _ConvNorm(32, 64, (3, 3), 1, padded=True)
        self.Conv2d_3b_1x1 = _ConvNorm(64, 80, (1, 1), 1, padded=False)
        self.Conv2d_4a_3x3 = _ConvNorm(80, 192, (3, 3), 1, padded=False)
        self.Mixed_5b = _Mixed(192, _block_a(), "average", 32)
        self.Mixed_5c = _Mixed(256, _block_a(), "average", 64)
        self.Mixed_5d = _Mixed(288, _block_a(), "average", 64)
        self.Mixed_6a = _Mixed(288, _block_b(), "stride", 0)
        self.Mixed_6b = _Mixed(768, _block_c(128), "average", 192)
        self.Mixed_6c = _Mixed(768, _block_c(160), "average", 192)
        self.Mixed_6d = _Mixed(768, _block_c(160), "average", 192)
        self.Mixed_6e = _Mixed(768, _block_c(192), "average", 192)
        self.Mixed_7a = _Mixed(768, _block_d(), "stride", 0)
        self.Mixed_7b = _Mixed(1280, _block_e(), "average", 192)
        self.Mixed_7c = _Mixed(2048, _block_e(), "maximum", 192)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


class _ConvNorm(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: tuple[int, int], stride: int, *, padded: bool
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Parallel chains and a pooled branch, concatenated.

    pool: "average" or "maximum" (3x3, stride 1, then a 1x1 layer of `pooled` channels), or
        "stride" (3x3 maximum of stride 2, nothing after it).
    """

    def __init__(self, channels: int, chains: tuple[Chain, ...], pool: str, pooled: int) -> None:
        super().__init__()
        self.chains = chains
        self.pool = pool
        for chain in chains:
            width = channels
            for step in chain:
                for name, out, kernel, stride in step:
                    layer = _ConvNorm(width, out, kernel, stride, padded=stride == 1)
                    self.add_module(name, layer)
                width = sum(layer[1] for layer in step)
        if pooled:
            self.branch_pool = _ConvNorm(channels, pooled, (1, 1), 1, padded=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            h = x
            for step in chain:
                h = torch.cat([getattr(self, layer[0])(h) for layer in step], 1)
            outputs.append(h)
        if self.pool == "stride":
            outputs.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "maximum":
            outputs.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(outputs, 1)


def _layer(
    name: str, out: int, kernel: tuple[int, int] = (1, 1), stride: int = 1
) -> tuple[Layer, ...]:
    """A step of one layer."""
    return ((name, out, kernel, stride),)


def _block_a() -> tuple[Chain, ...]:
    return (
        (_layer("branch1x1", 64),),
        (_layer("branch5x5_1", 48), _layer("branch5x5_2", 64, (5, 5))),
        (
            _layer("branch3x3dbl_1", 64),
            _layer("branch3x3dbl_2", 96, (3, 3)),
            _layer("branch3x3dbl_3", 96, (3, 3)),
        ),
    )


def _block_b() -> tuple[Chain, ...]:
    return (
        (_layer("branch3x3", 384, (3, 3), 2),),
        (
            _layer("branch3x3dbl_1", 64),
            _layer("branch3x3dbl_2", 96, (3, 3)),
            _layer("branch3x3dbl_3", 96, (3, 3), 2),
        ),
    )


def _block_c(width: int) -> tuple[Chain, ...]:
    return (
        (_layer("branch1x1", 192),),
        (
            _layer("branch7x7_1", width),
            _layer("branch7x7_2", width, (1, 7)),
            _layer("branch7x7_3", 192, (7, 1)),
        ),
        (
            _layer("branch7x7dbl_1", width),
            _layer("branch7x7dbl_2", width, (7, 1)),
            _layer("branch7x7dbl_3", width, (1, 7)),
            _layer("branch7x7dbl_4", width, (7, 1)),
            _layer("branch7x7dbl_5", 192, (1, 7)),
        ),
    )


def _block_d() -> tuple[Chain, ...]:
    return (
        (_layer("branch3x3_1", 192), _layer("branch3x3_2", 320, (3, 3), 2)),
        (
            _layer("branch7x7x3_1", 192),
            _layer("branch7x7x3_2", 192, (1, 7)),
            _layer("branch7x7x3_3", 192, (7, 1)),
            _layer("branch7x7x3_4", 192, (3, 3), 2),
        ),
    )


def _block_e() -> tuple[Chain, ...]:
    def split(stem: str) -> tuple[Layer, ...]:
        return ((f"{stem}a", 384, (1, 3), 1), (f"{stem}b", 384, (3, 1), 1))

    return (
        (_layer("branch1x1", 320),),
        (_layer("branch3x3_1", 384), split("branch3x3_2")),
        (
            _layer("branch3x3dbl_1", 448),
            _layer("branch3x3dbl_2", 384, (3, 3)),
            split("branch3x3dbl_3"),
        ),
    )
