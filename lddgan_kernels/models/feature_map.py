"""What the blocks of a network hand to each other."""

from typing import Any, NamedTuple

from torch import Tensor

from lddgan_kernels.ops import residual_scale, residual_scale_moments


class FeatureMap(NamedTuple):
    """A map, and what the residual sum that made it left for a norm of it.

    Attributes:
        x: (N, C, H, W).
        moments: of its groups (`residual_scale_moments`), which the next norm takes over; None
            where there are none: on a CPU, and where no sum made x or no norm reads it alone.
    """

    x: Tensor
    moments: Tensor | None = None


def residual_sum(x: Tensor, h: Tensor, num_groups: int | None, **options: Any) -> FeatureMap:
    """`residual_scale` of x and h; `num_groups` are those of the norm that reads it, None: none."""
    if num_groups is None:
        return FeatureMap(residual_scale(x, h, **options))
    return FeatureMap(*residual_scale_moments(x, h, num_groups, **options))
