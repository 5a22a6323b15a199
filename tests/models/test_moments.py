"""On GPU backends a residual sum leaves the moments that the next norm needs."""

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels._backend import has_triton
from lddgan_kernels.models import (
    Autoencoder,
    AutoencoderConfig,
    Generator,
    WaveletGenerator,
    autoencoder_layers,
    blocks,
    feature_map,
    layers,
)
from tests.conftest import HAS_GPU
from tests.models import test_generators

pytestmark = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
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
        def run(*args, moments=None, **options):
            if moments is not None:
                taken.append(moments)
            return op(*args, moments=moments, **options)

        return run

    monkeypatch.setattr(feature_map, "residual_scale_moments", leaving)
    for module in (layers, blocks, autoencoder_layers):
        monkeypatch.setattr(module, "ada_group_norm", taking(module.ada_group_norm))
    monkeypatch.setattr(blocks, "norm_resample", taking(blocks.norm_resample))
    return left, taken


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
