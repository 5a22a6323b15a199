"""A map is finished by who reads it; on GPU backends the sum leaves partial moments for a norm."""

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels._backend import has_triton
from lddgan_kernels.models import Autoencoder, AutoencoderConfig, Generator, WaveletGenerator
from lddgan_kernels.nn import FeatureMap, feature_map, group_norm
from tests.conftest import HAS_GPU
from tests.models import test_generators

BACKENDS = ["triton"] + ["cuda"] * HAS_GPU
DEVICE = "cuda" if HAS_GPU else "cpu"
AUTOENCODER = AutoencoderConfig(
    resolution=8, base_channels=8, num_blocks=1, attention_resolutions=(4,), codebook_size=0
)


def autoencoder():
    module = Autoencoder(AUTOENCODER)
    x = torch.randn(2, 3, 8, 8)
    return module, lambda: module(x.to(DEVICE)).reconstruction


def generator(kind):
    module = test_generators.make(kind)
    given = test_generators.inputs(module)
    return module, lambda: module(*(t.to(DEVICE) for t in given))


@pytest.fixture
def moments(monkeypatch):
    """(those that sums left, those that norms took), in order."""
    left, taken = [], []

    def leaving(*args, sum_=feature_map.residual_scale_moments, **options):
        out = sum_(*args, **options)
        left.append(out[1])
        return out

    def taking(op):
        def run(x, *args, **options):
            if isinstance(x, tuple):
                taken.append(x[1])
            return op(x, *args, **options)

        return run

    monkeypatch.setattr(feature_map, "residual_scale_moments", leaving)
    for name in ("ada_group_norm", "norm_resample"):
        monkeypatch.setattr(group_norm, name, taking(getattr(group_norm, name)))
    return left, taken


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [Generator, WaveletGenerator, Autoencoder])
def test_all_that_are_left_are_taken(kind, backend, moments):
    module, call = autoencoder() if kind is Autoencoder else generator(kind)
    module.to(DEVICE)
    left, taken = moments
    results = []
    for name in (backend, "reference"):
        module.zero_grad()
        left.clear()
        taken.clear()
        with use_backend(name):
            y = call()
            y.square().mean().backward()
        results.append([y.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
        if name == "reference":
            assert not taken
            continue
        assert len(left) > 3
        assert None not in left
        assert list(map(id, left)) == list(map(id, taken))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-6)


def parts(count, bias=True):
    torch.manual_seed(0)
    return [torch.randn(2, 8, 3, 5) for _ in range(count)], torch.randn(8) if bias else None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_map_is_the_sum_of_its_addends_and_its_bias(count):
    addends, bias = parts(count)
    factor = 1.0 if count == 1 else 0.5
    expected = (sum(addends) + bias[:, None, None]) * factor
    for read in (
        lambda h: h.x,
        lambda h: with_bias(*h.without_bias()),
        lambda h: with_bias(*h.for_norm(4)[:2]),
    ):
        h = FeatureMap(*addends, bias=bias, factor=factor)
        torch.testing.assert_close(read(h), expected)
        torch.testing.assert_close(h.x, expected)  # whoever has read it
    assert torch.equal(torch.utils._pytree.tree_leaves([h])[0], h.x)


def with_bias(x, bias):
    return x if bias is None else x + bias[:, None, None]


def test_the_sum_is_made_once_and_its_addends_go():
    addends, bias = parts(2)
    h = FeatureMap(*addends, bias=bias, factor=0.5)
    first = h.x
    assert h.x is first
    assert h._addends == (first,)


def test_plus_leaves_the_bias_open():
    (x, y), bias = parts(2)
    h = FeatureMap(x, bias=bias).plus(FeatureMap(y), 2.0)
    assert len(h._addends) == 2
    torch.testing.assert_close(h.x, (x + y + bias[:, None, None]) * 2.0)
