"""Neighbours of features against double loops."""

import pytest
import torch

from lddgan_kernels.metrics import nearest, neighbour_scores, precision_recall


def brute_force(real, fake, k):
    def covered(points, centres):
        balls = []
        for i, centre in enumerate(centres):
            others = sorted(
                (centre - other).square().sum().item() for j, other in enumerate(centres) if i != j
            )
            balls.append((centre, others[k - 1]))
        inside = [
            any((point - centre).square().sum().item() <= r for centre, r in balls)
            for point in points
        ]
        return sum(inside) / len(inside)

    return covered(fake, real), covered(real, fake)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(40, 40), (23, 60), (60, 9)])
def test_against_a_double_loop(k, sizes):
    real = torch.randn(sizes[0], 4, dtype=torch.float64)
    fake = torch.randn(sizes[1], 4, dtype=torch.float64) * 0.7 + 0.4
    assert precision_recall(real, fake, k) == brute_force(real, fake, k)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_on_a_grid_count_as_inside(k):
    """Whole numbers tie exactly, with duplicates."""
    real = torch.randint(0, 4, (30, 2)).double()
    fake = torch.randint(0, 6, (30, 2)).double() + 1
    assert precision_recall(real, fake, k) == brute_force(real, fake, k)


def test_blocks_do_not_matter(monkeypatch):
    from lddgan_kernels.metrics import neighbours

    real, fake = torch.randn(37, 3), torch.randn(41, 3) * 0.5
    whole, closest = neighbour_scores(real, fake), nearest(fake, real, 2)
    monkeypatch.setattr(neighbours, "BLOCK", 130)
    assert neighbour_scores(real, fake) == whole
    torch.testing.assert_close(nearest(fake, real, 2), closest)
    assert whole[:2] == brute_force(real.double(), fake.double(), 3)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_against_a_double_loop(k):
    real, fake = torch.randn(40, 3).double(), torch.randn(30, 3).double() * 0.6 + 0.3
    radii = [
        sorted((x - y).norm() for j, y in enumerate(real) if i != j)[k - 1]
        for i, x in enumerate(real)
    ]
    inside = torch.tensor(
        [[(x - y).norm() <= r for x, r in zip(real, radii, strict=True)] for y in fake]
    )
    found = neighbour_scores(real, fake, density_k=k)
    assert found.density == pytest.approx(inside.sum().item() / (k * len(fake)))
    assert found.coverage == inside.any(0).float().mean()


def test_an_outlier_flatters_precision_but_not_density():
    real = torch.cat([torch.randn(60, 4) * 0.1, torch.full((1, 4), 30.0)])
    fake = torch.randn(50, 4) + 28
    found = neighbour_scores(real, fake)
    assert found.precision == 1.0
    assert found.density < 0.3
    assert found.coverage < 0.1


def test_nearest_against_cdist():
    a, b = torch.randn(9, 5).double(), torch.randn(20, 5).double()
    distances, indices = nearest(a, b, 3)
    expected = torch.cdist(a, b).sort(1)
    torch.testing.assert_close(distances, expected.values[:, :3])
    assert indices.equal(expected.indices[:, :3])
    with pytest.raises(ValueError, match="k must be in 1..20, the number of others, got 21"):
        nearest(a, b, 21)


def test_a_point_on_the_surface_is_inside():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    on, outside = torch.tensor([[6.0]] * 4), torch.tensor([[6.5]] * 4)
    # The ball around 3 reaches to 0, its third neighbour, so also to 6.
    assert precision_recall(real, on, 3)[0] == 1.0
    assert precision_recall(real, outside, 3)[0] == 0.0


def test_the_point_itself_is_not_its_neighbour():
    real = torch.tensor([[0.0], [1.0]])
    assert precision_recall(real, torch.tensor([[-1.0], [2.0]]), 1) == (1.0, 1.0)
    assert precision_recall(real, torch.tensor([[-1.1], [2.1]]), 1)[0] == 0.0


def test_same_set_far_set_and_dropped_mode():
    x = torch.randn(50, 6)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)
    two_modes = torch.cat([x, x + 100])
    precision, recall = precision_recall(two_modes, x)
    assert precision == 1.0
    assert recall == 0.5


def test_huge_mean_does_not_blur():
    real, fake = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    expected = precision_recall(real, fake)
    assert precision_recall(real * 0.1 + 1e4, fake * 0.1 + 1e4) == expected


def test_duplicates_and_zero_radius():
    real = torch.full((5, 3), 0.1)
    assert precision_recall(real, real.clone()) == (1.0, 1.0)
    assert precision_recall(real, real + 0.01) == (0.0, 0.0)


def test_bad_input():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"fake must be \(N, D\) with N > k = 3, got \(3, 3\)"):
        precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="fake must be of 3 features like real"):
        precision_recall(x, x[:, :2])
    with pytest.raises(ValueError, match="k must be at least 1"):
        precision_recall(x, x, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_what_is_not_finite_is_refused(value):
    x = torch.randn(9, 3, dtype=torch.float64)
    spoilt = x.clone()
    spoilt[4, 1] = value
    with pytest.raises(ValueError, match="fake must be finite"):
        precision_recall(x, spoilt)
    with pytest.raises(ValueError, match="real must be finite"):
        precision_recall(spoilt, x)
