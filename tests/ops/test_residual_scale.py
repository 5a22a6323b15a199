import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels.ops import residual_scale
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import NATIVE_DEVICES, backends_of, device_of

module = sys.modules["lddgan_kernels.ops.residual_scale"]
BACKENDS = backends_of(module)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def plain(x, h):
    return (x + h) / 2**0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 64, 16, 16), (0, 4, 4, 4), (3, 1, 1, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradient(backend, shape, layout, dtype):
    device = device_of(backend)
    x, h, g = (
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout) for _ in range(3)
    )
    x.requires_grad_()
    h.requires_grad_()
    out = residual_scale(x, h, backend=backend)
    assert out.numel() == 0 or out.stride() == x.stride()
    exact = plain(x.double(), h.double())
    assert_error_rule(out, plain(x, h), exact)
    grads = torch.autograd.grad(out, (x, h), g)
    for grad in grads:
        assert_error_rule(grad, g / 2**0.5, g.double() / 2**0.5, "gradient")


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_either_layout(backend):
    device = device_of(backend)
    x = torch.randn(4, 6, 8, 10, device=device)[:, ::2, 1:, ::2]
    h = torch.randn(4, 3, 7, 5, device=device).to(memory_format=torch.channels_last)
    assert_error_rule(
        residual_scale(x, h, backend=backend), plain(x, h), plain(x.double(), h.double())
    )


def test_gradients_of_any_order():
    x, h = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(residual_scale, (x, h))
    assert gradgradcheck(residual_scale, (x, h))


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_registration(device):
    x, h = (torch.randn(2, 3, 4, 5, device=device) for _ in range(2))
    torch.library.opcheck(torch.ops.lddgan.residual_scale.default, (x, h))
    torch.library.opcheck(
        torch.ops.lddgan.residual_scale.default,
        tuple(t.to(memory_format=torch.channels_last) for t in (x, h)),
    )


def test_compiles_as_one_graph():
    x, h = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    compiled = torch.compile(residual_scale, fullgraph=True)
    out = compiled(x, h)
    torch.testing.assert_close(out, residual_scale(x, h))
    out.sum().backward()
    assert x.grad is not None


def test_bad_input():
    x = torch.randn(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"residual_scale: h must be of shape .*got \(2, 3\)"):
        residual_scale(x, torch.randn(2, 3))
    with pytest.raises(ValueError, match="residual_scale: h must be torch.float32 like x"):
        residual_scale(x, x.double())
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        residual_scale(x, x, backend="cuda")
    with pytest.raises(ValueError, match="backend must be one of"):
        residual_scale(x, x, backend="metal")
    with pytest.raises(RuntimeError, match="float64 runs on the reference only"):
        residual_scale(x.double(), x.double(), backend="cpu")
