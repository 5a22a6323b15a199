"""Sampling with what t and z set in the network computed for all steps at once."""

import copy

import pytest
import torch
from torch import nn

from lddgan_kernels import use_backend
from lddgan_kernels.diffusion import Schedule, sample
from lddgan_kernels.models import Generator, GeneratorConfig, ViTConfig, ViTGenerator
from lddgan_kernels.models.wavelet_generator import WaveletGenerator
from lddgan_kernels.testing import assert_error_rule

STEPS, SHAPE = 3, (4, 8, 8)
SEEDS = torch.tensor([5, -1, 2**40])
CONVOLUTIONAL = GeneratorConfig(4, 8, base_channels=32, channel_multipliers=(1, 2), z_dim=7)
KINDS = {
    Generator: CONVOLUTIONAL,
    WaveletGenerator: CONVOLUTIONAL,
    ViTGenerator: ViTConfig(4, 8, width=16, depth=3, num_heads=2, mlp_width=24, z_dim=7),
}


def build(kind=Generator):
    torch.manual_seed(0)
    generator = kind(KINDS[kind]).eval().requires_grad_(False)
    for parameter in generator.parameters():  # the last layers of the blocks start at 0
        parameter.add_(torch.randn_like(parameter) * 0.02)
    return generator


def draw(generator, seeds=SEEDS):
    return sample(generator, Schedule(STEPS), SHAPE, seeds, z_dim=7)


def step_by_step(generator):
    return lambda x, t, z: generator(x, t, z)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_predictors_keep_the_error_rule(kind, layout, dtype):
    generator = build(kind).to(dtype, memory_format=layout)
    double = copy.deepcopy(generator).double()
    for count in (1, 3):
        t = torch.arange(STEPS)[:, None].repeat(1, count)
        z = torch.randn(STEPS, count, 7).to(dtype)
        x = torch.randn(count, *SHAPE).to(dtype).contiguous(memory_format=layout)
        images = [predict(x) for predict in generator.predictors(t, z)]
        for i, image in enumerate(images):
            assert image.is_contiguous(memory_format=layout)
            with use_backend("reference"):
                plain, exact = generator(x, t[i], z[i]), double(x.double(), t[i], z[i].double())
            assert_error_rule(image, plain, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_single_calls(kind):
    generator = build(kind)
    expected = draw(step_by_step(generator))
    for count in (3, 1, 0):
        for _ in range(3):
            images = draw(generator, SEEDS[:count])
        torch.testing.assert_close(images, expected[:count], rtol=1e-4, atol=1e-5)


def test_the_mapping_runs_once(monkeypatch):
    generator, calls = build(), []
    forward = generator.mapping.forward
    monkeypatch.setattr(
        generator.mapping, "forward", lambda z, y: calls.append(len(z)) or forward(z)
    )
    with use_backend("reference"):
        draw(generator)
    assert calls == [STEPS * len(SEEDS)]


class Counted(Generator):
    def forward(self, x, t, z):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x, t, z)


class Wrapper(nn.Module):
    """As `torch.compile` wraps: another call, all attributes of the module."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def __getattr__(self, name):
        return getattr(super().__getattr__("module"), name) if name != "module" else None

    def forward(self, x, t, z):
        self.calls += 1
        return self._modules["module"](x, t, z)


def test_a_call_that_does_more_is_made():
    expected = draw(step_by_step(build()))
    counted, wrapped, hooked, inner = Counted(CONVOLUTIONAL), Wrapper(build()), build(), build()
    counted.load_state_dict(build().state_dict())
    seen = []
    hooked.register_forward_hook(lambda *_: seen.append(1))
    inner.middle0.register_forward_pre_hook(lambda *_: seen.append(1))
    for generator in (counted.eval(), wrapped, hooked, inner):
        torch.testing.assert_close(draw(generator), expected, rtol=1e-4, atol=1e-5)
    assert counted.calls == wrapped.calls == STEPS
    assert len(seen) == 2 * STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_weights_changed_between_samples_are_seen(kind):
    generator = build(kind)
    for _ in range(3):
        before = draw(generator)
    generator.style_bank.weight.mul_(1.5)
    after = draw(generator)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, draw(step_by_step(generator)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_predictors_of_other_weights_raise(kind):
    generator = build(kind)
    t, z = torch.arange(STEPS)[:, None], torch.randn(STEPS, 1, 7)
    x = torch.randn(1, *SHAPE)
    predict = generator.predictors(t, z)[0]
    # What x alone goes through is read in the call.
    generator.conv_out.weight.mul_(2)
    torch.testing.assert_close(predict(x), generator(x, t[0], z[0]), rtol=1e-4, atol=1e-5)
    changes = [generator.mapping.layers[0].weight, generator.style_bank.bias]
    if kind is not ViTGenerator:
        changes += [generator.time_embedding.linear1.bias, generator.time_bank.conv_bias]
    for weight in changes:
        predict = generator.predictors(t, z)[0]
        predict(x)
        weight.add_(1)
        with pytest.raises(RuntimeError, match="predictors must be asked for again"):
            predict(x)


def test_bad_inputs():
    generator = build()
    t, z = torch.zeros(STEPS, 2, dtype=torch.int64), torch.zeros(STEPS, 2, 7)
    with pytest.raises(ValueError, match=r"Generator: z must be of shape \(6, 7\), got \(6, 5\)"):
        generator.predictors(t, z[:, :, :5])
    predict = generator.predictors(t, z)[0]
    with pytest.raises(ValueError, match=r"Generator: x must be of shape \(2, 4, 8, 8\)"):
        predict(torch.zeros(3, *SHAPE))
