"""The transformer generator: sizes, fused against reference, layouts, one step of training."""

import pytest
import torch

from lddgan_kernels.models import (
    VIT_SIZES,
    Autoencoder,
    AutoencoderConfig,
    ViTConfig,
    ViTGenerator,
)

TINY = ViTConfig(
    3, 8, width=16, depth=3, num_heads=2, mlp_width=24, z_dim=5, mapping_layers=1, mapping_width=16
)


def inputs(config=TINY, n=3, dtype=torch.float32):
    x = torch.randn(n, config.channels, config.resolution, config.resolution, dtype=dtype)
    return x, torch.arange(n) % 4, torch.randn(n, config.z_dim, dtype=dtype)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 28.0), ("mid", 43.3), ("large", 56.2)])
def test_sizes_are_the_papers_with_the_decoder(size, millions):
    with torch.device("meta"):
        generator = ViTGenerator(ViTConfig(4, 16, **VIT_SIZES[size]))
        decoder = Autoencoder(
            AutoencoderConfig(3, 32, 4, 128, (1, 2), 2, (16,), True, codebook_size=0, kl=True)
        ).decoder
    count = sum(p.numel() for m in (generator, decoder) for p in m.parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("changes", [{}, {"depth": 1}, {"patch_size": 4}, {"tanh_out": False}])
def test_configurations_run_and_train(changes):
    config = ViTConfig(**{**vars(TINY), **changes})
    module = ViTGenerator(config)
    x, t, z = inputs(config)
    y = module(x, t, z)
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_long_skips_read_what_a_concatenation_would():
    module = ViTGenerator(TINY)
    block = module.blocks[2]
    x, skip = torch.randn(2, 17, 16), torch.randn(2, 17, 16)
    styles = [torch.zeros(2, 16)] * 4
    with torch.no_grad():
        for layer in (block.out, block.mlp1):
            layer.weight.zero_()
        y = block(x, styles, skip)
        wide = torch.cat([x, skip], dim=-1)
        expected = torch.nn.functional.linear(wide, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"depth": 4}, "depth must be odd, got 4"),
    ({"resolution": 9}, "resolution must be a multiple of 2, got 9"),
    ({"width": 17}, "width must be a multiple of 2, got 17"),
])  # fmt: skip
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**{**vars(TINY), **changes})
