"""The samplers of many steps, against closed forms.

For Gaussian data N(m, s^2) the best prediction of x_0 is linear in x_t, and along the
probability-flow ODE (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays what it is.
"""

import math

import pytest
import torch
from torch import nn

from lddgan_kernels import diffusion
from lddgan_kernels.diffusion import (
    ManyStepSampler,
    PriorSampler,
    Schedule,
    VPDiffusion,
    ancestral,
    ode,
)
from lddgan_kernels.models import Generator, GeneratorConfig

PROCESS = VPDiffusion()
MEAN, DEVIATION = 0.3, 0.25
SOLVERS = {"ddim": (ancestral.ddim, 1), "heun": (ode.heun, 2), "dpm++": (ode.dpm_solver, 2)}


def spread(t):
    """The deviation of x_t."""
    return math.hypot(PROCESS.alpha(t) * DEVIATION, PROCESS.sigma(t))


def predict(x, t):
    """E[x_0 | x_t]."""
    alpha = PROCESS.alpha(t)
    return MEAN + alpha * DEVIATION**2 / spread(t) ** 2 * (x - alpha * MEAN)


def flowed(x, t, u):
    """Where the probability-flow ODE takes x from time t to u."""
    return PROCESS.alpha(u) * MEAN + (x - PROCESS.alpha(t) * MEAN) / spread(t) * spread(u)


class Gaussian(nn.Module):
    """The best network for such data; it predicts noise."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, t, z):
        assert z.shape == (len(x), 0)
        time = ((t.double() + 1) / PROCESS.num_steps)[:, None, None, None]
        integral = 0.5 * time**2 * (PROCESS.beta_max - PROCESS.beta_min) + time * PROCESS.beta_min
        alpha, variance = (-0.5 * integral).exp(), -torch.expm1(-integral)
        centered = x - alpha * MEAN
        noise = variance.sqrt() * centered / (alpha**2 * DEVIATION**2 + variance)
        return self.scale * noise.float()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_its_order(name):
    solve, order = SOLVERS[name]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    end = 0.02
    exact = flowed(x, 1.0, end)

    def error(steps):
        logs = torch.linspace(
            math.log(PROCESS.noise_to_signal(1.0)), math.log(PROCESS.noise_to_signal(end)),
            steps + 1, dtype=torch.float64,
        )  # fmt: skip
        times = [PROCESS.time(value) for value in logs.exp().tolist()]
        return (solve(predict, PROCESS, x, times) - exact).abs().max().item()

    coarse, fine = error(80), error(160)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert fine < (1e-2 if order == 1 else 1e-3)


def test_a_step_of_ddpm_is_the_published_one():
    """Ho et al. 2020, Algorithm 2, with the smaller of its two variances."""
    k = 400  # of 1000, from 1 on
    now, before = k / 1000, (k - 1) / 1000
    x, n = torch.randn(2, 5, dtype=torch.float64)
    bar, bar_before = PROCESS.alpha(now) ** 2, PROCESS.alpha(before) ** 2
    beta = 1 - bar / bar_before
    noise = (x - math.sqrt(bar) * predict(x, now)) / math.sqrt(1 - bar)
    mean = (x - beta / math.sqrt(1 - bar) * noise) / math.sqrt(1 - beta)
    expected = mean + math.sqrt((1 - bar_before) / (1 - bar) * beta) * n
    found = ancestral.ddpm(predict, PROCESS, x, [now, before], lambda _: n)
    torch.testing.assert_close(found, expected)


def test_ddpm_draws_the_data():
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(20_000, generator=generator, dtype=torch.float64)

    times = [k / 1000 for k in range(1000, -1, -1)]
    x = ancestral.ddpm(predict, PROCESS, draw(), times, lambda _: draw())
    error = DEVIATION / math.sqrt(len(x))
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * error)
    assert x.std().item() == pytest.approx(DEVIATION, abs=4 * error)


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [("ddim", 1000, 0.02), ("heun", 40, 0.02), ("dpm++", 40, 0.02)],
)
def test_ode_samplers_flow_to_the_data(name, steps, tolerance):
    sampler = ManyStepSampler(
        Gaussian().eval(), PROCESS, (1, 4, 4), sampler=name, steps=steps, bound=None
    )
    seeds = torch.arange(3)
    start = sampler.path(seeds)[1][0][0]
    exact = flowed(start, 1.0, 0.0)
    assert (sampler(seeds) - exact).abs().max() < tolerance


@pytest.mark.parametrize("name", diffusion.SAMPLERS)
def test_calls_are_counted(name):
    network = Gaussian().eval()
    sampler = ManyStepSampler(network, PROCESS, (1, 2, 2), sampler=name, steps=5)
    path = sampler.path(torch.arange(2))[1]
    assert len(path) == diffusion.calls(name, 5)
    assert all(x0.abs().max() <= 1 for _, x0 in path)


@pytest.mark.parametrize("name", diffusion.SAMPLERS)
def test_a_seed_gives_the_same_image_at_any_batch_size(name):
    """Seeds 0 to 999, whole, in parts, and as three processes would share them."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        1, 4, z_dim=0, tanh_out=False, base_channels=8, channel_multipliers=(1, 1), num_blocks=1,
        mapping_layers=0, mapping_width=8,
    )  # fmt: skip
    network = Generator(config).eval().requires_grad_(False)
    nn.init.normal_(network.conv_out.weight, std=0.2)
    sampler = ManyStepSampler(
        network, PROCESS, (1, 4, 4), sampler=name, steps=6, decoder=Decoder(), max_batch=1000
    )
    seeds = torch.arange(1000)
    whole = sampler(seeds)
    parts = torch.cat([sampler(part) for part in seeds.split(37)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)
    for rank in range(3):
        torch.testing.assert_close(sampler(seeds[rank::3]), whole[rank::3], rtol=0, atol=2e-5)
    assert (whole[0] - whole[1]).abs().max() > 0.1


class Decoder(nn.Module):
    def decode(self, x):
        return 2 * x


def test_a_vae_decodes_standard_normal_latents():
    class Codec(Decoder):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

    sampler = PriorSampler(Codec().eval(), (4, 8, 8))
    images = sampler(torch.arange(300))
    assert images.std().item() == pytest.approx(2, abs=0.03)
    torch.testing.assert_close(sampler(torch.arange(5, 8)), images[5:8])


def test_vp_is_the_process_of_the_few_step_schedule():
    """Steps of a `Schedule` begin at 1e-3, from where its cumulative tables count."""
    schedule = Schedule(4)
    for i in range(1, 5):
        t = 1e-3 + (1 - 1e-3) * i / 4
        expected = PROCESS.alpha(t) / PROCESS.alpha(1e-3)
        assert schedule.a_s_cum[i].item() == pytest.approx(expected, rel=1e-5)


def test_vp_is_consistent():
    alphas, sigmas = PROCESS.tables("cpu")
    assert alphas.shape == sigmas.shape == (1000,)
    torch.testing.assert_close(alphas**2 + sigmas**2, torch.ones(1000))
    for t in (1e-3, 0.1, 0.5, 1.0):
        assert PROCESS.time(PROCESS.noise_to_signal(t)) == pytest.approx(t)
        k = round(PROCESS.step(t))
        assert alphas[k].item() == pytest.approx(PROCESS.alpha(t))
    constant = VPDiffusion(10, 5.0, 5.0)
    assert constant.time(constant.noise_to_signal(0.3)) == pytest.approx(0.3)
    assert constant.alpha(0.3) == pytest.approx(math.exp(-0.75))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPDiffusion(0), "num_steps must be in 1..1000, got 0"),
        (lambda: VPDiffusion(10, 2.0, 1.0), "beta_min and beta_max must be 0 <= "),
        (lambda: sampler_of(sampler="euler"), "sampler must be one of ddpm, ddim, heun, dpm"),
        (lambda: sampler_of(steps=1001), "steps must be in 1..1000, got 1001"),
        (lambda: sampler_of(max_batch=0), "max_batch must be positive, got 0"),
        (lambda: sampler_of()(torch.zeros(3)), "seeds must be int64, got torch.float32"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def sampler_of(**options):
    return ManyStepSampler(Gaussian().eval(), PROCESS, (1, 2, 2), **options)
