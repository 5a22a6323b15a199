"""What inference keeps of the weights (packed convolutions, the time table) is never stale."""

import copy
import pickle

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels.models import Generator, GeneratorConfig, WaveletGenerator
from lddgan_kernels.testing import assert_error_rule

CL = torch.channels_last


def build(kind=Generator, dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = GeneratorConfig(4, 8, base_channels=32, channel_multipliers=(1, 2), **options)
    generator = kind(config).eval()
    with torch.no_grad():
        for parameter in generator.parameters():  # the last layers of the blocks start at 0
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return generator.to(dtype).to(memory_format=CL)


def inputs(dtype=torch.float32, n=2):
    x = torch.randn(n, 4, 8, 8).to(dtype).to(memory_format=CL)
    return x, torch.arange(n) % 4, torch.randn(n, 25).to(dtype)


def exact(generator, x, t, z):
    with use_backend("reference"), torch.no_grad():
        return copy.deepcopy(generator).double()(x.double(), t, z.double())


def plain(generator, x, t, z):
    with use_backend("reference"), torch.no_grad():
        return generator(x, t, z)


@torch.no_grad()
def assert_current(generator, given):
    theirs, wanted = plain(generator, *given), exact(generator, *given)
    for _ in range(2):  # made, and kept
        assert_error_rule(generator(*given), theirs, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("kind", [Generator, WaveletGenerator])
def test_keeps_the_error_rule(kind, n, dtype):
    assert_current(build(kind, dtype), inputs(dtype, n))


@pytest.mark.parametrize("options", [{"skip_rescale": False}, {"fir": False}])
def test_other_structures(options):
    assert_current(build(**options), inputs())


def test_a_changed_weight_is_seen():
    generator, given = build(), inputs()
    other = build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)

    def step(**options):
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2, **options)
        generator(*given).square().sum().backward()
        optimizer.step()

    def swap():
        for parameter in generator.parameters():
            parameter.data = parameter.data * 1.05

    def reset():
        for name in ("time_bank.conv_bias", "up.0.blocks.0.shortcut.bias", "conv_in.bias"):
            torch.nn.init.ones_(generator.get_parameter(name))

    changes = [
        step,
        lambda: step(fused=True),
        swap,
        reset,
        lambda: generator.load_state_dict(other.state_dict()),
    ]
    for change in changes:
        with torch.no_grad():
            before = generator(*given)
        change()
        with torch.no_grad():
            assert not torch.equal(before, generator(*given))
        assert_current(generator, given)
    generator.bfloat16()
    x, t, z = given
    assert_current(generator, (x.bfloat16(), t, z.bfloat16()))


def test_inference_mode_gives_the_same():
    generator, given = build(), inputs()
    with torch.no_grad():
        wanted = generator(*given)
    with torch.inference_mode():
        assert torch.equal(build()(*given), wanted)


def test_steps_past_the_table():
    generator, (x, _, z) = build(), inputs()
    for t in (torch.tensor([3, 8]), torch.tensor([500, 0])):
        assert_current(generator, (x, t, z))


def test_what_is_kept_is_neither_saved_nor_copied():
    generator, given = build(), inputs()
    with torch.no_grad():
        wanted = generator(*given)
        size = len(pickle.dumps(build()))
        assert len(pickle.dumps(generator)) < size + 4096
        for again in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            assert torch.equal(again(*given), wanted)
            again.conv_in.weight.mul_(2)
            assert not torch.equal(again(*given), wanted)
        assert torch.equal(generator(*given), wanted)


def test_training_in_float32_uses_the_weights_of_the_step():
    generator, given = build(), inputs(n=8)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        out = generator(*given)
        torch.testing.assert_close(out.detach(), plain(generator, *given), rtol=1e-3, atol=1e-4)
        out.square().sum().backward()
        optimizer.step()


def test_nothing_is_kept_in_training():
    generator, given = build(dropout=0.5).train(), inputs()
    with torch.no_grad():
        outputs = [generator(*given) for _ in range(3)]
    assert not torch.equal(outputs[1], outputs[2])
    assert generator.middle0.conv1.packed.onednn._value is None
