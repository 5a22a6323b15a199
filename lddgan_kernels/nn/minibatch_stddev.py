"""The discriminator's statistic of a batch."""

from torch import Tensor, nn

from lddgan_kernels.ops import minibatch_stddev


class MinibatchStddev(nn.Module):
    """(N, C, H, W) -> (N, C + 1, H, W): how far the samples of a group differ, as a channel.

    Args:
        group: the largest size of a group.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return minibatch_stddev(x, self.group)
