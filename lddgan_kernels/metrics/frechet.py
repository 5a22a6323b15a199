"""Frechet distance of two sets of features (FID with Inception's), in float64.

|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. 2017, equation 6.
"""

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail

# Stored covariances are rounded: eigenvalues and asymmetry of this share of the largest are noise.
NEGATIVE = 1e-3
# Rows that are factorised at once.
ROWS = 8192


def frechet_distance(a: Tensor | tuple[Tensor, Tensor], b: Tensor | tuple[Tensor, Tensor]) -> float:
    """The squared Frechet distance of the Gaussians fitted to `a` and `b`.

    a, b: features (N, D), N >= 2, any floating dtype; or statistics (mu (D,), sigma (D, D)), with
        sigma the unbiased covariance. Compare at equal sample counts only: the estimate falls
        with their number.

    The root's trace is the sum of the singular values of F_a^T F_b for factors S = F F^T, taken
    from the features by QR: no matrix is squared, so also sets of fewer than D samples, whose
    covariances are singular, keep full precision.
    """
    mu_a, factor_a = _moments("a", a)
    mu_b, factor_b = _moments("b", b)
    if mu_a.shape != mu_b.shape:
        raise fail("frechet_distance", "b", f"of {len(mu_a)} features like a", len(mu_b))
    product = factor_a.T @ factor_b
    if not all(part.isfinite().all() for part in (mu_a, mu_b, product)):
        raise fail("frechet_distance", "a and b", "small enough to be squared", "an overflow")
    root = torch.linalg.svdvals(product).sum()
    distance = (mu_a - mu_b).square().sum()
    distance += factor_a.square().sum() + factor_b.square().sum() - 2 * root
    if not distance.isfinite():
        raise fail("frechet_distance", "a and b", "small enough to be squared", "an overflow")
    return max(0.0, distance.item())


def frechet_bias(a: Tensor, b: Tensor | tuple[Tensor, Tensor]) -> float:
    """About how much `frechet_distance(a, b)` is too large for want of samples.

    The excess falls as one over their number (Chong and Forsyth 2020), so it is what half of the
    samples add: the mean distance of every other row, less that of all. Of statistics the number is
    not known; they are taken as they are.
    """
    halves = [frechet_distance(a[i::2], b if isinstance(b, tuple) else b[i::2]) for i in range(2)]
    return sum(halves) / 2 - frechet_distance(a, b)


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mu (D,), sigma (D, D)) in float64 of features (N, D)."""
    mu, factor = _moments("features", features)
    return mu, factor @ factor.T


def _moments(arg: str, value: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The mean and a factor F (D, R) of the covariance F F^T, float64, on the CPU."""
    if isinstance(value, tuple):
        mu, sigma = (torch.as_tensor(part).detach().cpu().double() for part in value)
        check_statistics("frechet_distance", arg, mu, sigma)
        values, vectors = torch.linalg.eigh(sigma / 2 + sigma.T / 2)
        if values.min() < -NEGATIVE * values.abs().max():
            raise fail(
                "frechet_distance",
                arg,
                "(mu, sigma) with a covariance as sigma",
                f"an eigenvalue of {values.min():.3g} beside {values.max():.3g}",
            )
        # What is below rounding is none: its root would not be.
        floor = len(values) * torch.finfo(torch.float64).eps * values.max()
        return mu, vectors * torch.where(values > floor, values, 0.0).sqrt()
    check_tensor("frechet_distance", arg, value)
    if value.ndim != 2 or len(value) < 2:
        raise fail("frechet_distance", arg, "of shape (N, D) with N >= 2", tuple(value.shape))
    x = value.detach().cpu()
    if not x.isfinite().all():
        raise fail("frechet_distance", arg, "finite", "inf or NaN")
    mu = x.mean(0, dtype=torch.float64)
    triangle = torch.zeros(0, x.shape[1], dtype=torch.float64)
    for rows in x.split(ROWS):
        centred = (rows.double() - mu) / (len(x) - 1) ** 0.5
        triangle = torch.linalg.qr(torch.cat([triangle, centred]), mode="r").R
    return mu, triangle.T


def check_statistics(op: str, arg: str, mu: Tensor, sigma: Tensor) -> None:
    """Raises ValueError unless mu is (D,), sigma (D, D) and symmetric, and both finite."""
    if mu.ndim != 1 or len(mu) == 0 or sigma.shape != (len(mu), len(mu)):
        found = f"shapes {tuple(mu.shape)}, {tuple(sigma.shape)}"
        raise fail(op, arg, "(mu (D,), sigma (D, D))", found)
    for name, part in (("mu", mu), ("sigma", sigma)):
        if not part.isfinite().all():
            raise fail(op, arg, "finite", f"`{name}` with inf or NaN")
    if (sigma - sigma.T).abs().max() > NEGATIVE * sigma.abs().max():
        raise fail(op, arg, "(mu, sigma) with a covariance as sigma", "one that is not symmetric")
