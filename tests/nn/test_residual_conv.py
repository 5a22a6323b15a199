"""The sum of a residual block: every way it runs, against the plain composition in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels import use_backend
from lddgan_kernels.nn import FeatureMap, ResidualConv, Shortcut
from lddgan_kernels.testing import assert_error_rule

CL = torch.channels_last
SQRT_HALF = 0.5**0.5


def build(c_in, c_out, width=32, factor=SQRT_HALF, convolution=True):
    torch.manual_seed(0)
    conv = ResidualConv(width, c_out, factor=factor)
    return conv, Shortcut(c_in, c_out) if convolution else None


def composed(conv, shortcut, h, x, x2=None, projected=False):
    """The sum, one PyTorch function after the other."""
    if shortcut is not None and projected:
        x = x + shortcut.bias[:, None, None]
    elif shortcut is not None:
        x = x if x2 is None else torch.cat([x, x2], dim=1)
        x = F.conv2d(x, shortcut.weight, shortcut.bias)
    return (x + F.conv2d(h, conv.weight, conv.bias, padding=1)) * conv.factor


def check(conv, shortcut, inputs, training, dtype, layout, **options):
    modules = torch.nn.ModuleList([m for m in (conv, shortcut) if m is not None])
    modules.to(dtype).to(memory_format=layout).train(training)
    inputs = [x.to(dtype).contiguous(memory_format=layout) for x in inputs]
    double = copy.deepcopy(modules).double()
    exact_parts = double[0], double[1] if shortcut is not None else None
    exact = composed(*exact_parts, *(x.double() for x in inputs), **options)
    plain = composed(conv, shortcut, *inputs, **options)
    with torch.set_grad_enabled(training):
        for _ in range(2):
            out = conv(*inputs, shortcut=shortcut, **options)
            assert_error_rule(out.x, plain, exact)
        assert_error_rule(conv.reference(*inputs, shortcut=shortcut, **options), plain, exact)


SOURCES = {"one": (24,), "two": (24, 16), "wide": (32, 32)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize("factor", [1.0, SQRT_HALF])
@pytest.mark.parametrize("sources", SOURCES)
def test_with_a_shortcut(sources, factor, layout, dtype, training):
    widths = SOURCES[sources]
    inputs = [torch.randn(2, c, 12, 12) for c in (32, *widths)]
    conv, shortcut = build(sum(widths), 32, factor=factor)
    check(conv, shortcut, inputs, training, dtype, layout)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, SQRT_HALF])
@pytest.mark.parametrize("projected", [False, True])
def test_of_what_is_added_as_it_is(projected, factor, dtype, training):
    conv, shortcut = build(20, 32, factor=factor, convolution=projected)
    inputs = [torch.randn(2, 32, 12, 12) for _ in range(2)]
    check(conv, shortcut, inputs, training, dtype, CL, projected=projected)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("convolution", [False, True])
@torch.no_grad()
def test_a_bias_that_the_input_lacks_is_added(convolution, training, backend):
    conv, shortcut = build(32, 32, factor=1.0, convolution=convolution)
    conv.train(training)
    h, x = (torch.randn(2, 32, 8, 8).to(memory_format=CL) for _ in range(2))
    bias = torch.randn(32)
    expected = composed(conv, shortcut, h, x + bias[:, None, None])
    with use_backend(backend):
        out = conv(h, FeatureMap(x, bias=bias), shortcut=shortcut).x
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_output_that_a_hook_keeps_is_not_written_to():
    conv, shortcut = build(32, 32)
    torch.nn.ModuleList([conv, shortcut]).eval().to(memory_format=CL)
    h, x = (torch.randn(2, 32, 8, 8).to(memory_format=CL) for _ in range(2))
    expected = conv(h, x, shortcut=shortcut).x
    kept = []
    shortcut.register_forward_hook(lambda _, __, out: kept.append((out, out.clone())))
    assert torch.equal(conv(h, x, shortcut=shortcut).x, expected)
    assert torch.equal(*kept[0])


def test_strided():
    torch.manual_seed(0)
    conv = ResidualConv(3, 8, stride=2, factor=0.5)
    h, x = torch.randn(2, 3, 9, 9), torch.randn(2, 8, 4, 4)
    expected = (x + F.conv2d(h, conv.weight, conv.bias, stride=2)) * 0.5
    torch.testing.assert_close(conv(h, x).x, expected)
    torch.testing.assert_close(conv.reference(h, x), expected)
