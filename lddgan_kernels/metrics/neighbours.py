"""What nearest neighbours tell of two sets of features: precision and recall (Kynkaanniemi et al.
2019), density and coverage (Naeem et al. 2020)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail

# Elements of one block of squared distances: 256 MB in float64.
BLOCK = 1 << 25

# Rounding of a squared distance, relative to |a|^2 + |b|^2: points that tie count as inside.
TIE = 1e-13


class NeighbourScores(NamedTuple):
    """Fractions of 1, but the density, which may exceed it."""

    precision: float
    """Fake points inside at least one real ball."""
    recall: float
    """Real points inside at least one fake ball."""
    density: float
    """Real balls, over k, that a fake point lies in on average: outliers count for little."""
    coverage: float
    """Real balls with at least one fake point inside."""


def neighbour_scores(real: Tensor, fake: Tensor, k: int = 3, density_k: int = 5) -> NeighbourScores:
    """Precision, recall, density and coverage of `fake` (M, D) against `real` (N, D) features.

    A ball around each point of a set reaches to its k-th nearest neighbour in that set, the point
    itself not counted (`k` for precision and recall, `density_k` for density and coverage, as their
    authors have them). A point on its surface is inside.

    Exact: all pairs in float64, block by block, on the features' device. Both sets need more points
    than neighbours.
    """
    for arg, neighbours in (("k", k), ("density_k", density_k)):
        if neighbours < 1:
            raise fail("neighbour_scores", arg, "at least 1", neighbours)
    most = max(k, density_k)
    for arg, x in (("real", real), ("fake", fake)):
        check_tensor("neighbour_scores", arg, x)
        if x.ndim != 2 or len(x) <= most:
            raise fail("neighbour_scores", arg, f"(N, D) with N > k = {most}", tuple(x.shape))
        if not x.detach().double().square().sum(1).isfinite().all():
            raise fail("neighbour_scores", arg, "finite, also squared", "inf, NaN or an overflow")
    if real.shape[1] != fake.shape[1]:
        raise fail(
            "neighbour_scores", "fake", f"of {real.shape[1]} features like real", tuple(fake.shape)
        )
    # Distances do not depend on the origin; their rounding does.
    origin = real.detach().double().mean(0)
    a, b = real.detach().double() - origin, fake.detach().double() - origin
    real_radii, wide_radii = _radii(a, (k, density_k))
    (fake_radii,) = _radii(b, (k,))
    precise = inside = 0
    recalled = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    covered = recalled.clone()
    for start, block, tie in _blocks(b, a):
        precise += int((block <= real_radii + tie).any(1).sum())
        recalled |= (block <= fake_radii[start : start + len(block), None] + tie).any(0)
        within = block <= wide_radii + tie
        inside += int(within.sum())
        covered |= within.any(0)
    return NeighbourScores(
        precision=precise / len(b),
        recall=int(recalled.sum()) / len(a),
        density=inside / (density_k * len(b)),
        coverage=int(covered.sum()) / len(a),
    )


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """The first two of `neighbour_scores`."""
    return neighbour_scores(real, fake, k, k)[:2]


def nearest(points: Tensor, others: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """(distances, indices), both (M, k): the nearest of `others` (N, D) to each of `points` (M, D).

    In float64; the nearest first. Raises ValueError where there are fewer than k others.
    """
    if points.ndim != 2 or others.ndim != 2 or points.shape[1] != others.shape[1]:
        shapes = f"{tuple(points.shape)} and {tuple(others.shape)}"
        raise fail("nearest", "points and others", "(M, D) and (N, D)", shapes)
    if not 1 <= k <= len(others):
        raise fail("nearest", "k", f"in 1..{len(others)}, the number of others", k)
    origin = others.double().mean(0)
    found = [
        block.topk(k, dim=1, largest=False)
        for _, block, _ in _blocks(points.double() - origin, others.double() - origin)
    ]
    distances = torch.cat([part.values for part in found]).clamp(min=0).sqrt()
    return distances, torch.cat([part.indices for part in found])


def _radii(points: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """The squared distances (N,) to the k-th nearest other point, for each k."""
    found = []
    for start, block, _ in _blocks(points, points):
        own = torch.arange(len(block), device=block.device)
        block[own, start + own] = torch.inf
        found.append(block.topk(max(ks), dim=1, largest=False).values)
    return [torch.cat(found)[:, k - 1] for k in ks]


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, (rows, N) squared distances to b's rows, their rounding), block by block."""
    rows = max(1, BLOCK // len(b))
    lengths = b.square().sum(1)
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        scale = part.square().sum(1)[:, None] + lengths
        yield start, torch.addmm(scale, part, b.T, alpha=-2), scale.mul_(TIE)
