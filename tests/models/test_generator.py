"""NCSN++: sizes, shapes, dtypes and layouts, fused against reference, one step of training."""

import pytest
import torch

from lddgan_kernels.models import Generator, GeneratorConfig

TINY = GeneratorConfig(
    3, 16, base_channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(8,),
    z_dim=5, mapping_layers=1, mapping_width=16,
)  # fmt: skip


def make(config=TINY, dtype=torch.float32):
    """A generator whose zero-initialised layers are filled, so that all of it counts."""
    module = Generator(config)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1 and p.abs().max() < 1e-3:
                torch.nn.init.normal_(p, std=0.1)
    return module.to(dtype)


def inputs(config=TINY, n=3, dtype=torch.float32):
    x = torch.randn(n, config.channels, config.resolution, config.resolution, dtype=dtype)
    return x, torch.arange(n) % 4, torch.randn(n, config.z_dim, dtype=dtype)


@pytest.mark.parametrize(
    ("channels", "resolution", "multipliers", "millions"),
    [(4, 16, (1, 2, 2), 33.3), (3, 64, (1, 2, 2, 2), 48.4), (4, 32, (1, 2, 2, 2), 48.4)],
)
def test_sizes_are_the_published_ones(channels, resolution, multipliers, millions):
    attention = () if resolution == 16 else (16,)
    config = GeneratorConfig(
        channels, resolution, channel_multipliers=multipliers, attention_resolutions=attention
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in Generator(config).parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("changes", [
    {},
    {"patch_size": 2},
    {"input_pyramid": False},
    {"fir": False},
    {"skip_rescale": False},
    {"centered": False, "tanh_out": False},
    {"channel_multipliers": (1,), "num_blocks": 2},
    {"channel_multipliers": (2, 1, 3)},
])  # fmt: skip
def test_configurations_run_and_train(changes):
    config = GeneratorConfig(**{**vars(TINY), **changes})
    module = make(config)
    x, t, z = inputs(config)
    y = module(x, t, z)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    y.square().mean().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_dropout_acts_in_training_only():
    module = make(GeneratorConfig(**{**vars(TINY), "dropout": 0.5}))
    x, t, z = inputs()
    assert (module(x, t, z) - module(x, t, z)).abs().max() > 1e-4
    module.eval()
    assert torch.equal(module(x, t, z), module(x, t, z))


@pytest.mark.parametrize(("changes", "message"), [
    ({"channel_multipliers": ()}, "channel_multipliers must hold one a level"),
    ({"resolution": 15}, "resolution must be a multiple of 2"),
    ({"base_channels": 0}, "base_channels must be at least 1"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"base_channels": 6}, "channels must be a multiple of 32"),
])  # fmt: skip
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        Generator(GeneratorConfig(**{**vars(TINY), **changes}))
