"""EfficientNet-lite0 (Tan and Le 2019, the lite variant of 2020) as a feature network.

The names of its parts are those of the published PyTorch weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# (repeats, kernel, stride, expansion, output channels) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """(N, 3, H, W), (255 * x - 127) / 128 for x in 0..1 -> (N, 1280) pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks = []
        channels = 32
        for repeats, kernel, stride, expansion, out in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(_InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _SameConv(channels, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = self._blocks(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class _InvertedResidual(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = _SameConv(channels, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = _SameConv(wide, out, 1)
        self._bn2 = nn.BatchNorm2d(out, eps=1e-3)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class _SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: the odd pixel goes to the end."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))
