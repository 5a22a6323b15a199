"""Which images of a step are learned without their class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lddgan_kernels.diffusion import NO_LABEL
from lddgan_kernels.trainer import distributed


def drop_labels(labels: Tensor | None, shape: Sequence[int], share: float, like: Tensor) -> Tensor:
    """Labels of which a share, drawn anew for each row of `shape`, is `NO_LABEL`.

    What is drawn is for the whole batch, by all processes alike.

    Args:
        labels: (N,) of this process, or None: nothing is drawn, and all are `NO_LABEL`.
        shape: (rows, whole batch).
        share: 0..1.
        like: on the device that they are wanted on.

    Returns:
        (rows, N) int64.
    """
    if labels is None:
        none = torch.full(tuple(shape), NO_LABEL, device=like.device)
        return torch.stack([distributed.own(row) for row in none])
    dropped = torch.rand(tuple(shape), device=like.device) < share
    given = labels.to(like.device, non_blocking=True)
    return torch.stack([torch.where(distributed.own(row), NO_LABEL, given) for row in dropped])
