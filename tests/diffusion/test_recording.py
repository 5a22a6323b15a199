"""Calls recorded on the CPU: the same bits, never stale, and what cannot be recorded says so."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lddgan_kernels import _extension, use_backend
from lddgan_kernels.diffusion import Sampler, Schedule, recorded
from lddgan_kernels.diffusion.recording import MOST_SHAPES, record
from lddgan_kernels.models import (
    Autoencoder,
    AutoencoderConfig,
    Generator,
    ViTConfig,
    ViTGenerator,
    WaveletGenerator,
)
from tests.models.test_kept_tensors import CL, build, inputs

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")


def records(fast):
    """What the calls of a `recorded` module, or a sampler's, have left."""
    return [r for r in fast._recordings._records.values() if type(r).__name__ == "Record"]


@torch.no_grad()
def check(fast, call, given):
    """Three calls, of which the last one replays, against the plain one."""
    expected = call(*given)
    for _ in range(3):
        out = fast(*given)
        assert torch.equal(out, expected)
        assert out.stride() == expected.stride()
    return expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Generator, WaveletGenerator, ViTGenerator, Autoencoder])
def test_a_replay_is_bit_for_bit(kind, dtype, layout):
    if kind is ViTGenerator:
        config = ViTConfig(4, 8, width=16, depth=3, num_heads=2, mlp_width=24)
        module = ViTGenerator(config).to(dtype).eval()
    elif kind is Autoencoder:
        config = AutoencoderConfig(resolution=16, base_channels=32)
        module = Autoencoder(config).to(dtype).eval()
    else:
        module = build(kind, dtype)
    method = "decode" if kind is Autoencoder else "forward"
    fast = recorded(module, method)
    for n in (1, 3):
        for _ in range(2):  # other values of the same shapes
            x, t, z = inputs(dtype, n)
            x = x.contiguous(memory_format=layout)
            check(fast, getattr(module, method), (x,) if kind is Autoencoder else (x, t, z))
    assert len(records(fast)) == 2


def test_steps_past_a_schedule_are_computed():
    generator, (x, _, z) = build(), inputs()
    fast = recorded(generator)
    check(fast, generator, (x, torch.tensor([3, 1]), z))
    check(fast, generator, (x, torch.tensor([500, 0]), z))


def test_other_backends_modes_and_gradients_are_not_recorded(monkeypatch):
    generator, given = build(), inputs()
    fast = recorded(generator)

    def runs_as_it_is():
        for _ in range(3):
            fast(*given)
        assert not records(fast)

    with use_backend("reference"), torch.no_grad():
        runs_as_it_is()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        runs_as_it_is()
    runs_as_it_is()  # gradients
    assert fast(*given).requires_grad
    with torch.no_grad():
        generator.up.train()
        runs_as_it_is()
        generator.eval()
        monkeypatch.setenv("LDDGAN_REPLAY", "0")
        runs_as_it_is()
        monkeypatch.delenv("LDDGAN_REPLAY")
        fast(*given), fast(*given)
        assert records(fast)


def test_a_changed_module_is_not_replayed():
    generator, given = build(), inputs()
    fast = recorded(generator)
    before = check(fast, generator, given)
    generator.conv_out = copy.deepcopy(generator.conv_out)
    with torch.no_grad():
        generator.conv_out.bias.add_(1)
    assert not torch.equal(check(fast, generator, given), before)
    seen = []
    handle = generator.middle0.register_forward_hook(lambda *_: seen.append(1))
    check(fast, generator, given)
    assert len(seen) == 4
    handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(2))
    check(fast, generator, given)
    everywhere.remove()
    assert 2 in seen
    check(fast, generator, given)
    assert records(fast)


@torch.no_grad()
def test_what_is_recorded_is_bounded_and_neither_copied_nor_saved():
    fast = recorded(nn.Linear(4, 4).eval())
    for n in range(1, 20):
        fast(torch.randn(n, 4)), fast(torch.randn(n, 4))
    assert 0 < len(records(fast)) <= MOST_SHAPES
    x = torch.randn(2, 4)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not records(again)
        check(again, fast.module, (x,))
        again.module.weight.mul_(2)
        assert not torch.equal(again(x), fast(x))


class Prints(nn.Module):
    """Reads a value back, as `print` does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen = []

    def forward(self, x):
        h = self.linear(x)
        self.seen.append(f"{h.mean()}")
        return h


@torch.no_grad()
def test_what_cannot_be_recorded_runs_after_one_warning_that_says_why():
    module = Prints().eval()
    fast, x = recorded(module), torch.randn(2, 4)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for n in (2, 2, 2, 3, 3, 3):
            assert torch.equal(fast(x[:1].expand(n, 4)), module.linear(x[:1].expand(n, 4)))
    assert len(found) == 1
    assert "recorded: calls run operator by operator" in str(found[0].message)
    assert "reads a value back" in str(found[0].message)
    module.seen.clear()
    fast(x)
    fast(x)
    assert len(module.seen) >= 2


@torch.no_grad()
def test_errors_of_the_module_are_its_own():
    generator, (x, t, z) = build(), inputs()
    fast = recorded(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            with pytest.raises(ValueError, match="Generator: t must be of shape"):
                fast(x, t[:1], z)


@torch.no_grad()
def test_a_sampler_records_the_whole_draw():
    generator = build()
    decoder = Autoencoder(AutoencoderConfig(resolution=16, base_channels=32)).eval()
    sampler = Sampler(generator, Schedule(3), (4, 8, 8), z_dim=25, decoder=decoder)
    seeds = torch.tensor([3, -7, 2**40])
    first = sampler(seeds)
    for _ in range(3):
        assert torch.equal(sampler(seeds), first)
    (draw,) = records(sampler)
    one = sampler(seeds[1:2])
    for _ in range(2):
        assert torch.equal(sampler(seeds[1:2]), one)
    assert records(sampler)[0] is draw
    other = sampler(seeds + 1)
    assert not torch.equal(other, first)
    generator.conv_in.weight.mul_(1.5)
    assert not torch.equal(sampler(seeds), first)
    assert not records(sampler)


READERS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist()[0],
    "numpy": lambda x: x.numpy()[0],
    "asarray": lambda x: np.asarray(x + 1)[0],
    "dlpack": lambda x: np.from_dlpack(x)[0],
    "address": lambda x: x.data_ptr() % 2,
    "storage": lambda x: x.untyped_storage()[0],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_value_read_back_cannot_be_recorded(reader):
    with pytest.raises(RuntimeError, match="reads a value back"):
        record(lambda x: x * READERS[reader](x), (torch.ones(2),))


def test_what_a_constant_holds_may_be_read():
    factors = torch.tensor([2.0, 3.0])
    replay = record(lambda x: x * factors.tolist()[1] + factors.numpy()[0], (torch.ones(2),))[0]
    assert torch.equal(replay(torch.zeros(2)), torch.full((2,), 2.0))


def test_a_record_has_other_values_lists_and_results_of_several_tensors():
    weight, index = torch.randn(4, 6), torch.tensor([2, 0])

    def function(x, y):
        halves = torch.cat([x, weight.t(), y], 1).split(3)
        most, where = halves[1].max(dim=1, keepdim=True)
        halves[0].add_(most)
        return torch.stack([halves[0][index], x[:2].relu_().sum() + where.expand(3, 14)[:2]])

    with torch.no_grad():
        replay = record(function, (torch.randn(6, 4), torch.randn(6, 6)))[0]
        for _ in range(2):
            x, y = torch.randn(6, 4), torch.randn(6, 6)
            ours = x.clone()
            assert torch.equal(replay(ours, y), function(x, y))
            assert torch.equal(ours, x)  # written to by both
    with torch.inference_mode():
        assert torch.equal(replay(x, y), function(x, y))


def test_a_record_passes_errors_on_and_counts_its_inputs():
    table = torch.randn(3, 2)
    with torch.no_grad():
        replay = record(lambda i: torch.embedding(table, i), (torch.tensor([0, 2]),))[0]
    with pytest.raises(IndexError, match="index out of range"):
        replay(torch.tensor([3]))
    with pytest.raises(RuntimeError, match="expected 1 inputs, got 0"):
        replay()


def test_a_record_keeps_no_tensor_longer_than_needed():
    """Memory of the recording and of a run goes, but for the result."""
    sizes = []

    def function(x):
        y = torch.cat([x, x])
        return (y * 2).sum(0)

    x = torch.randn(8, 4)
    with torch.no_grad():
        replay = record(function, (x,))[0]
        with torch.profiler.profile(profile_memory=True) as found:
            result = replay(x)
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            sizes.append(event.nbytes())
    assert sum(sizes) == result.nbytes


@torch.no_grad()
def test_a_recording_needs_no_more_memory_than_a_call():
    def function(x):
        for _ in range(40):
            x = x + 1
        return x

    def peak(call):
        now = most = 0
        with torch.profiler.profile(profile_memory=True) as found:
            call()
        for event in found.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        return most

    x = torch.randn(2**18)
    assert peak(lambda: record(function, (x,))) < peak(lambda: function(x)) + x.nbytes
