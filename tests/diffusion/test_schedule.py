import pytest
import torch

from lddgan_kernels.diffusion import Schedule
from tests.conftest import shared_path


@pytest.mark.parametrize("num_steps", [2, 4])
def test_golden_tables_are_met_exactly(num_steps):
    load_file = pytest.importorskip("safetensors.torch").load_file
    golden = load_file(shared_path(f"golden/diffusion_T{num_steps}.safetensors"))
    for name, table in Schedule(num_steps).tables().items():
        assert table.dtype == torch.float32
        assert torch.equal(table, golden[name]), name


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_tables_are_consistent(num_steps):
    s = Schedule(num_steps)
    exact = {name: table.double() for name, table in s.tables().items()}
    assert len(s.a_s) == len(s.sigmas) == len(s.a_s_cum) == len(s.sigmas_cum) == num_steps + 1
    assert len(s.posterior_variance) == len(s.posterior_mean_coef1) == num_steps
    one = torch.ones((), dtype=torch.float64)
    for a, sigma in ((exact["a_s"], exact["sigmas"]), (exact["a_s_cum"], exact["sigmas_cum"])):
        torch.testing.assert_close((a**2 + sigma**2)[1:], one.expand(num_steps), atol=1e-6, rtol=0)
    assert s.sigmas_cum[0] == 0
    # Two routes to the marginal of x_t: from x_0, and through the posterior given x_{t+1}.
    c1, c2 = exact["posterior_mean_coef1"], exact["posterior_mean_coef2"]
    mean = c1 + c2 * exact["a_s_cum"][1:]
    variance = exact["posterior_variance"] + c2**2 * exact["sigmas_cum"][1:] ** 2
    torch.testing.assert_close(mean, exact["a_s_cum"][:-1], atol=2e-6, rtol=0)
    torch.testing.assert_close(variance, exact["sigmas_cum"][:-1] ** 2, atol=2e-6, rtol=0)
    assert s.posterior_variance[0] == 0
    assert s.posterior_log_variance_clipped.isfinite().all()
    # Every T ends in nearly the same noise.
    assert s.a_s_cum[-1] < 0.01


def test_moves_between_devices():
    s = Schedule(4)
    assert s.to("cpu") is s
    assert s.to("meta").a_s.device.type == "meta"


@pytest.mark.parametrize("num_steps", [0, 9, -1])
def test_bad_number_of_steps(num_steps):
    with pytest.raises(ValueError, match=f"num_steps must be in 1..8, got {num_steps}"):
        Schedule(num_steps)


def test_other_ends_of_beta():
    s = Schedule(4, beta_min=0.1, beta_max=10)
    time = torch.arange(5, dtype=torch.float64) / 4 * (1 - 1e-3) + 1e-3
    cumulated = torch.exp(-0.25 * time**2 * 9.9 - 0.5 * time * 0.1)
    torch.testing.assert_close(
        s.a_s_cum[1:], (cumulated[1:] / cumulated[0]).float(), atol=1e-6, rtol=1e-5
    )
    moved = s.to("meta")
    assert (moved.beta_min, moved.beta_max) == (0.1, 10)
    same = Schedule(4, beta_min=0.1, beta_max=20)
    assert all(torch.equal(t, same.tables()[n]) for n, t in Schedule(4).tables().items())
    for ends in ((-1, 20), (0.1, 1e9), (0.1, float("nan")), (20, 0.1), (0, 0)):
        with pytest.raises(ValueError, match="beta_min and beta_max must be 0 <="):
            Schedule(4, beta_min=ends[0], beta_max=ends[1])


@pytest.mark.parametrize("num_steps", range(1, 9))
@pytest.mark.parametrize("beta_max", [0.2, 50.0])
def test_tables_of_extreme_ends_are_finite(num_steps, beta_max):
    for name, table in Schedule(num_steps, beta_max=beta_max).tables().items():
        assert table.isfinite().all(), name
