"""Frechet distance against closed forms."""

import pytest
import torch

from lddgan_kernels.metrics import feature_statistics, frechet_distance


def exact_features(mu, factor):
    """2 D points whose mean is `mu` and unbiased covariance `factor @ factor.T`, exactly."""
    d = len(mu)
    signs = torch.cat([torch.eye(d), -torch.eye(d)]).double() * ((2 * d - 1) / 2) ** 0.5
    return mu + signs @ factor.T


def random_factor(d, seed):
    return torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equal_sets_are_at_zero():
    x = torch.randn(300, 20)
    assert frechet_distance(x, x) < 1e-10
    assert frechet_distance(x, x.flip(0)) < 1e-10


def test_shift_alone():
    x = torch.randn(100, 8, dtype=torch.float64)
    shift = torch.arange(8.0)
    assert frechet_distance(x, x + shift) == pytest.approx(140.0, rel=1e-10)


def test_diagonal_covariances():
    """tr of (S_a S_b)^(1/2) is the sum of the products of deviations."""
    a, b = torch.rand(6).double() + 0.5, torch.rand(6).double() + 0.5
    mu = torch.randn(6).double()
    found = frechet_distance(
        exact_features(mu, torch.diag(a)), exact_features(torch.zeros(6), torch.diag(b))
    )
    assert found == pytest.approx((mu.square().sum() + (a - b).square().sum()).item(), rel=1e-10)


def test_general_covariances_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    fa, fb = random_factor(12, 0), random_factor(12, 1)
    mu = torch.randn(12, dtype=torch.float64)
    sa, sb = fa @ fa.T, fb @ fb.T
    root = torch.from_numpy(linalg.sqrtm((sa @ sb).numpy()).real)
    expected = (mu.square().sum() + (sa + sb - 2 * root).trace()).item()
    a, b = exact_features(mu, fa), exact_features(torch.zeros(12), fb)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance((mu, sa), (torch.zeros(12), sb)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, (torch.zeros(12), sb)) == pytest.approx(expected, rel=1e-8)
    numpy = (mu.numpy(), sa.numpy())
    assert frechet_distance(numpy, b) == pytest.approx(expected, rel=1e-8)
    found_mu, found_sigma = feature_statistics(a)
    torch.testing.assert_close(found_mu, mu)
    torch.testing.assert_close(found_sigma, sa)


def test_fewer_samples_than_features():
    """Singular covariances: two orthogonal lines, then the same line."""
    a, b = torch.zeros(3, 50), torch.zeros(3, 50)
    a[:, 0] = torch.tensor([-1.0, 0, 1])
    b[:, 1] = torch.tensor([-2.0, 0, 2])
    assert frechet_distance(a, b) == pytest.approx(1 + 4, abs=1e-12)
    assert frechet_distance(a, a * 2) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rank", [12, 5])
def test_singular_covariances_against_scipy(rank):
    """Its root of the product needs no full rank either, but rounds."""
    linalg = pytest.importorskip("scipy.linalg")
    fa, fb = random_factor(12, 0)[:, :rank], random_factor(12, 1)[:, :rank]
    sa, sb = fa @ fa.T, fb @ fb.T
    # The trace of the root is that of the root of the similar, symmetric product.
    half = torch.from_numpy(linalg.sqrtm(sa.numpy()).real)
    root = torch.from_numpy(linalg.sqrtm((half @ sb @ half).numpy()).real)
    expected = (sa + sb - 2 * root).trace().item()
    found = frechet_distance((torch.zeros(12), sa), (torch.zeros(12), sb))
    assert found == pytest.approx(expected, abs=1e-6)
    a = torch.randn(40, rank, dtype=torch.float64) @ fa.T
    b = torch.randn(40, rank, dtype=torch.float64) @ fb.T
    stored = feature_statistics(a), feature_statistics(b)
    assert frechet_distance(*stored) == pytest.approx(frechet_distance(a, b), abs=1e-6)


def test_rows_are_factorised_in_blocks(monkeypatch):
    from lddgan_kernels.metrics import frechet

    a, b = torch.randn(50, 6), torch.randn(41, 6)
    whole = frechet_distance(a, b)
    monkeypatch.setattr(frechet, "ROWS", 7)
    assert frechet_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_huge_means_and_half_precision():
    a = torch.randn(400, 5, dtype=torch.float64)
    b = torch.randn(400, 5, dtype=torch.float64) * 1.5
    near, far = frechet_distance(a, b), frechet_distance(a + 1e6, b + 1e6)
    assert far == pytest.approx(near, rel=1e-6)
    half = a.half()
    assert frechet_distance(half, b) == pytest.approx(frechet_distance(half.double(), b))


def test_bad_input():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="b must be of 3 features like a, got 4"):
        frechet_distance(x, torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"a must be of shape \(N, D\) with N >= 2, got \(1, 3\)"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="b must be finite"):
        frechet_distance(x, x / 0)
    with pytest.raises(ValueError, match=r"a must be \(mu \(D,\), sigma \(D, D\)\)"):
        frechet_distance((torch.zeros(3), torch.zeros(2, 2)), x)
    with pytest.raises(TypeError, match="a must be a torch.Tensor"):
        frechet_distance(None, x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_distance(value):
    x, mu, sigma = torch.randn(9, 4), torch.zeros(4), torch.eye(4)
    spoilt = x.clone()
    spoilt[2, 1] = value
    for other in (spoilt, (mu + value, sigma), (mu, sigma * value)):
        for pair in ((x, other), (other, x)):
            with pytest.raises(ValueError, match="[ab] must be finite"):
                frechet_distance(*pair)


def test_overflow_is_no_distance():
    x = torch.randn(9, 4, dtype=torch.float64)
    for huge in (x * 1e200, x + 1e300, x * 1e307, (torch.zeros(4), torch.eye(4).double() * 1e308)):
        with pytest.raises(ValueError, match="a and b must be small enough to be squared"):
            frechet_distance(x * 1e200, huge)


def test_what_is_no_covariance_is_refused():
    x = torch.randn(9, 4)
    for sigma in (-torch.eye(4), torch.eye(4) + torch.tensor([[0.0, 9, 0, 0]] + [[0.0] * 4] * 3)):
        with pytest.raises(ValueError, match="b must be .* covariance"):
            frechet_distance(x, (torch.zeros(4), sigma))
