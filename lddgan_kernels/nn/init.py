"""How the weights of DDPM and its descendants start."""

import math

from torch import Tensor, nn


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fills a weight (out, in, ...) uniformly with variance 2 scale / (fan_in + fan_out).

    A scale of 0 stands for 1e-10: such layers start as almost nothing.
    """
    fans = (weight.shape[0] + weight.shape[1]) * math.prod(weight.shape[2:])
    bound = math.sqrt(6.0 * (scale or 1e-10) / fans)
    return nn.init.uniform_(weight, -bound, bound)


def start(layer: nn.Conv2d | nn.Linear, init_scale: float | None) -> None:
    """Starts a layer by `variance_scaling_` with a bias of 0; None leaves it as PyTorch does."""
    if init_scale is None:
        return
    variance_scaling_(layer.weight, init_scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
