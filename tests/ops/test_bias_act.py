import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels.ops import bias_act
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import backends_of, device_of

module = sys.modules["lddgan_kernels.ops.bias_act"]
BACKENDS = backends_of(module)
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((2, 3, 5, 7), (2, 40, 4, 4), (1, 33, 1, 1), (0, 4, 4, 4), (5, 19), (9, 72))


def plain(x, bias, activation):
    y = x + (bias[:, None, None] if x.ndim == 4 else bias)
    if activation == "silu":
        return torch.nn.functional.silu(y).to(x.dtype)
    return torch.nn.functional.leaky_relu(y, 0.2).to(x.dtype)


def gradients(fn, tensors, grad):
    leaves = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(fn(*leaves), leaves, grad)


def penalty_gradients(fn, tensors):
    """Gradients of the squared norm of the gradient: what an R1 penalty asks of an op."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    firsts = torch.autograd.grad((fn(*leaves) ** 2).sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradient(backend, layout, shape, dtype, activation):
    if layout == torch.channels_last and len(shape) == 2:
        pytest.skip("channels_last needs four dimensions")
    device = device_of(backend)
    x, g = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    x = (3 * x).to(memory_format=layout)
    bias = torch.randn(shape[1], device=device, dtype=dtype)
    out = bias_act(x, bias, activation, backend=backend)
    assert out.numel() == 0 or out.is_contiguous(memory_format=layout)
    assert_error_rule(out, plain(x, bias, activation), plain(x.double(), bias.double(), activation))
    # The gradient arrives contiguous whatever x's layout is.
    ours = gradients(lambda *a: bias_act(*a, activation, backend=backend), (x, bias), g)
    theirs = gradients(lambda *a: plain(*a, activation), (x, bias), g)
    exact = gradients(lambda *a: plain(*a, activation), (x.double(), bias.double()), g.double())
    for name, *triple in zip(("grad_x", "grad_bias"), ours, theirs, exact, strict=True):
        assert_error_rule(*triple, name)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_order(backend, activation):
    device = device_of(backend)
    x, bias = torch.randn(3, 5, 4, 6, device=device), torch.randn(5, device=device)
    ours = penalty_gradients(lambda *a: bias_act(*a, activation, backend=backend), (x, bias))
    theirs = penalty_gradients(lambda *a: plain(*a, activation), (x, bias))
    exact = penalty_gradients(lambda *a: plain(*a, activation), (x.double(), bias.double()))
    for triple in zip(ours, theirs, exact, strict=True):
        assert_error_rule(*triple)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_gradients_of_the_reference(activation):
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *a: bias_act(*a, activation), (x, bias))
    assert gradgradcheck(lambda *a: bias_act(*a, activation), (x, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_float32_bias_and_extremes(backend):
    device = device_of(backend)
    x = torch.randn(4, 6, 8, 10, device=device)[:, ::2, 1:, ::2].bfloat16()
    x = x.as_strided(x.shape, x.stride())[..., 1:]
    bias = torch.randn(6, device=device)[::2]
    for activation in ("leaky_relu", "silu"):
        out = bias_act(x, bias, activation, backend=backend)
        assert out.dtype == torch.bfloat16
        exact = plain(x.double(), bias.double(), activation)
        assert_error_rule(out, plain(x, bias.bfloat16(), activation), exact)
    far = torch.tensor([[-1e30, -200.0, -0.0, 200.0, 1e30, float("inf")]], device=device)
    zero = torch.zeros(6, device=device)
    torch.testing.assert_close(
        bias_act(far, zero, "silu", backend=backend),
        plain(far, zero, "silu"),
        atol=1e-8,
        rtol=1e-6,
    )
    nan = torch.full((1, 6), float("nan"), device=device)
    for activation in ("leaky_relu", "silu"):
        assert bias_act(nan, zero, activation, backend=backend).isnan().all()


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("backend", NATIVE)
def test_registration(backend, activation):
    x, bias = torch.randn(2, 3, 4, 5), torch.randn(3)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = x.to(device_of(backend), memory_format=layout)
        b = bias.to(device_of(backend))
        silu = activation == "silu"
        torch.library.opcheck(torch.ops.lddgan.bias_act.default, (y, b, silu))
        torch.library.opcheck(torch.ops.lddgan.bias_act_backward.default, (y, y, b, silu))


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_compiles_as_one_graph(activation):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    bias = torch.randn(3, requires_grad=True)
    out = torch.compile(bias_act, fullgraph=True)(x, bias, activation)
    expected = bias_act(x, bias, activation)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.sum(), (x, bias)) for y in (out, expected)]
    torch.testing.assert_close(*grads)


def test_bad_input():
    x, bias = torch.randn(2, 3, 4, 5), torch.randn(3)
    with pytest.raises(ValueError, match=r"bias_act: x must be of shape .* got \(2, 3, 4\)"):
        bias_act(x[..., 0], bias, "silu")
    with pytest.raises(ValueError, match=r"bias_act: bias must be of shape \(3,\), got \(4,\)"):
        bias_act(x, torch.randn(4), "silu")
    with pytest.raises(
        ValueError, match=r"bias_act: bias must be torch.float32 .*got torch.float64"
    ):
        bias_act(x, bias.double(), "silu")
    with pytest.raises(ValueError, match="activation must be 'leaky_relu' or 'silu', got 'relu'"):
        bias_act(x, bias, "relu")
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        bias_act(x, bias, "silu", backend="cuda")
    with pytest.raises(TypeError, match="bias_act: bias must be a torch.Tensor"):
        bias_act(x, 1.0, "silu")


@pytest.mark.parametrize("activation", ["silu", "leaky_relu"])
def test_activations_of_infinities_are_pytorchs(activation):
    x = torch.tensor([[-float("inf"), float("inf"), float("nan"), -3e38, 3e38, -200.0, 200.0]])
    zero = torch.zeros(7)
    for leaf in (x, x.bfloat16()):
        results = []
        for backend in (None, "reference"):
            y = leaf.clone().requires_grad_()
            out = bias_act(y, zero, activation, backend=backend)
            results.append((out.detach(), *torch.autograd.grad(out.sum(), y)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True, atol=1e-30, rtol=0.01)
