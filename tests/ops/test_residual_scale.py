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


def plain_sum(x, h, h2, bias, factor):
    out = x + h if h2 is None else x + h + h2
    return (out if bias is None else out + bias[:, None, None].to(x.dtype)) * factor


# Whole packs of channels, odd widths and maps, one row longer than a block, 1x1 maps, nothing.
@pytest.mark.parametrize(
    "shape", [(2, 32, 6, 6), (3, 5, 7, 3), (1, 2, 40, 41), (4, 3, 1, 1), (0, 4, 2, 2)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_addends(backend, dtype, layout, shape):
    device = device_of(backend)
    x, h, h2, g = (
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout) for _ in range(4)
    )
    wide = torch.randn(shape[1], device=device)
    for more, bias, factor in (
        (h2, wide, 0.5),
        (None, wide.to(dtype), 1.0),
        (h2, None, 1.0),
        (None, torch.stack([wide, wide], 1)[:, 0], 0.5),
    ):
        given = [None if a is None else a.detach().requires_grad_() for a in (x, h, more, bias)]
        exact = [None if a is None else a.detach().double().requires_grad_() for a in given]
        out = residual_scale(*given[:2], h2=given[2], bias=given[3], factor=factor, backend=backend)
        assert out.numel() == 0 or out.is_contiguous(memory_format=layout)
        theirs, wanted = plain_sum(*given, factor), plain_sum(*exact, factor)
        assert_error_rule(out, theirs, wanted)
        differentiated = [[a for a in side if a is not None] for side in (given, exact)]
        grads = (
            torch.autograd.grad(out, differentiated[0], g),
            torch.autograd.grad(theirs, differentiated[0], g),
            torch.autograd.grad(wanted, differentiated[1], g.double()),
        )
        for a, b, c in zip(*grads, strict=True):
            assert_error_rule(a, b, c, "gradient")


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_order_gradients_of_all_addends(backend):
    x, h, h2 = (torch.randn(2, 3, 4, 5, device=device_of(backend)) for _ in range(3))
    bias, results = torch.randn(3, device=device_of(backend)), []
    for fn in (
        lambda x, h, h2, bias: residual_scale(x, h, h2=h2, bias=bias, factor=0.3, backend=backend),
        lambda *given: plain_sum(*given, 0.3),
    ):
        inputs = [t.detach().requires_grad_() for t in (x, h, h2, bias)]
        grads = torch.autograd.grad(fn(*inputs).sin().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_registration(device):
    x, h = (torch.randn(2, 3, 4, 5, device=device) for _ in range(2))
    torch.library.opcheck(torch.ops.lddgan.residual_scale.default, (x, h))
    torch.library.opcheck(
        torch.ops.lddgan.residual_scale.default,
        tuple(t.to(memory_format=torch.channels_last) for t in (x, h)),
    )
    bias = torch.randn(3, device=device)
    torch.library.opcheck(torch.ops.lddgan.residual_scale.default, (x, h, h, bias, 0.5))


def test_compiles_as_one_graph():
    x, h, h2 = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(3))
    bias = torch.randn(3, requires_grad=True)
    compiled = torch.compile(residual_scale, fullgraph=True)
    for options in ({}, {"h2": h2, "bias": bias, "factor": 1.0}):
        out = compiled(x, h, **options)
        torch.testing.assert_close(out, residual_scale(x, h, **options))
        out.sum().backward()
        assert x.grad is not None
    torch.testing.assert_close(bias.grad, torch.full((3,), 40.0))


def test_bad_input():
    x = torch.randn(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"residual_scale: h must be of shape .*got \(2, 3\)"):
        residual_scale(x, torch.randn(2, 3))
    with pytest.raises(ValueError, match="residual_scale: h must be torch.float32 like x"):
        residual_scale(x, x.double())
    with pytest.raises(ValueError, match="residual_scale: h2 must be of shape"):
        residual_scale(x, x, h2=x[:1])
    with pytest.raises(
        ValueError, match=r"residual_scale: bias must be of shape \(3,\), got \(4,\)"
    ):
        residual_scale(x, x, bias=torch.randn(4))
    with pytest.raises(ValueError, match="residual_scale: bias must be torch.float32 like x"):
        residual_scale(x, x, bias=torch.randn(3).half())
    with pytest.raises(ValueError, match=r"residual_scale: x must be of shape \(N, C, H, W\)"):
        residual_scale(x[0], x[0], bias=torch.randn(3))
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        residual_scale(x, x, backend="cuda")
    with pytest.raises(ValueError, match="backend must be one of"):
        residual_scale(x, x, backend="metal")
    with pytest.raises(RuntimeError, match="float64 runs on the reference only"):
        residual_scale(x.double(), x.double(), backend="cpu")
