"""What all generators share: their call and its checks."""

from typing import Any

from torch import Tensor, nn

from lddgan_kernels.models._replay import Replay


class GeneratorBase(nn.Module):
    """x_0 from (x_t, t, z).

    Args:
        config: the structure; it has `channels`, `resolution` and `z_dim`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.replay = Replay()

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The predicted x_0.

        Args:
            x: (N, channels, resolution, resolution) of the parameters' dtype (or float32 under
                autocast), contiguous or channels_last.
            t: (N,) steps, int64.
            z: (N, z_dim) of the parameters' dtype.

        Returns:
            Like x; in [-1, 1] where the configuration has `tanh_out`.

        Raises:
            ValueError: a shape does not fit the configuration.
        """
        config, n = self.config, x.shape[0]
        expected = (n, config.channels, config.resolution, config.resolution)
        for name, value, shape in (("x", x, expected), ("t", t, (n,)), ("z", z, (n, config.z_dim))):
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be of shape {shape}, "
                    f"got {tuple(value.shape)}"
                )
        return self._predict(x, t, z)

    def _predict(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """`forward` of arguments that fit."""
        raise NotImplementedError
