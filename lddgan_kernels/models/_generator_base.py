"""What all generators share: their call and its checks, and the calls of several steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels._checks import check_labels


class GeneratorBase(torch.nn.Module):
    """x_0 from (x_t, t, z), and a class where the configuration has `classes`.

    Args:
        config: the structure; it has `channels`, `resolution`, `z_dim` and `classes`.
    """

    mapping: nn.Mapping
    style_bank: nn.StyleBank
    _predict: Callable[..., Tensor]  # x_0 from x and its conditions, which fit

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, t: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The predicted x_0.

        Args:
            x: (N, channels, resolution, resolution) of the parameters' dtype (or float32 under
                autocast), contiguous or channels_last.
            t: (N,) steps, int64, or floating where they are many.
            z: (N, z_dim) of the parameters' dtype.
            labels: (N,) classes, int64, below `classes`; -1, or None, asks for none.

        Returns:
            Like x; in [-1, 1] where the configuration has `tanh_out`.

        Raises:
            ValueError: a shape does not fit the configuration.
        """
        self._check(x.shape[0], labels, x=x, t=t, z=z)
        return self._predict(x, *self._conditions(t, z, labels))

    def predictors(
        self, t: Tensor, z: Tensor, labels: Tensor | None = None
    ) -> list[Callable[[Tensor], Tensor]] | None:
        """`forward` of x alone for each of S steps: what the rest sets is computed once, for all.

        The network reads its widest weight for that, so one step takes nearly as long as all.

        Args:
            t: (S, N) steps, int64.
            z: (S, N, z_dim).
            labels: (N,), of all steps.

        Returns:
            S functions, which raise RuntimeError once the weights that t and z go through have
            changed; None where a call does more than `forward` here: hooks, a subclass's own
            forward, a compiled or traced one.

        Raises:
            ValueError: a shape does not fit the configuration.
        """
        flat_t, flat_z = t.flatten(), z.flatten(0, 1)
        self._check(t.shape[-1], labels)
        flat_labels = None if labels is None else labels.repeat(t.shape[0])
        self._check(flat_t.shape[0], flat_labels, t=flat_t, z=flat_z)
        if nn.is_traced():  # to weights whose changes nobody could see
            return None
        state = nn.ModuleState(*self._conditioners())
        if (
            nn.is_hooked(self)
            or not state.recordable
            or type(self).forward is not GeneratorBase.forward
            or "forward" in vars(self)
            or self._compiled_call_impl is not None
        ):
            return None
        rows = self._conditions(flat_t, flat_z, flat_labels)
        steps = zip(*(row.unflatten(0, t.shape).unbind() for row in rows), strict=True)
        return [Predictor(self, state, step) for step in steps]

    def _check(self, n: int, labels: Tensor | None = None, **given: Tensor) -> None:
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
        check_labels(type(self).__name__, labels, n, config.classes)

    def _conditions(self, t: Tensor, z: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        """What t (N,), z (N, z_dim) and labels (N,) set in the network, N rows each."""
        raise NotImplementedError

    def _conditioners(self) -> list[torch.nn.Module]:
        """The modules that t, z and labels go through."""
        return [self.mapping, self.style_bank]

    def _styles(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Scale and shift of every adaptive norm, side by side."""
        styles: Tensor = self.style_bank(self.mapping(z, labels))
        return styles


class Predictor:
    """x_0 from x alone, for conditions of weights as they were."""

    def __init__(
        self, generator: GeneratorBase, state: nn.ModuleState, conditions: tuple[Tensor, ...]
    ) -> None:
        self._generator = generator
        self._state = state
        self._conditions = conditions

    def __call__(self, x: Tensor) -> Tensor:
        name = type(self._generator).__name__
        if not self._state.holds():
            raise RuntimeError(
                f"{name}: predictors must be asked for again after weights have changed, "
                "got those of other weights"
            )
        self._generator._check(self._conditions[0].shape[0], x=x)
        return self._generator._predict(x, *self._conditions)
