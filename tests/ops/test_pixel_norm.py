import sys

import pytest
import torch
from torch.autograd import gradcheck

from lddgan_kernels.ops import pixel_norm
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import backends_of, device_of
from tests.ops.test_bias_act import gradients, penalty_gradients

module = sys.modules["lddgan_kernels.ops.pixel_norm"]
BACKENDS = backends_of(module)
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def plain(z):
    return z / torch.sqrt(torch.mean(z**2, dim=1, keepdim=True) + 1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 25), (3, 2), (100, 256), (0, 25), (3, 100), (2, 1037)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradient(backend, shape, dtype):
    z, g = (torch.randn(shape, device=device_of(backend), dtype=dtype) for _ in range(2))
    assert_error_rule(pixel_norm(z, backend=backend), plain(z), plain(z.double()))
    ours = gradients(lambda y: pixel_norm(y, backend=backend), (z,), g)
    theirs, exact = gradients(plain, (z,), g), gradients(plain, (z.double(),), g.double())
    assert_error_rule(ours[0], theirs[0], exact[0], "grad_z")


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_extremes(backend):
    device = device_of(backend)
    view = torch.randn(8, 50, device=device)[::2, 1::3]
    assert_error_rule(pixel_norm(view, backend=backend), plain(view), plain(view.double()))
    zero = torch.zeros(2, 5, device=device)
    assert torch.equal(pixel_norm(zero, backend=backend), zero)
    # The squares overflow float16 but not the float32 in which they are summed.
    large = torch.full((1, 4), 1000.0, device=device, dtype=torch.float16)
    assert torch.equal(pixel_norm(large, backend=backend), torch.ones_like(large))


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_order(backend):
    z = torch.randn(3, 7, device=device_of(backend))
    ours = penalty_gradients(lambda y: pixel_norm(y, backend=backend)[:, 1:], (z,))
    theirs = penalty_gradients(lambda y: plain(y)[:, 1:], (z,))
    exact = penalty_gradients(lambda y: plain(y)[:, 1:], (z.double(),))
    assert_error_rule(ours[0], theirs[0], exact[0])


@pytest.mark.parametrize("backend", NATIVE)
def test_registration(backend):
    z = torch.randn(3, 7, device=device_of(backend))
    torch.library.opcheck(torch.ops.lddgan.pixel_norm.default, (z,))
    torch.library.opcheck(torch.ops.lddgan.pixel_norm_backward.default, (z, z))


def test_gradient_of_the_reference():
    assert gradcheck(pixel_norm, (torch.randn(3, 5, dtype=torch.float64, requires_grad=True),))


def test_compiles_as_one_graph():
    z = torch.randn(4, 25, requires_grad=True)
    out, expected = torch.compile(pixel_norm, fullgraph=True)(z), pixel_norm(z)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.square().sum() + y[0, 0], z) for y in (out, expected)]
    torch.testing.assert_close(*grads)


def test_bad_input():
    with pytest.raises(ValueError, match=r"pixel_norm: z must be of shape .*got \(2, 3, 4\)"):
        pixel_norm(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match=r"pixel_norm: z must be .* got torch.int64"):
        pixel_norm(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        pixel_norm(torch.randn(2, 3), backend="cuda")
