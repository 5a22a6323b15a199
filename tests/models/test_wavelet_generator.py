"""WDDGAN's generator: shapes, fused against reference, layouts, one step of training."""

import pytest
import torch

from lddgan_kernels.models import GeneratorConfig, WaveletGenerator

TINY = GeneratorConfig(
    12, 16, base_channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(8,),
    z_dim=5, mapping_layers=1, mapping_width=16,
)  # fmt: skip


def make(config=TINY, dtype=torch.float32):
    """A generator whose zero-initialised layers are filled, so that all of it counts."""
    module = WaveletGenerator(config)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1 and p.abs().max() < 1e-3:
                torch.nn.init.normal_(p, std=0.1)
    return module.to(dtype)


def inputs(config=TINY, n=3, dtype=torch.float32):
    x = torch.randn(n, config.channels, config.resolution, config.resolution, dtype=dtype)
    return x, torch.arange(n) % 4, torch.randn(n, config.z_dim, dtype=dtype)


@pytest.mark.parametrize("changes", [
    {},
    {"channel_multipliers": (1, 3, 2)},
    {"patch_size": 2},
    {"input_pyramid": False, "skip_rescale": False},
])  # fmt: skip
def test_configurations_run_and_train(changes):
    config = GeneratorConfig(**{**vars(TINY), **changes})
    module = make(config)
    x, t, z = inputs(config)
    y = module(x, t, z)
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_the_coarsest_level_must_be_even():
    with pytest.raises(ValueError, match="resolution must be a multiple of 4 .*got 6"):
        WaveletGenerator(GeneratorConfig(**{**vars(TINY), "resolution": 6}))
