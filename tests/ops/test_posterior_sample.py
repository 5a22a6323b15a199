import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels.diffusion import STREAM_POSTERIOR, Schedule
from lddgan_kernels.ops import posterior_sample, seeded_normal
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import EMULATED_CUDA, NATIVE_DEVICES, backends_of, device_of, shared_path

module = sys.modules["lddgan_kernels.ops.posterior_sample"]
BACKENDS = backends_of(module)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = ((5, 4, 8, 8), (3, 3, 5, 7), (2, 3, 40, 44), (4, 1, 1, 1), (2, 7, 6, 2), (0, 4, 4, 4))


def plain(x0, x_next, t, schedule, noise):
    def at(table):
        return table[t][:, None, None, None].to(x0.dtype)

    mean = at(schedule.posterior_mean_coef1) * x0 + at(schedule.posterior_mean_coef2) * x_next
    deviation = torch.exp(0.5 * at(schedule.posterior_log_variance_clipped))
    return mean + (t != 0).to(x0.dtype)[:, None, None, None] * deviation * noise


def inputs(shape, device, dtype=torch.float32, layout=torch.contiguous_format, count=3):
    """x0, x_next, noise (and a gradient); t with every step; a schedule of 4 steps."""
    tensors = [
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout)
        for _ in range(count)
    ]
    return *tensors, torch.arange(shape[0], device=device) % 4, Schedule(4, device)


@pytest.mark.parametrize("num_steps", [2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_vectors(backend, num_steps):
    load_file = pytest.importorskip("safetensors.torch").load_file
    path = shared_path(f"golden/diffusion_T{num_steps}.safetensors")
    golden = {k: v.to(device_of(backend)) for k, v in load_file(path).items()}
    schedule = Schedule(num_steps, device_of(backend))
    x0, x_next, t = golden["x_0"], golden["x_t_in"], golden["t"]
    noise = golden["noise_posterior"]
    out = posterior_sample(x0, x_next, t, schedule, noise=noise, backend=backend)
    assert (out - golden["x_prev"]).abs().max() < 1e-5 * golden["x_prev"].abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_given_noise_and_gradients(backend, shape, layout, dtype):
    x0, x_next, noise, grad, t, schedule = inputs(shape, device_of(backend), dtype, layout, 4)
    x0.requires_grad_()
    x_next.requires_grad_()
    out = posterior_sample(x0, x_next, t, schedule, noise=noise, backend=backend)
    assert out.dtype == dtype
    assert out.numel() == 0 or out.is_contiguous(memory_format=layout)
    arguments = x0, x_next, t, schedule, noise
    doubles = [a.detach().double() if a is not t and a is not schedule else a for a in arguments]
    for tensor in doubles[:2]:
        tensor.requires_grad_()
    composed, exact = plain(*arguments), plain(*doubles)
    assert_error_rule(out, composed, exact)
    grads = torch.autograd.grad(out, (x0, x_next), grad)
    plain_grads = torch.autograd.grad(composed, (x0, x_next), grad)
    exact_grads = torch.autograd.grad(exact, doubles[:2], grad.double())
    for name, *three in zip(
        ("grad_x0", "grad_x_next"), grads, plain_grads, exact_grads, strict=True
    ):
        assert_error_rule(*three, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_made_inside(backend, shape, layout):
    x0, x_next, _, t, schedule = inputs(shape, device_of(backend), layout=layout)
    seeds = torch.arange(shape[0], device=x0.device) - 2**40
    out = posterior_sample(x0, x_next, t, schedule, seeds, step=7, backend=backend)
    doubles = x0.double(), x_next.double()
    exact = posterior_sample(*doubles, t, schedule, seeds, step=7)
    noise = seeded_normal(shape, seeds, STREAM_POSTERIOR, step=7, dtype=torch.float64)
    torch.testing.assert_close(exact, plain(*doubles, t, schedule, noise))
    assert (out - exact).abs().max() < 2e-6
    # In any layout and batch the same bits.
    for other in LAYOUTS:
        again = posterior_sample(
            x0.contiguous(memory_format=other), x_next, t, schedule, seeds, step=7, backend=backend
        )
        assert torch.equal(again, out)
    alone = posterior_sample(
        x0[-1:], x_next[-1:], t[-1:], schedule, seeds[-1:], step=7, backend=backend
    )
    assert torch.equal(alone, out[-1:])
    # The noise is a constant to the gradient, and absent at t = 0.
    t0 = torch.zeros_like(t)
    torch.testing.assert_close(
        posterior_sample(x0, x_next, t0, schedule, seeds, backend=backend), x0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_mixed_layouts(backend):
    device = device_of(backend)
    x0 = torch.randn(4, 6, 8, 10, device=device)[:, ::2, 1:, ::2].requires_grad_()
    x_next, noise = (
        torch.randn(4, 3, 7, 5, device=device).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    schedule, t = Schedule(4, device), torch.arange(8, device=device)[::2] % 4
    arguments = x0, x_next, t, schedule, noise
    out = posterior_sample(x0, x_next, t, schedule, noise=noise, backend=backend)
    exact = plain(x0.double(), x_next.double(), t, schedule, noise.double())
    assert_error_rule(out, plain(*arguments), exact)
    for layout in LAYOUTS:
        grad = torch.randn(4, 3, 7, 5, device=device).to(memory_format=layout)
        (ours,) = torch.autograd.grad(out, x0, grad, retain_graph=True)
        (exact_grad,) = torch.autograd.grad(exact, x0, grad.double(), retain_graph=True)
        assert_error_rule(ours, exact_grad.float(), exact_grad.double(), "grad_x0")
    seeds = torch.arange(8, device=device)[::2]
    ours = posterior_sample(x0, x_next, t, schedule, seeds, backend=backend)
    exact = posterior_sample(x0.double(), x_next.double(), t, schedule, seeds)
    assert (ours - exact).abs().max() < 2e-6


def test_gradients_of_the_reference():
    x0, x_next, noise, t, schedule = inputs((5, 2, 3, 3), "cpu", torch.float64)

    def fn(x0, x_next):
        return posterior_sample(x0, x_next, t, schedule, noise=noise)

    for tensor in (x0, x_next):
        tensor.requires_grad_()
    assert gradcheck(fn, (x0, x_next))
    assert gradgradcheck(fn, (x0, x_next))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gradients(backend):
    x0, x_next, noise, grad, t, schedule = inputs((5, 2, 3, 3), device_of(backend), count=4)

    def twice(*wrt, backend):
        x0, x_next, grad = (w.detach().clone().requires_grad_() for w in wrt)
        out = posterior_sample(
            x0.sin(), x_next**2, t, schedule, noise=noise.to(x0.dtype), backend=backend
        )
        grads = torch.autograd.grad(out, (x0, x_next), grad, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in grads), (x0, x_next, grad))

    exact = twice(x0.double(), x_next.double(), grad.double(), backend="reference")
    for ours, want in zip(twice(x0, x_next, grad, backend=backend), exact, strict=True):
        torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-5)


def test_without_seeds_the_default_generator_decides():
    x0, x_next, _, t, schedule = inputs((4, 3, 8, 8), "cpu")
    torch.manual_seed(3)
    first, second = (posterior_sample(x0, x_next, t, schedule) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, posterior_sample(x0, x_next, t, schedule))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_t_outside_the_schedule(backend):
    """An error on the CPU, samples of NaN where the values of t are not looked at."""
    x0, x_next, _, _, schedule = inputs((4, 3, 8, 8), device_of(backend))
    t, seeds = torch.tensor([0, 4, -1, 3], device=x0.device), torch.arange(4, device=x0.device)
    if x0.is_cuda:
        out = posterior_sample(x0, x_next, t, schedule, seeds, backend=backend)
        assert out.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    else:
        for wrong in (t, -t - 1):
            with pytest.raises(ValueError, match=r"t must be in 0\.\.3, got (4|-1|-5)"):
                posterior_sample(x0, x_next, wrong, schedule, seeds, backend=backend)


def test_t_outside_the_schedule_in_the_unchecked_forms():
    """What a GPU computes: the same kernels, called below the check."""
    x0, x_next, noise, _, schedule = inputs((4, 3, 8, 8), "cpu")
    t = torch.tensor([0, 4, -1, 3])
    outs = [module.posterior_sample_reference(x0, x_next, t, schedule, torch.arange(4))]
    tables = schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
    if "triton" in BACKENDS and device_of("triton") == "cpu":
        from lddgan_kernels.triton import posterior_sample as kernel

        log_variance = schedule.posterior_log_variance_clipped
        outs.append(kernel.forward(x0, x_next, t, *tables, log_variance, None, noise, 0, 0))
        outs.extend(kernel.backward(x0, t, *tables))
    if EMULATED_CUDA:
        ops, log_variance = torch.ops.lddgan_emulated, schedule.posterior_log_variance_clipped
        outs.append(ops.posterior_sample(x0, x_next, t, *tables, log_variance, t, None, 0, 0))
        outs.extend(ops.posterior_sample_backward(x0, t, *tables))
    for out in outs:
        assert out.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
        assert out[[0, 3]].isfinite().all()


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_registration(device):
    x0, x_next, noise, t, schedule = inputs((4, 3, 4, 6), device)
    tables = (
        schedule.posterior_mean_coef1,
        schedule.posterior_mean_coef2,
        schedule.posterior_log_variance_clipped,
    )
    op, seeds = torch.ops.lddgan.posterior_sample.default, torch.arange(4, device=x0.device)
    torch.library.opcheck(op, (x0, x_next, t, *tables, seeds, None, 2, 5))
    last = [x.to(memory_format=torch.channels_last) for x in (x0, x_next, noise)]
    torch.library.opcheck(op, (*last[:2], t, *tables, None, last[2], 2, 0))
    backward = torch.ops.lddgan.posterior_sample_backward.default
    torch.library.opcheck(backward, (last[0], t, *tables[:2]))


def test_compiles_as_one_graph():
    x0, x_next, _, t, schedule = inputs((4, 3, 8, 8), "cpu")
    seeds = torch.arange(4)

    def fn(x0, x_next):
        return posterior_sample(x0, x_next, t, schedule, seeds, step=2)

    x0.requires_grad_()
    out = torch.compile(fn, fullgraph=True)(x0, x_next)
    torch.testing.assert_close(out, fn(x0, x_next))
    (grad,) = torch.autograd.grad(out.sum(), x0)
    torch.testing.assert_close(grad, torch.autograd.grad(fn(x0, x_next).sum(), x0)[0])
    torch.compile(lambda: posterior_sample(x0, x_next, t, schedule), fullgraph=True)()


def test_bad_input():
    x0, x_next, noise, t, schedule = inputs((4, 3, 8, 8), "cpu")
    seeds = torch.arange(4)

    def check(message, error=ValueError, **changes):
        arguments = {"x0": x0, "x_next": x_next, "t": t, "schedule": schedule, "seeds": seeds}
        with pytest.raises(error, match=f"posterior_sample: {message}"):
            posterior_sample(**(arguments | changes))

    check(r"x0 must be a 4-D tensor .* got shape \(4, 3\)", x0=x0[:, :, 0, 0])
    check("x_next must be torch.float32 like x0, got torch.float64", x_next=x_next.double())
    check(r"x_next must be of shape \(4, 3, 8, 8\), got \(2, 3, 8, 8\)", x_next=x_next[:2])
    check("x_next must be a torch.Tensor, got int", TypeError, x_next=1)
    check("t must be int64, got torch.int32", t=t.int())
    check(r"t must be of shape \(4,\), got \(3,\)", t=t[:3])
    check("t must be a torch.Tensor, got int", TypeError, t=2)
    for backend in ("reference", "cpu"):
        check(r"t must be in 0\.\.3, got 4", t=t + 1, backend=backend)
    check(r"seeds must be of shape \(4,\), got \(3,\)", seeds=seeds[:3])
    check("seeds must be int64, got torch.float32", seeds=seeds.float())
    check("schedule must be on cpu like x0, got meta", schedule=Schedule(4, "meta"))
    check(r"step must be in 0\.\.2\^32-1, got -1", step=-1)
    check("give seeds or noise, not both", noise=noise)
    check(r"noise must be of shape \(4, 3, 8, 8\)", seeds=None, noise=noise[:1])
    check("noise must be torch.float32 like x0", seeds=None, noise=noise.half())
    check("backend must be one of", backend="metal")
    check("backend 'cuda' unavailable", RuntimeError, backend="cuda")
