"""Linear layers that start as in DDPM."""

from torch import nn

from lddgan_kernels.nn import init


class Linear(nn.Linear):
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
