"""What holds of a seed's image at any batch size: its noise to the bit, itself within rounding."""

import pytest
import torch

from lddgan_kernels.diffusion import Sampler, Schedule
from lddgan_kernels.models import Generator, GeneratorConfig
from lddgan_kernels.ops import seeded_normal

SEEDS = torch.arange(5) * 7919 - 3


def test_noise_is_the_same_bit_for_bit():
    whole = seeded_normal((5, 4, 8, 8), SEEDS, 0)
    for n in (1, 2, 3):
        for part, wanted in zip(SEEDS.split(n), whole.split(n), strict=True):
            assert seeded_normal((len(part), 4, 8, 8), part, 0).equal(wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_the_same_within_rounding(layout):
    config = GeneratorConfig(
        channels=4, resolution=16, base_channels=32, channel_multipliers=(1, 2), z_dim=8
    )
    generator = Generator(config).eval().to(memory_format=layout)
    with torch.no_grad():
        for p in generator.parameters():  # the last layers begin at almost zero
            p.add_(0.05 * torch.randn_like(p))
    sampler = Sampler(generator, Schedule(4), (4, 16, 16), z_dim=8, memory_format=layout)
    whole = sampler(SEEDS)
    assert whole.abs().max() > 0.1
    for n in (1, 2, 3):
        parts = torch.cat([sampler(part) for part in SEEDS.split(n)])
        assert (parts - whole).abs().max() <= 1e-5
