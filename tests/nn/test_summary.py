import pytest
import torch
from torch import nn

from lddgan_kernels.models import Autoencoder, AutoencoderConfig, Generator, GeneratorConfig
from lddgan_kernels.nn.summary import summarize


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.out = nn.Linear(4, 5)
        self.unused = nn.Linear(7, 7)

    def forward(self, x):
        h = self.up(self.conv(x)).flatten(2).transpose(1, 2)[:, None]
        return self.out(nn.functional.scaled_dot_product_attention(h, h, h))


def test_products_are_counted_by_hand():
    found = summarize(Small, [(1, 3, 4, 6)])
    rows = {row.name: row for row in found.rows}
    tokens = 8 * 12
    assert rows["conv"].macs == 4 * 6 * 8 * 3 * 9
    assert rows["up"].macs == 4 * 6 * 8 * 2 * 4
    assert rows["out"].macs == tokens * 4 * 5
    assert rows[""].macs == 2 * tokens * tokens * 4
    assert rows["conv"].output == (8, 4, 6)
    assert found.macs == sum(row.macs for row in found.rows)
    assert found.parameters == sum(p.numel() for p in Small().parameters())


def test_memory_of_a_chain():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return ((x * self.weight).exp() * 2.0).relu()

    found = summarize(Chain, [(1, 1000)])
    assert found.kept_bytes == 3 * 4000  # x, and the outputs of exp and relu
    assert found.peak_bytes == 3 * 4000  # x, and what a step reads and writes


@pytest.mark.parametrize(
    ("channels", "resolution", "multipliers", "attention", "millions", "giga"),
    [
        (4, 16, (1, 2, 2), (), 33.3, 1.67),
        (3, 64, (1, 2, 2, 2), (16,), 48.4, 27.3),
        (4, 32, (1, 2, 2, 2), (16,), 48.4, 7.05),
    ],
)
def test_generators_of_the_paper(channels, resolution, multipliers, attention, millions, giga):
    config = GeneratorConfig(
        channels, resolution, channel_multipliers=multipliers, attention_resolutions=attention
    )
    found = summarize(
        lambda: Generator(config),
        [(1, channels, resolution, resolution), (1,), (1, config.z_dim)],
    )
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert 0.98 * giga < found.macs / 1e9 < giga


def test_half_of_an_autoencoder_counts_its_own_parameters():
    config = AutoencoderConfig(resolution=16, base_channels=32, codebook_size=64)
    model = Autoencoder(config)
    halves = [
        summarize(lambda: Autoencoder(config), [shape], method)
        for method, shape in (("encode", (1, 3, 16, 16)), ("decode", (1, 4, 8, 8)))
    ]
    assert sum(half.parameters for half in halves) == sum(p.numel() for p in model.parameters())
