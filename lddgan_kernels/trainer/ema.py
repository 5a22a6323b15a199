"""The exponential moving average of a network's weights: what samples."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """`module` is the average of `source`'s parameters, in evaluation mode, without gradients.

    Args:
        source: the network that is trained; its buffers are constants.
        decay: of the average. The first updates use less, (1 + n) / (10 + n) at update n, so that
            the random start is forgotten.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self._source: list[Tensor] = list(source.parameters())
        self._average: list[Tensor] = list(self.module.parameters())

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Takes the source's weights in; `count`: updates made before this one."""
        decay = min(self.decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(self._average, self._source, 1.0 - decay)
