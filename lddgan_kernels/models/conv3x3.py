"""A 3x3 convolution that keeps its weight packed for the CPU kernel."""

from torch import Tensor, nn

from lddgan_kernels.models._derived import Derived
from lddgan_kernels.ops.conv3x3 import conv3x3, pack_conv3x3, uses_winograd


class Conv3x3(nn.Conv2d):
    """nn.Conv2d(in_channels, out_channels, 3, padding=1), plus a residual where one is given."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.packed = Derived(pack_conv3x3, differentiable=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        packed = self.packed(self.weight) if uses_winograd(x, self.weight) else None
        return conv3x3(x, self.weight, self.bias, residual=residual, packed=packed)
