"""PyTorch's group norm together with what follows it: a drop-in for other people's networks."""

from typing import Any

import torch
from torch import Tensor, nn

from lddgan_kernels.ops import ada_group_norm

# Scale and shift of ada_group_norm.
Rows = tuple[Tensor | None, Tensor | None]


class GroupNormAct(nn.GroupNorm):
    """act(groupnorm(x + bias) * (1 + scale) + shift), in one pass.

    Parameters, names and start are those of `torch.nn.GroupNorm`.

    Args:
        num_groups, num_channels, eps, affine, device, dtype: as in PyTorch.
        activation: "silu", "gelu", "relu" or None.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: str | None = "silu",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.activation = activation

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Like x: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).

        `scale` and `shift`, (N, C), come after the affine map of the norm (ADM's scale-shift norm);
        `bias`, (N, C), is added to x first (the time bias of DDPM).
        """
        rows = folded_rows(self.weight, self.bias, scale, shift)
        return ada_group_norm(
            x, *rows, self.num_groups, eps=self.eps, activation=self.activation, bias=bias
        )


def folded_rows(
    weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> Rows:
    """Scale and shift of (weight * x + bias) * (1 + scale) + shift.

    Folded in float32 at least, which rows may have beside images of 16 bits.
    """
    if scale is None:
        return weight, bias if shift is None else _wide(shift) + _wide_or_zero(bias)
    scale = _wide(scale)
    gamma = scale + 1 if weight is None else torch.addcmul(_wide(weight), _wide(weight), scale)
    if bias is None:
        return gamma, shift
    beta = torch.addcmul(_wide(bias), _wide(bias), scale)
    return gamma, beta if shift is None else beta + shift


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _wide_or_zero(rows: Tensor | None) -> Tensor | float:
    return 0.0 if rows is None else _wide(rows)
