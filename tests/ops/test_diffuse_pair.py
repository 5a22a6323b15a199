import sys

import pytest
import torch

from lddgan_kernels.diffusion import STREAM_DIFFUSE_NEXT, STREAM_DIFFUSE_T, Schedule
from lddgan_kernels.ops import diffuse_pair, posterior_sample, seeded_normal
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import EMULATED_CUDA, NATIVE_DEVICES, backends_of, device_of, shared_path

module = sys.modules["lddgan_kernels.ops.diffuse_pair"]
BACKENDS = backends_of(module)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = ((5, 4, 8, 8), (3, 3, 5, 7), (2, 3, 40, 44), (4, 1, 1, 1), (2, 7, 6, 2), (0, 4, 4, 4))


def plain(x0, t, schedule, n_t, n_next):
    def at(table, t):
        return table[t][:, None, None, None].to(x0.dtype)

    x_t = at(schedule.a_s_cum, t) * x0 + at(schedule.sigmas_cum, t) * n_t
    return x_t, at(schedule.a_s, t + 1) * x_t + at(schedule.sigmas, t + 1) * n_next


def inputs(shape, device, dtype=torch.float32, layout=torch.contiguous_format):
    """x0 and two noises; t with every step; a schedule of 4 steps."""
    tensors = [
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout) for _ in range(3)
    ]
    return *tensors, torch.arange(shape[0], device=device) % 4, Schedule(4, device)


@pytest.mark.parametrize("num_steps", [2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_vectors(backend, num_steps):
    load_file = pytest.importorskip("safetensors.torch").load_file
    path = shared_path(f"golden/diffusion_T{num_steps}.safetensors")
    golden = {k: v.to(device_of(backend)) for k, v in load_file(path).items()}
    schedule = Schedule(num_steps, device_of(backend))
    noise = golden["noise_t"], golden["noise_tp1"]
    outs = diffuse_pair(golden["x_0"], golden["t"], schedule, noise=noise, backend=backend)
    for out, want in zip(outs, (golden["x_t"], golden["x_tp1"]), strict=True):
        assert (out - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_given_noise(backend, shape, layout, dtype):
    x0, n_t, n_next, t, schedule = inputs(shape, device_of(backend), dtype, layout)
    outs = diffuse_pair(x0, t, schedule, noise=(n_t, n_next), backend=backend)
    composed = plain(x0, t, schedule, n_t, n_next)
    exact = plain(x0.double(), t, schedule, n_t.double(), n_next.double())
    for name, *three in zip(("x_t", "x_next"), outs, composed, exact, strict=True):
        assert_error_rule(*three, name)
        assert x0.numel() == 0 or three[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_made_inside(backend, shape, layout):
    x0, _, _, t, schedule = inputs(shape, device_of(backend), layout=layout)
    seeds = torch.arange(shape[0], device=x0.device) + 2**35
    outs = diffuse_pair(x0, t, schedule, seeds, step=9, backend=backend)
    exact = diffuse_pair(x0.double(), t, schedule, seeds, step=9)
    noises = [
        seeded_normal(shape, seeds, stream, step=9, dtype=torch.float64)
        for stream in (STREAM_DIFFUSE_T, STREAM_DIFFUSE_NEXT)
    ]
    for out, want, again in zip(outs, exact, plain(x0.double(), t, schedule, *noises), strict=True):
        assert (out - want).abs().max() < 2e-6
        torch.testing.assert_close(want, again)
    # Triton's compiler chooses which product of a sum is fused, for each layout.
    apart = 1e-6 if backend == "triton" else 0.0
    for other in LAYOUTS:
        same = x0.contiguous(memory_format=other)
        for out, again in zip(
            outs, diffuse_pair(same, t, schedule, seeds, step=9, backend=backend), strict=True
        ):
            torch.testing.assert_close(out, again, rtol=0, atol=apart)
    alone = diffuse_pair(x0[-1:], t[-1:], schedule, seeds[-1:], step=9, backend=backend)
    for out, one in zip(outs, alone, strict=True):
        assert torch.equal(one, out[-1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_mixed_layouts(backend):
    device = device_of(backend)
    x0 = torch.randn(4, 6, 8, 10, device=device)[:, ::2, 1:, ::2]
    n_t, n_next = (
        torch.randn(4, 3, 7, 5, device=device).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    schedule, t = Schedule(4, device), torch.arange(8, device=device)[::2] % 4
    outs = diffuse_pair(x0, t, schedule, noise=(n_t, n_next), backend=backend)
    exact = plain(x0.double(), t, schedule, n_t.double(), n_next.double())
    for out, composed, want in zip(outs, plain(x0, t, schedule, n_t, n_next), exact, strict=True):
        assert_error_rule(out, composed, want)


def test_marginals():
    """Mean and variance of x_t and x_{t+1} are the tables'; the posterior leads back to x_t's."""
    count, schedule = 4, Schedule(4)
    x0 = torch.full((count, 1, 500, 500), 0.7)
    t, seeds = torch.arange(count), torch.arange(count)
    x_t, x_next = diffuse_pair(x0, t, schedule, seeds)
    again = posterior_sample(x0, x_next, t, schedule, seeds)
    size = x0[0].numel()
    for n in range(count):
        for x, at in ((x_t[n], n), (x_next[n], n + 1), (again[n], n)):
            deviation = schedule.sigmas_cum[at].item()
            mean = 0.7 * schedule.a_s_cum[at].item()
            assert abs(x.mean().item() - mean) < 5 * deviation / size**0.5 + 1e-6
            assert abs(x.std().item() - deviation) < 5 * deviation / (2 * size) ** 0.5 + 2e-4
    # x_t and the step's own noise are independent, so their deviations add up.
    for n in range(1, count):
        step_noise = x_next[n] - schedule.a_s[n + 1] * x_t[n]
        correlation = torch.corrcoef(torch.stack((x_t[n].flatten(), step_noise.flatten())))[0, 1]
        assert correlation.abs() < 5 / size**0.5


def test_without_seeds_the_default_generator_decides():
    x0, _, _, t, schedule = inputs((4, 3, 8, 8), "cpu")
    torch.manual_seed(3)
    first, second = (diffuse_pair(x0, t, schedule)[1] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, diffuse_pair(x0, t, schedule)[1])
    assert not torch.equal(first, second)


def test_t_outside_the_schedule_in_the_unchecked_forms():
    """What a GPU computes: the same kernels, called below the check."""
    x0, n_t, n_next, _, s = inputs((4, 3, 8, 8), "cpu")
    t = torch.tensor([0, 4, -1, 3])
    outs = list(module.diffuse_pair_reference(x0, t, s, torch.arange(4)))
    tables = s.a_s, s.sigmas, s.a_s_cum, s.sigmas_cum
    if "triton" in BACKENDS and device_of("triton") == "cpu":
        from lddgan_kernels.triton import diffuse_pair as kernel

        outs.extend(kernel.forward(x0, t, *tables, None, n_t, n_next, 0, 0, 0))
    if EMULATED_CUDA:
        op = torch.ops.lddgan_emulated.diffuse_pair
        outs.extend(op(x0, t, *tables, t, None, None, 0, 1, 0))
    for out in outs:
        assert out.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
        assert out[[0, 3]].isfinite().all()


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_registration(device):
    x0, n_t, n_next, t, s = inputs((4, 3, 4, 6), device)
    tables = s.a_s, s.sigmas, s.a_s_cum, s.sigmas_cum
    op, seeds = torch.ops.lddgan.diffuse_pair.default, torch.arange(4, device=x0.device)
    torch.library.opcheck(op, (x0, t, *tables, seeds, None, None, 3, 4, 5))
    last = [x.to(memory_format=torch.channels_last) for x in (x0, n_t, n_next)]
    torch.library.opcheck(op, (last[0], t, *tables, None, *last[1:], 3, 4, 0))


def test_compiles_as_one_graph():
    x0, _, _, t, schedule = inputs((4, 3, 8, 8), "cpu")

    def fn(x0, seeds):
        return diffuse_pair(x0, t, schedule, seeds)

    seeds = torch.arange(4)
    for out, want in zip(torch.compile(fn, fullgraph=True)(x0, seeds), fn(x0, seeds), strict=True):
        assert torch.equal(out, want)
    torch.compile(fn, fullgraph=True)(x0, None)


def test_bad_input():
    x0, n_t, n_next, t, schedule = inputs((4, 3, 8, 8), "cpu")
    seeds = torch.arange(4)

    def check(message, error=ValueError, **changes):
        arguments = {"x0": x0, "t": t, "schedule": schedule, "seeds": seeds}
        with pytest.raises(error, match=f"diffuse_pair: {message}"):
            diffuse_pair(**(arguments | changes))

    check(r"x0 must be a 4-D tensor .* got shape \(4, 3\)", x0=x0[:, :, 0, 0])
    check("x0 must be float32, bfloat16, float16 or float64", x0=x0.int())
    check(r"t must be of shape \(4,\), got \(3,\)", t=t[:3])
    for backend in ("reference", "cpu"):
        check(r"t must be in 0\.\.3, got 4", t=t + 1, backend=backend)
        check(r"t must be in 0\.\.3, got -1", t=t - 1, backend=backend)
    check("schedule must be on cpu like x0, got meta", schedule=Schedule(4, "meta"))
    check("give seeds or noise, not both", noise=(n_t, n_next))
    check("noise must be two tensors", seeds=None, noise=n_t)
    check(r"noise must be of shape \(4, 3, 8, 8\)", seeds=None, noise=(n_t, n_next[:1]))
    check("x0 must need no gradient", RuntimeError, x0=x0.clone().requires_grad_())
    check("backend 'cuda' unavailable", RuntimeError, backend="cuda")
    with torch.no_grad():
        assert not diffuse_pair(x0.clone().requires_grad_(), t, schedule)[0].requires_grad
