import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels.ops import minibatch_stddev
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import backends_of, device_of
from tests.ops.test_bias_act import gradients, penalty_gradients

module = sys.modules["lddgan_kernels.ops.minibatch_stddev"]
BACKENDS = backends_of(module)
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# batch, group and the expected number of members
GROUPS = ((8, 4, 4), (6, 4, 3), (5, 4, 1), (2, 4, 2), (1, 4, 1), (12, 6, 6), (7, 8, 7))


def plain(x, members):
    _, c, h, w = x.shape
    y = x.reshape(members, -1, 1, c, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean([2, 3, 4], keepdim=True).squeeze(2)
    return torch.cat([x, y.repeat(members, 1, h, w)], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("n", "group", "members"), GROUPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradient(backend, n, group, members, layout, dtype):
    device = device_of(backend)
    x = torch.randn(n, 19, 4, 5, device=device, dtype=dtype).to(memory_format=layout)
    g = torch.randn(n, 20, 4, 5, device=device, dtype=dtype)
    out = minibatch_stddev(x, group, backend=backend)
    assert out.is_contiguous(memory_format=layout)
    assert torch.equal(out[:, :-1], x)
    exact = plain(x.double(), members)
    assert_error_rule(out[:, -1], plain(x, members)[:, -1], exact[:, -1])
    ours = gradients(lambda y: minibatch_stddev(y, group, backend=backend), (x,), g)
    theirs = gradients(lambda y: plain(y, members), (x,), g)
    exact = gradients(lambda y: plain(y, members), (x.double(),), g.double())
    assert_error_rule(ours[0], theirs[0], exact[0], "grad_x")


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_order(backend):
    x = torch.randn(8, 3, 4, 4, device=device_of(backend))
    ours = penalty_gradients(lambda y: minibatch_stddev(y, backend=backend), (x,))
    theirs = penalty_gradients(lambda y: plain(y, 4), (x,))
    exact = penalty_gradients(lambda y: plain(y, 4), (x.double(),))
    assert_error_rule(ours[0], theirs[0], exact[0])


def test_gradients_of_the_reference():
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(minibatch_stddev, (x,))
    assert gradgradcheck(minibatch_stddev, (x,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_zero_empty_and_views(backend):
    device = device_of(backend)
    far = 10000 + 0.1 * torch.randn(8, 16, 4, 4, device=device)
    out = minibatch_stddev(far, backend=backend)[:, -1]
    assert_error_rule(out, plain(far, 4)[:, -1], plain(far.double(), 4)[:, -1])
    g = torch.zeros(8, 17, 4, 4, device=device)
    g[:, -1] = 1
    ours = gradients(lambda y: minibatch_stddev(y, backend=backend), (far,), g)
    theirs = gradients(lambda y: plain(y, 4), (far,), g)
    exact = gradients(lambda y: plain(y, 4), (far.double(),), g.double())
    assert_error_rule(ours[0], theirs[0], exact[0], "grad_x")
    assert minibatch_stddev(far[:0], backend=backend).shape == (0, 17, 4, 4)
    view = torch.randn(8, 6, 8, 10, device=device)[:, ::2, 1:, ::2]
    out = minibatch_stddev(view, backend=backend)
    assert_error_rule(out, plain(view, 4), plain(view.double(), 4))


def test_group_of_equals_has_a_finite_gradient():
    x = torch.ones(4, 3, 2, 2, requires_grad=True)
    minibatch_stddev(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("backend", NATIVE)
def test_registration(backend):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, 3, 4, 5, device=device_of(backend)).to(memory_format=layout)
        out = minibatch_stddev(x)
        torch.library.opcheck(torch.ops.lddgan.minibatch_stddev.default, (x, 4))
        torch.library.opcheck(torch.ops.lddgan.minibatch_stddev_backward.default, (out, x, 4))


def test_compiles_as_one_graph():
    x = torch.randn(4, 3, 4, 5, requires_grad=True)
    out, expected = torch.compile(minibatch_stddev, fullgraph=True)(x), minibatch_stddev(x)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.square().sum(), x) for y in (out, expected)]
    torch.testing.assert_close(*grads)


def test_bad_input():
    with pytest.raises(ValueError, match=r"minibatch_stddev: x must be a 4-D tensor .*got shape"):
        minibatch_stddev(torch.randn(4, 3))
    with pytest.raises(ValueError, match="minibatch_stddev: group must be a positive int, got 0"):
        minibatch_stddev(torch.randn(4, 3, 2, 2), 0)
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        minibatch_stddev(torch.randn(4, 3, 2, 2), backend="cuda")
