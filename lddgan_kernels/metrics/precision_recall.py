"""Improved precision and recall (Kynkaanniemi et al. 2019)."""

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail

# Elements of one block of squared distances: 256 MB in float64.
BLOCK = 1 << 25

# Rounding of a squared distance, relative to |a|^2 + |b|^2: points that tie count as inside.
TIE = 1e-13


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of `fake` (M, D) against `real` (N, D) features.

    A ball around each point of a set reaches to its k-th nearest neighbour in that set, the point
    itself not counted. Precision is the share of fake points inside at least one real ball (on its
    surface counts), recall the share of real points inside at least one fake ball.

    Exact: all pairs in float64, block by block, on the features' device. Both sets need more than
    k points.
    """
    for arg, x in (("real", real), ("fake", fake)):
        check_tensor("precision_recall", arg, x)
        if x.ndim != 2 or len(x) <= k:
            raise fail("precision_recall", arg, f"(N, D) with N > k = {k}", tuple(x.shape))
        if not x.detach().double().square().sum(1).isfinite().all():
            raise fail("precision_recall", arg, "finite, also squared", "inf, NaN or an overflow")
    if k < 1:
        raise fail("precision_recall", "k", "at least 1", k)
    if real.shape[1] != fake.shape[1]:
        raise fail(
            "precision_recall", "fake", f"of {real.shape[1]} features like real", tuple(fake.shape)
        )
    # Distances do not depend on the origin; their rounding does.
    origin = real.detach().double().mean(0)
    a, b = real.detach().double() - origin, fake.detach().double() - origin
    return _covered(b, a, k), _covered(a, b, k)


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of `points` inside at least one of the balls around `centres`."""
    rows = max(1, BLOCK // len(centres))
    radii = torch.empty(len(centres), dtype=torch.float64, device=centres.device)
    for start in range(0, len(centres), rows):
        block, _ = _squared_distances(centres[start : start + rows], centres)
        own = torch.arange(len(block), device=block.device)
        block[own, start + own] = torch.inf
        radii[start : start + rows] = block.kthvalue(k, dim=1).values
    inside = 0
    for start in range(0, len(points), rows):
        block, scale = _squared_distances(points[start : start + rows], centres)
        inside += int((block <= radii + TIE * scale).any(1).sum())
    return inside / len(points)


def _squared_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(M, N) squared distances of the rows of `a` and `b`, and |a|^2 + |b|^2."""
    scale = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(scale, a, b.T, alpha=-2), scale
