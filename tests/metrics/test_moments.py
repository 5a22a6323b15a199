"""Moments of batches against those of the whole."""

import pytest
import torch

from lddgan_kernels.metrics import Moments, feature_statistics, frechet_distance


def moments(parts, width):
    found = Moments(width)
    for part in parts:
        found.add(part)
    return found


def test_order_and_batch_size_change_rounding_only():
    x = torch.randn(257, 30, dtype=torch.float64) * 0.1 + 10000
    mu, sigma = feature_statistics(x)
    shuffled = x[torch.randperm(len(x))]
    for rows, size in ((x, 1), (x, 64), (x, 300), (shuffled, 7)):
        found = moments(rows.split(size), 30).statistics()
        torch.testing.assert_close(found[0], mu, rtol=1e-14, atol=0)
        torch.testing.assert_close(found[1], sigma, rtol=1e-9, atol=1e-12)


def test_merged_halves_are_the_whole():
    x = torch.randn(100, 5)
    first, second = moments([x[:30]], 5), moments([x[30:]], 5)
    second.merge(Moments(5))
    first.merge(second)
    assert first.count == 100
    for found, wanted in zip(first.statistics(), feature_statistics(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("count", [40, 15])
def test_frechet_distance_of_moments_is_that_of_rows(count):
    """Also with fewer rows than features, whose covariance is singular."""
    a, b = torch.randn(count, 24), torch.randn(count, 24) * 1.2 + 0.3
    expected = frechet_distance(a, b)
    pairs = moments(a.split(4), 24).statistics(), moments(b.split(9), 24).statistics()
    assert frechet_distance(*pairs) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(pairs[0], b) == pytest.approx(expected, abs=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match=r"Moments: rows must be \(N, 3\), got \(2, 4\)"):
        Moments(3).add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="Moments: rows must be finite, got inf or NaN"):
        Moments(3).add(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="Moments: other must be of 3 features, got 4"):
        Moments(3).merge(Moments(4))
    with pytest.raises(ValueError, match="Moments: rows must be at least 2 in all, got 1"):
        moments([torch.zeros(1, 3)], 3).statistics()
