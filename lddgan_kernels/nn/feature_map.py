"""What the blocks of a network hand to each other: a map whose last step is left to its reader."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from lddgan_kernels.ops import residual_scale, residual_scale_moments


class FeatureMap:
    """The map (x + h + h2 + bias) * factor, made when it is first read.

    Who reads it decides how. A norm has the sum leave the partial moments that the norm needs next,
    in the same pass, or adds the bias itself; a residual sum adds the bias to its own. Everybody
    else takes `x`. On a GPU, where each of these steps would be a pass over the map, they cost
    nothing so.

    Args:
        addends: one to three tensors (N, C, H, W).
        bias: (C,), still to be added; None: none.
        factor: of the sum of several addends.
    """

    def __init__(self, *addends: Tensor, bias: Tensor | None = None, factor: float = 1.0) -> None:
        self._addends = addends
        self._bias = bias
        self._factor = factor
        # (groups, partial moments) that the sum left.
        self._moments: tuple[int, Tensor | None] | None = None

    @property
    def x(self) -> Tensor:
        """The map, (N, C, H, W)."""
        x, bias = self.without_bias()
        if bias is not None:
            x = x + bias[:, None, None]
            self._addends, self._bias = (x,), None
        return x

    def plus(self, h: "Tensor | FeatureMap", factor: float) -> "FeatureMap":
        """(this + h) * factor."""
        x, bias = self.without_bias()
        return FeatureMap(x, as_tensor(h), bias=bias, factor=factor)

    def without_bias(self) -> tuple[Tensor, Tensor | None]:
        """(map, bias (C,) that it lacks; None where it lacks none)."""
        if len(self._addends) > 1:
            self._become(residual_scale(self._addends[0], self._addends[1], **self._options()))
        return self._addends[0], self._bias

    def for_norm(self, num_groups: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(map, bias that it lacks, partial moments of its groups, which spare the norm a pass).

        At most one of the two last is there; partial moments are left on GPUs alone.
        """
        if len(self._addends) > 1:
            first, second = self._addends[:2]
            x, moments = residual_scale_moments(first, second, num_groups, **self._options())
            self._become(x)
            self._moments = num_groups, moments
        moments = None
        if self._moments is not None and self._moments[0] == num_groups:
            moments = self._moments[1]
        return self._addends[0], self._bias, moments

    def _options(self) -> dict[str, Any]:
        """Those of the sum."""
        h2 = self._addends[2] if len(self._addends) > 2 else None
        return {"h2": h2, "bias": self._bias, "factor": self._factor}

    def _become(self, x: Tensor) -> None:
        """The sum is made; its addends may go."""
        self._addends, self._bias = (x,), None


def as_map(x: Tensor | FeatureMap) -> FeatureMap:
    """x as a map."""
    return x if isinstance(x, FeatureMap) else FeatureMap(x)


def as_tensor(x: Tensor | FeatureMap) -> Tensor:
    """x as a tensor."""
    return x.x if isinstance(x, FeatureMap) else x


# So that tools which look for tensors in a module's output find them.
register_pytree_node(FeatureMap, lambda h: ([h.x], None), lambda parts, _: FeatureMap(*parts))
