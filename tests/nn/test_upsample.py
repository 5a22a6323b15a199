import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels.nn import NearestUpsampleConv2d
from lddgan_kernels.testing import assert_error_rule, relative_error, unit_roundoff


def plain(layer, x):
    """Doubling, then the convolution, one after the other."""
    up = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(up, layer.weight, layer.bias, padding=1)


def pieces(layer, x, fn, grad):
    """The output and the gradients of input, weight and bias."""
    inputs = (x, layer.weight, layer.bias)
    out = fn(x)
    return out, *torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 32, 8, 8), (1, 4, 1, 1), (0, 4, 3, 3)])
def test_equals_doubling_then_convolving(shape, layout, dtype):
    layer = NearestUpsampleConv2d(shape[1]).to(dtype).to(memory_format=layout)
    x = torch.randn(shape, dtype=dtype).to(memory_format=layout).requires_grad_()
    grad = torch.randn(shape[0], shape[1], 2 * shape[2], 2 * shape[3], dtype=dtype)
    ours = pieces(layer, x, lambda x: layer(x).x, grad)
    theirs = pieces(layer, x, lambda x: plain(layer, x), grad)
    double = copy.deepcopy(layer).double()
    exact_x = x.detach().double().requires_grad_()
    exact = pieces(double, exact_x, lambda x: plain(double, x), grad.double())
    with torch.no_grad():
        assert torch.equal(layer(x).x, ours[0])
    for ours_, theirs_, exact_ in zip(ours, theirs, exact, strict=True):
        if dtype == torch.bfloat16:  # output rounding rules
            assert_error_rule(ours_, theirs_, exact_)
        else:  # a sum of n products in whatever order errs by about sqrt(n) roundoffs
            terms = 9 * shape[1] + 4 * shape[2] * shape[3] * shape[0]
            assert relative_error(ours_, exact_) <= terms**0.5 * unit_roundoff(dtype)


def test_a_changed_weight_is_seen():
    layer, x = NearestUpsampleConv2d(8), torch.randn(1, 8, 4, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    other = NearestUpsampleConv2d(8)

    def step():
        plain(layer, x).square().sum().backward()
        optimizer.step()

    def swap():
        layer.weight.data = torch.randn(8, 8, 3, 3)

    changes = [
        step,
        swap,
        lambda: layer.load_state_dict(other.state_dict()),
        lambda: torch.nn.init.normal_(layer.weight),
        lambda: layer.register_parameter("weight", torch.nn.Parameter(other.weight * 2)),
    ]
    for change in changes:
        with torch.no_grad():
            before = layer(x).x
        change()
        with torch.no_grad():
            after = layer(x).x
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, plain(layer, x).detach())
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).x, plain(layer, x))
    torch.testing.assert_close(layer.double()(x.double()).x, plain(layer, x.double()))


def test_the_kernel_is_made_once_and_not_saved():
    layer, x = NearestUpsampleConv2d(8), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        layer(x)
        first = layer._kernel._value
        layer(x)
        assert layer._kernel._value is first
    assert set(layer.state_dict()) == {"weight", "bias"}
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x).x, layer(x).x)


def test_compiles_as_one_graph():
    layer, x = NearestUpsampleConv2d(8), torch.randn(1, 8, 4, 4)
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).x, layer(x).x)
    compiled(x).x.sum().backward()
    assert layer.weight.grad is not None
