"""WDDGAN's generator: shapes, fused against reference, layouts, one step of training."""

import pytest
import torch

from lddgan_kernels import use_backend
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


def test_fused_agrees_with_reference():
    module = make()
    x, t, z = inputs()
    results = []
    for backend in (None, "reference"):
        module.zero_grad()
        xi = x.clone().requires_grad_()
        with use_backend(backend):
            y = module(xi, t, z)
            y.square().mean().backward()
        results.append([y.detach(), xi.grad, *(p.grad for p in module.parameters())])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_float64_gradients_of_the_whole_network():
    config = GeneratorConfig(**{**vars(TINY), "resolution": 4, "z_dim": 2})
    module = make(config, torch.float64)
    x, t, z = inputs(config, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, z: module(x, t, z), (x.requires_grad_(), z.requires_grad_()), fast_mode=True
    )


def test_channels_last_and_bfloat16():
    module = make()
    x, t, z = inputs()
    exact = module(x, t, z)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, t, z)
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    module.to(memory_format=torch.channels_last)
    y = module(x.to(memory_format=torch.channels_last), t, z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)


def test_training_reduces_a_loss():
    module = make()
    x, t, z = inputs()
    target = torch.tanh(torch.randn_like(x))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = (module(x, t, z) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_compiles():
    module = make()
    x, t, z = inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, z), module(x, t, z), rtol=1e-4, atol=1e-6)


def test_the_coarsest_level_must_be_even():
    with pytest.raises(ValueError, match="resolution must be a multiple of 4 .*got 6"):
        WaveletGenerator(GeneratorConfig(**{**vars(TINY), "resolution": 6}))
