"""What all generators share: their call and its checks, and the calls of several steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from lddgan_kernels._module_state import ModuleState
from lddgan_kernels.models._replay import Replay
from lddgan_kernels.models.layers import Mapping, StyleBank


class GeneratorBase(nn.Module):
    """x_0 from (x_t, t, z).

    Args:
        config: the structure; it has `channels`, `resolution` and `z_dim`.
    """

    mapping: Mapping
    style_bank: StyleBank
    _predict: Callable[..., Tensor]  # x_0 from x and its conditions, which fit

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
        self._check(x.shape[0], x=x, t=t, z=z)
        state = self.replay.state(self, x)
        return self.replay(state, self._predict, x, *self._conditions(state, t, z))

    def predictors(self, t: Tensor, z: Tensor) -> list[Callable[[Tensor], Tensor]] | None:
        """`forward` of x alone for each of S steps: what t and z set is computed once, for all.

        The network reads its widest weight for that, so one step takes nearly as long as all.

        Args:
            t: (S, N) steps, int64.
            z: (S, N, z_dim).

        Returns:
            S functions, for the weights as they are now; None where a call does more than
            `forward` here: hooks, a subclass's own forward, a compiled one.

        Raises:
            ValueError: a shape does not fit the configuration.
        """
        flat_t, flat_z = t.flatten(), z.flatten(0, 1)
        self._check(flat_t.shape[0], t=flat_t, z=flat_z)
        state = self.replay.state(self, flat_z)
        hooked = state is None and any(
            part._forward_hooks or part._forward_pre_hooks for part in self.modules()
        )
        if (
            hooked
            or type(self).forward is not GeneratorBase.forward
            or "forward" in vars(self)
            or self._compiled_call_impl is not None
        ):
            return None
        rows = self._conditions(state, flat_t, flat_z)
        steps = zip(*(row.unflatten(0, t.shape).unbind() for row in rows), strict=True)
        return [partial(self._step, state, step) for step in steps]

    def _step(self, state: ModuleState | None, conditions: tuple[Tensor, ...], x: Tensor) -> Tensor:
        self._check(conditions[0].shape[0], x=x)
        return self.replay(state, self._predict, x, *conditions)

    def _check(self, n: int, **given: Tensor) -> None:
        """Raises ValueError where a tensor does not fit a batch of n."""
        config = self.config
        shapes = {
            "x": (n, config.channels, config.resolution, config.resolution),
            "t": (n,),
            "z": (n, config.z_dim),
        }
        for name, value in given.items():
            if tuple(value.shape) != shapes[name]:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be of shape {shapes[name]}, "
                    f"got {tuple(value.shape)}"
                )

    def _conditions(self, state: ModuleState | None, t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """What t (N,) and z (N, z_dim) set in the network, N rows each; `state` for `replay`."""
        raise NotImplementedError

    def _styles(self, z: Tensor) -> Tensor:
        """Scale and shift of every adaptive norm, side by side."""
        styles: Tensor = self.style_bank(self.mapping(z))
        return styles
