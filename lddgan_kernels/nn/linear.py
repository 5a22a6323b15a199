"""Linear layers that start as in DDPM, and what runs linear layers of tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn import init
from lddgan_kernels.nn._packed_conv import PackedConv
from lddgan_kernels.nn.tokens import image_to_tokens, tokens_to_image


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: PackedConv | None) -> Tensor:
    """F.linear(x, weight, bias), of tokens (N, T, C) by what is fastest on this processor.

    Args:
        x, weight, bias: as in PyTorch.
        packed: keeps this weight packed for inference; None in training.
    """
    if packed is not None and x.ndim == 3:
        image, kernel = tokens_to_image(x), weight[:, :, None, None]  # of a 1x1 convolution
        if packed.suits(image, kernel):
            return image_to_tokens(packed(image, kernel, bias))
    return F.linear(x, weight, bias)


class PackedLinear(nn.Linear):
    """A linear layer whose weight is packed once for inference on tokens (N, T, C).

    Args:
        in_features, out_features: as in PyTorch.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.packed = PackedConv(), PackedConv()

    def forward(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        """(..., in_features) to (..., out_features); x2 as if concatenated to x on features."""
        first, second = (None, None) if self.training else self.packed
        if x2 is None:
            return linear(x, self.weight, self.bias, first)
        weight, width = self.weight, x.shape[-1]
        h = linear(x, weight[:, :width], self.bias, first)
        return h + linear(x2, weight[:, width:], None, second)


class Linear(PackedLinear):
    """A linear layer, (..., in_features) to (..., out_features).

    Args:
        in_features, out_features: as in PyTorch.
        init_scale: of `init.variance_scaling_`.
    """

    def __init__(self, in_features: int, out_features: int, init_scale: float = 1.0) -> None:
        self.init_scale = init_scale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Weights by `init.variance_scaling_`, biases of 0."""
        super().reset_parameters()  # a seed stands for the same network as ever
        init.start(self, self.init_scale)
