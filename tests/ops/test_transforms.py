"""Forward-mode derivatives and torch.func: right by the reference, or an error, never zero."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from lddgan_kernels import ops, use_backend
from lddgan_kernels.models import Generator, GeneratorConfig
from tests.ops.cases import CASES

IDS = [f"{case.op}-{i}" for i, case in enumerate(CASES)]
each = pytest.mark.parametrize("case", CASES, ids=IDS)


def close(ours, exact):
    torch.testing.assert_close(ours.double(), exact, atol=3e-5, rtol=3e-5)


@each
def test_forward_mode(case):
    x = case.inputs()
    tangents = case.inputs()
    wide, wide_tangents = [[t.double() for t in ts] for ts in (x, tangents)]
    # By reverse mode twice over: v -> J'v is linear, and its gradient along v is Ju.
    out, _ = torch.func.vjp(lambda *a: case.call(*a, backend="reference"), *wide)
    zero = torch.zeros_like(out, requires_grad=True)
    pulled = torch.autograd.grad(
        case.call(*[t.requires_grad_() for t in wide], backend="reference"),
        wide,
        zero,
        create_graph=True,
    )
    (exact,) = torch.autograd.grad(pulled, zero, wide_tangents)
    assert exact.abs().max() > 0
    value, tangent = torch.func.jvp(case.call, tuple(x), tuple(tangents))
    close(value, out)
    close(tangent, exact)
    with forward_ad.dual_level(), torch.no_grad():
        duals = [forward_ad.make_dual(*pair) for pair in zip(x, tangents, strict=True)]
        close(forward_ad.unpack_dual(case.call(*duals)).tangent, exact)
    # One input alone, which need not be the first.
    _, last = torch.func.jvp(lambda a: case.call(*x[:-1], a), (x[-1],), (tangents[-1],))
    zeros = [torch.zeros_like(t) for t in tangents[:-1]]
    close(last, torch.func.jvp(case.call, tuple(x), (*zeros, tangents[-1]))[1].double())
    torch.compiler.reset()  # one lambda for all cases
    compiled = torch.compile(
        lambda a, b: torch.func.jvp(case.call, a, b), fullgraph=True, backend="aot_eager"
    )
    close(compiled(tuple(x), tuple(tangents))[1], exact)


@each
def test_a_named_kernel_refuses(case):
    x = case.inputs()
    for backend in ("cpu", "triton", "cuda"):
        if backend not in case.kernels():
            continue
        with pytest.raises(RuntimeError, match=f"backend '{backend}' unavailable"):
            torch.func.jvp(lambda *a: case.call(*a, backend=backend), tuple(x), tuple(x))  # noqa: B023
        with use_backend(backend), pytest.raises(RuntimeError, match="unavailable"):
            torch.func.vmap(case.call)(*[t[None] for t in x])


@each
def test_reverse_mode_vmap_and_jacobians(case):
    x = case.inputs()
    loss = lambda *a: case.call(*a).square().sum()  # noqa: E731
    places = tuple(range(len(x)))
    leaves = [t.detach().requires_grad_() for t in x]
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    for ours, theirs in zip(torch.func.grad(loss, places)(*x), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    stacked = [torch.stack([t, 2 * t, -t]) for t in x]
    ours = torch.vmap(case.call)(*stacked)
    theirs = torch.stack([case.call(*some) for some in zip(*stacked, strict=True)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    if sum(t.numel() for t in x) < 4000:
        forward = torch.func.jacfwd(loss, places)(*x)
        for ours, theirs in zip(forward, gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_nearest_code_is_straight_through_in_both_modes():
    z, codebook = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
    tangent = torch.randn_like(z)
    call = lambda a: ops.nearest_code(a, codebook)[0]  # noqa: E731
    value, along = torch.func.jvp(call, (z,), (tangent,))
    assert torch.equal(value, call(z))
    assert torch.equal(along, tangent)
    assert torch.equal(torch.vmap(call)(z[None])[0], value)
    assert torch.func.jacfwd(lambda a: call(a).sum())(z).eq(1).all()
    assert torch.func.grad(lambda a: call(a).sum())(z).eq(1).all()


@pytest.mark.parametrize("backend", [None, "reference"])
def test_nearest_code_gives_the_codebook_no_gradient(backend):
    z, codebook = torch.randn(2, 3, 4, 4), torch.randn(5, 3, requires_grad=True)
    assert not ops.nearest_code(z, codebook, backend=backend)[0].requires_grad
    quantised = ops.nearest_code(z.requires_grad_(), codebook, backend=backend)[0]
    assert torch.autograd.grad(quantised.sum(), (z, codebook), allow_unused=True)[1] is None


@torch.no_grad()
def test_a_model_in_evaluation_mode():
    """Its packed weights and recorded calls have no tangents either."""
    config = GeneratorConfig(
        channels=4, resolution=8, base_channels=32, channel_multipliers=(1, 2), z_dim=8
    )
    model = Generator(config).eval()
    t, z = torch.tensor([0, 1]), torch.randn(2, 8)
    x, tangent = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for _ in range(3):  # the second call is recorded, the third replays
        model(x, t, z)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fast attention has no forward mode
        _, along = torch.func.jvp(lambda a: model(a, t, z), (x,), (tangent,))
    model.double()
    with use_backend("reference"), sdpa_kernel(SDPBackend.MATH):
        _, exact = torch.func.jvp(
            lambda a: model(a, t, z.double()), (x.double(),), (tangent.double(),)
        )
    assert exact.abs().max() > 0
    torch.testing.assert_close(along.double(), exact, atol=1e-5, rtol=1e-4)
