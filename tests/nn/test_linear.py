"""Linear layers of tokens: packed for inference, against float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.nn import Linear, PackedLinear, TokenConv
from lddgan_kernels.nn.linear import linear
from lddgan_kernels.ops import packed_conv2d
from lddgan_kernels.testing import assert_error_rule

BFLOAT16, WHY = multiplies_bfloat16(torch.device("cpu"))
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not BFLOAT16, reason=WHY)),
]
LAYERS = {"packed": PackedLinear, "ddpm": Linear, "convolution": TokenConv}


def product(layer, x, x2=None):
    x = x if x2 is None else torch.cat([x, x2], dim=-1)
    return F.linear(x, layer.weight.flatten(1), layer.bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 17), (2, 16), (1, 1), (3, 400), (0, 4)])
@pytest.mark.parametrize("kind", LAYERS)
def test_products_of_tokens(kind, shape, dtype, training):
    torch.manual_seed(0)
    layer = LAYERS[kind](48, 96).to(dtype).train(training)
    x = torch.randn(*shape, 48).to(dtype)
    with torch.no_grad():
        out = layer(x)
        exact = product(copy.deepcopy(layer).double(), x.double())
        assert out.is_contiguous()
        if x.numel():
            assert_error_rule(out, product(layer, x), exact)
        else:
            assert out.shape == (*shape, 96)


@pytest.mark.parametrize("training", [False, True])
def test_two_sources_count_as_one(training):
    torch.manual_seed(0)
    layer = PackedLinear(32 + 48, 64).train(training)
    x, x2 = torch.randn(2, 9, 32), torch.randn(2, 9, 48)
    with torch.no_grad():
        exact = product(copy.deepcopy(layer).double(), x.double(), x2.double())
        assert_error_rule(layer(x, x2), product(layer, x, x2), exact)


def test_inference_packs_and_sees_a_changed_weight(monkeypatch):
    shapes = []

    def counted(x, *others, **options):
        shapes.append(tuple(x.shape))
        return packed_conv2d(x, *others, **options)

    monkeypatch.setattr("lddgan_kernels.nn._packed_conv.packed_conv2d", counted)
    layer = PackedLinear(32, 32).eval()
    x = torch.randn(1, 5, 32)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2.0)
        after = layer(x) - layer.bias
        torch.testing.assert_close(after, 2 * (before - layer.bias))
    assert shapes == [(1, 32, 5, 1)] * 2


def test_what_is_not_packed_is_pytorchs():
    layer = PackedLinear(32, 32)
    x = torch.randn(2, 5, 32, requires_grad=True)
    assert torch.equal(layer.eval()(x), F.linear(x, layer.weight, layer.bias))
    rows = x.detach()[:, 0]
    with torch.no_grad():
        assert torch.equal(layer(rows), F.linear(rows, layer.weight, layer.bias))
        assert torch.equal(linear(rows, layer.weight, None, None), F.linear(rows, layer.weight))
