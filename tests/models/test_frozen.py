"""What inference keeps of the weights (packed convolutions, the time table) is never stale."""

import copy
import pickle

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels.models import (
    Autoencoder,
    AutoencoderConfig,
    Generator,
    GeneratorConfig,
    ViTConfig,
    ViTGenerator,
    WaveletGenerator,
)
from lddgan_kernels.models._replay import record_calls
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
    for _ in range(3):  # as it is, recorded, replayed
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


@torch.no_grad()
def replayed(generator, given):
    """Output of a replay, and of the modules themselves."""
    generator.eval()
    function = generator.decode if isinstance(generator, Autoencoder) else generator
    function(*given)
    function(*given)
    assert any(callable(record) for record in generator.replay._records.values())
    replay = function(*given)
    generator.replay._records.clear()
    return replay, function(*given)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Generator, WaveletGenerator, ViTGenerator, Autoencoder])
def test_a_replay_is_bit_for_bit(kind, dtype, layout):
    if kind is ViTGenerator:
        config = ViTConfig(4, 8, width=16, depth=3, num_heads=2, mlp_width=24)
        module = ViTGenerator(config).to(dtype)
    elif kind is Autoencoder:
        module = Autoencoder(AutoencoderConfig(resolution=16, base_channels=32)).to(dtype)
    else:
        module = build(kind, dtype)
    for n in (1, 3):
        for _ in range(2):  # other values of the same shapes
            x, t, z = inputs(dtype, n)
            x = x.contiguous(memory_format=layout)
            replay, plain = replayed(module, (x,) if kind is Autoencoder else (x, t, z))
            assert torch.equal(replay, plain)
            assert replay.stride() == plain.stride()


def test_other_backends_are_not_replayed():
    generator, given = build(), inputs()
    replayed(generator, given)
    with use_backend("reference"), torch.no_grad():
        for _ in range(3):
            generator(*given)
    assert not any(callable(record) for record in generator.replay._records.values())


def test_a_changed_module_is_not_replayed():
    generator, given = build(), inputs()
    replayed(generator, given)
    generator.conv_out = copy.deepcopy(generator.conv_out)
    with torch.no_grad():
        generator.conv_out.bias.add_(1)
    assert torch.equal(*replayed(generator, given))
    seen = []
    handle = generator.middle0.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        for _ in range(3):
            generator(*given)
    assert len(seen) == 3
    handle.remove()
    assert torch.equal(*replayed(generator, given))


def test_what_is_recorded_is_bounded():
    generator = build()
    with torch.no_grad():
        for n in range(1, 20):
            generator(*inputs(n=n))
    assert len(generator.replay._records) <= 8


def test_a_value_read_back_cannot_be_recorded():
    with pytest.raises(RuntimeError, match="reads a value back"):
        record_calls(lambda x: x * x.sum().item(), (torch.ones(2),))


def test_nothing_is_kept_in_training():
    generator, given = build(dropout=0.5).train(), inputs()
    with torch.no_grad():
        outputs = [generator(*given) for _ in range(3)]
    assert not torch.equal(outputs[1], outputs[2])
    assert not generator.replay._records
    assert generator.middle0.conv1.frozen.onednn._value is None


def test_a_record_has_other_values_lists_and_results_of_several_tensors():
    weight, index = torch.randn(4, 6), torch.tensor([2, 0])

    def function(x, y):
        halves = torch.cat([x, weight.t(), y], 1).split(3)
        most, where = halves[1].max(dim=1, keepdim=True)
        halves[0].add_(most)
        return torch.stack([halves[0][index], x[:2].relu_().sum() + where.expand(3, 14)[:2]])

    with torch.no_grad():
        record = record_calls(function, (torch.randn(6, 4), torch.randn(6, 6)))
        for _ in range(2):
            x, y = torch.randn(6, 4), torch.randn(6, 6)
            ours = x.clone()
            assert torch.equal(record(ours, y), function(x, y))
            assert torch.equal(ours, x)  # written to by both
    with torch.inference_mode():
        assert torch.equal(record(x, y), function(x, y))


def test_a_record_passes_errors_on_and_counts_its_inputs():
    table = torch.randn(3, 2)
    with torch.no_grad():
        record = record_calls(lambda i: torch.embedding(table, i), (torch.tensor([0, 2]),))
    with pytest.raises(IndexError, match="index out of range"):
        record(torch.tensor([3]))
    with pytest.raises(RuntimeError, match="expected 1 inputs, got 0"):
        record()


def test_a_record_keeps_no_tensor_longer_than_needed():
    """Memory of the recording and of a run goes, but for the result."""
    sizes = []

    def function(x):
        y = torch.cat([x, x])
        return (y * 2).sum(0)

    x = torch.randn(8, 4)
    with torch.no_grad():
        record = record_calls(function, (x,))
        with torch.profiler.profile(profile_memory=True) as found:
            result = record(x)
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            sizes.append(event.nbytes())
    assert sum(sizes) == result.nbytes
