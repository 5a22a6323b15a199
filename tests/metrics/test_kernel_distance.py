"""Kernel distance against a double loop, and against torch-fidelity where it is installed."""

import pytest
import torch

from lddgan_kernels.metrics import frechet_distance, kernel_distance, precision_recall


def double_loop(x, y):
    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return (within - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)).item()


def test_against_a_double_loop():
    x, y = torch.randn(12, 4).double(), torch.randn(12, 4).double() * 1.3 + 0.2
    found = kernel_distance(x, y, subsets=3)
    assert found.mean == pytest.approx(double_loop(x, y), rel=1e-12)
    assert found.deviation < 1e-12  # a subset is the whole set


def test_no_bias_at_small_numbers():
    """Of one distribution it is zero on average, the Frechet distance is not."""
    found = [kernel_distance(*torch.randn(2, 20, 8), subsets=1).mean for _ in range(300)]
    values = torch.tensor(found)
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert frechet_distance(*torch.randn(2, 20, 8)) > 0.5


def test_subsets_are_seeded():
    x, y = torch.randn(50, 3), torch.randn(60, 3) + 0.5
    first = kernel_distance(x, y, subsets=5, subset_size=20)
    assert first == kernel_distance(x, y, subsets=5, subset_size=20)
    assert first != kernel_distance(x, y, subsets=5, subset_size=20, seed=1)
    assert first.deviation > 0


def test_bad_input():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"fake must be \(N, D\) with N >= 2, got \(1, 3\)"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="real must be of 3 features like fake"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="real must be finite"):
        kernel_distance(x, x / 0)
    with pytest.raises(ValueError, match="at least 1 and 2"):
        kernel_distance(x, x, subset_size=1)


@pytest.mark.parametrize("counts", [(400, 400), (300, 420), (90, 90)])
def test_parity_with_torch_fidelity(counts):
    """FID, KID, precision and recall of the same features; (90, 90) has fewer than features."""
    try:
        from torch_fidelity.metric_fid import fid_statistics_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric
    except Exception as error:  # without torchvision, or one of another PyTorch
        pytest.skip(f"torch-fidelity cannot be imported: {error}")
    fake = torch.randn(counts[0], 100, dtype=torch.float64) * 0.9 + 0.1
    real = torch.randn(counts[1], 100, dtype=torch.float64)
    stats = [{"mu": x.numpy().mean(0), "sigma": torch.cov(x.T).numpy()} for x in (fake, real)]
    fid = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(fake, real) == pytest.approx(fid, abs=1e-6)
    options = {"kid_subsets": 7, "kid_subset_size": 80, "verbose": False}
    kid = kid_features_to_metric(fake, real, **options)
    found = kernel_distance(fake, real, subsets=7, subset_size=80)
    assert found.mean == pytest.approx(kid["kernel_inception_distance_mean"], abs=1e-6)
    assert found.deviation == pytest.approx(kid["kernel_inception_distance_std"], abs=1e-6)
    prc = prc_features_to_metric(fake, real, save_cpu_ram=False, verbose=False)
    assert precision_recall(real, fake) == pytest.approx(
        (prc["precision"], prc["recall"]), abs=1e-6
    )
