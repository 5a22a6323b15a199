"""To whoever hooks, prints, traces or transforms them, models are plain PyTorch."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

from lddgan_kernels.models import (
    Autoencoder,
    AutoencoderConfig,
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    ViTConfig,
    ViTGenerator,
    WaveletGenerator,
)

CL = torch.channels_last
CONVOLUTIONAL = GeneratorConfig(
    4, 8, base_channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(8,)
)
CONFIGS = {
    Generator: CONVOLUTIONAL,
    WaveletGenerator: CONVOLUTIONAL,
    ViTGenerator: ViTConfig(4, 8, width=32, depth=3, num_heads=2, mlp_width=24),
    Discriminator: DiscriminatorConfig(4, "small", base_channels=16, num_blocks=3),
    Autoencoder: AutoencoderConfig(
        image_channels=4, resolution=8, base_channels=32, codebook_size=8,
        attention_resolutions=(4,),
    ),
}  # fmt: skip
GENERATORS = (Generator, WaveletGenerator, ViTGenerator)


def build(kind, layout=CL):
    torch.manual_seed(0)
    module = kind(CONFIGS[kind]).eval().to(memory_format=layout)
    with torch.no_grad():
        for parameter in module.parameters():  # the last layers of the blocks start at 0
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return module


def inputs(kind, n=2, layout=CL):
    x = torch.randn(n, 4, 8, 8).contiguous(memory_format=layout)
    if kind is Autoencoder:
        return (x,)
    last = torch.randn_like(x) if kind is Discriminator else torch.randn(n, 25)
    return x, torch.arange(n) % 4, last


def output(module, given):
    out = module(*given)
    return out if isinstance(out, torch.Tensor) else out.reconstruction


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_hooks_fire_on_every_module_in_every_call(kind, training):
    module, given = build(kind).train(training), inputs(kind)
    seen = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *_, name=name: seen.update({name: seen.get(name, 0) + 1}))
    with torch.set_grad_enabled(training):
        for _ in range(3):
            output(module, given)
    lists = {name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    assert {name for name, _ in module.named_modules()} == lists | set(seen)
    assert all(count % 3 == 0 for count in seen.values())


@torch.no_grad()
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_value_may_be_read_in_every_call(kind, monkeypatch):
    module, given = build(kind), inputs(kind)
    part = next(p for p in module.modules() if isinstance(p, nn.Linear | nn.Conv2d))
    forward, means = part.forward, []

    def reading(*args, **options):
        h = forward(*args, **options)
        means.append(getattr(h, "x", h).mean().item())
        return h

    monkeypatch.setattr(part, "forward", reading)
    for count in range(1, 4):
        output(module, given)
        assert len(means) == count


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_weight_can_be_parametrized(kind, training):
    given = inputs(kind)
    module = build(kind).train(training)
    for p in module.parameters():
        p.data.mul_(0.5)
    expected = build(kind).train(training)
    expected.load_state_dict(module.state_dict())
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    layers += [
        getattr(module, name) for name in ("style_bank", "time_bank") if hasattr(module, name)
    ]
    others = list(expected.modules())
    for part in layers:
        other = others[list(module.modules()).index(part)]
        other.weight.data.mul_(2)
    for part in layers:
        parametrize.register_parametrization(part, "weight", Doubled())
    with torch.set_grad_enabled(training):
        for _ in range(2):
            torch.testing.assert_close(
                output(module, given), output(expected, given), rtol=1e-4, atol=1e-5
            )
        with torch.no_grad():
            for part, twin in zip(module.parameters(), expected.parameters(), strict=True):
                part.mul_(0.9), twin.mul_(0.9)
        torch.testing.assert_close(
            output(module, given), output(expected, given), rtol=1e-4, atol=1e-5
        )
    if training:
        output(module, given).square().sum().backward()
        for part in layers:
            assert part.parametrizations.weight.original.grad is not None


def traced(module, given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes, which are constants
        return torch.jit.trace(module, given)


def exported(module, given):
    return torch.export.export(module, given).module()


def fx(module, given):
    return make_fx(module)(*given)


@torch.no_grad()
@pytest.mark.parametrize("tracer", [traced, exported, fx])
@pytest.mark.parametrize("kind", [*GENERATORS, Discriminator])
def test_tracers(kind, tracer):
    module = build(kind)
    module(*inputs(kind))  # what is kept of the weights is there
    traced_module = tracer(module, inputs(kind))
    torch.manual_seed(5)
    given = inputs(kind)
    given = (given[0], given[1].flip(0), given[2])
    torch.testing.assert_close(traced_module(*given), module(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GENERATORS)
def test_export_with_gradients(kind):
    module, given = build(kind), inputs(kind)
    torch.testing.assert_close(exported(module, given)(*given), module(*given))


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize("kind", GENERATORS)
def test_vmap_over_samples_and_over_networks(kind, layout):
    module = build(kind, layout)
    x, t, z = inputs(kind, 3, layout)
    expected = module(x, t, z)
    out = torch.vmap(module)(x[:, None], t[:, None], z[:, None])[:, 0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    other = copy.deepcopy(module)
    for p in other.parameters():
        p.mul_(1.1)
    stacked, buffers = torch.func.stack_module_state([module, other])
    both = torch.vmap(lambda p, b: torch.func.functional_call(module, (p, b), (x, t, z)))(
        stacked, buffers
    )
    torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], other(x, t, z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GENERATORS)
def test_gradients_by_torch_func(kind):
    module = build(kind)
    x, t, z = inputs(kind)
    found = torch.func.grad(lambda x: module(x, t, z).square().sum())(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(module(x, t, z).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
