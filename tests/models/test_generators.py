"""What all generators must do: agree with the reference, dtypes, layouts, a step of training."""

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels.models import Generator, ViTGenerator, WaveletGenerator
from tests.models import test_generator, test_vit_generator, test_wavelet_generator

TINY = {
    Generator: test_generator.TINY,
    WaveletGenerator: test_wavelet_generator.TINY,
    ViTGenerator: test_vit_generator.TINY,
}
pytestmark = pytest.mark.parametrize("kind", TINY)


def make(kind, **changes):
    """A generator whose zero-initialised layers are filled, so that all of it counts."""
    module = kind(type(TINY[kind])(**{**vars(TINY[kind]), **changes}))
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1 and p.abs().max() < 1e-3:
                torch.nn.init.normal_(p, std=0.1)
    return module


def inputs(module, n=3, dtype=torch.float32):
    config = module.config
    x = torch.randn(n, config.channels, config.resolution, config.resolution, dtype=dtype)
    return x, torch.arange(n) % 4, torch.randn(n, config.z_dim, dtype=dtype)


def test_weights_keep_the_names_of_checkpoints(kind):
    names = set(make(kind).state_dict())
    shared = {f"mapping.layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    shared |= {"style_bank.weight", "style_bank.bias", "conv_out.weight", "conv_out.bias"}
    assert shared <= names
    if kind is ViTGenerator:
        assert {"positions", "blocks.2.skip.weight", "blocks.0.qkv.bias", "predict.weight"} <= names
        return
    block = {f"up.0.blocks.0.{part}" for part in ("conv0.weight", "conv1.weight", "conv1.bias")}
    block |= {"up.0.blocks.0.shortcut.weight", "up.0.blocks.0.shortcut.bias"}
    assert {name for name in names if name.startswith("up.0.blocks.0.")} == block
    attention = {f"middle_attention.{layer}.{part}" for layer in ("norm", "qkv", "out")
                 for part in ("weight", "bias")}  # fmt: skip
    assert {name for name in names if name.startswith("middle_attention.")} == attention
    assert {"time_embedding.linear0.weight", "time_bank.conv_bias", "norm_out.weight"} <= names


def test_fused_agrees_with_reference(kind):
    module = make(kind)
    x, t, z = inputs(module)
    results = []
    for backend in (None, "reference"):
        module.zero_grad()
        xi, zi = x.clone().requires_grad_(), z.clone().requires_grad_()
        with use_backend(backend):
            y = module(xi, t, zi)
            y.square().mean().backward()
        results.append([y.detach(), xi.grad, zi.grad, *(p.grad for p in module.parameters())])
    for ours, reference in zip(*results, strict=True):
        atol = 1e-5 * reference.abs().max().item() if kind is ViTGenerator else 1e-6
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=atol)


def test_float64_gradients_of_the_whole_network(kind):
    module = make(kind, resolution=4, z_dim=2).double()
    x, t, z = inputs(module, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, z: module(x, t, z), (x.requires_grad_(), z.requires_grad_()), fast_mode=True
    )


def test_channels_last(kind):
    module = make(kind)
    x, t, z = inputs(module)
    expected = module(x, t, z)
    module.to(memory_format=torch.channels_last)
    y = module(x.to(memory_format=torch.channels_last), t, z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(kind, autocast):
    module = make(kind)
    x, t, z = inputs(module)
    exact = module(x, t, z)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x, t, z)
    else:
        y = module.bfloat16()(x.bfloat16(), t, z.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_step_depends_on_t_and_z(kind):
    module = make(kind)
    x, t, z = inputs(module)
    y = module(x, t, z)
    least = 1e-5 if kind is ViTGenerator else 1e-4
    assert (module(x, t + 1, z) - y).abs().max() > least
    assert (module(x, t, z + 1) - y).abs().max() > least


def test_samples_do_not_meet(kind):
    module = make(kind)
    x, t, z = inputs(module, n=4)
    y = module(x, t, z)
    torch.testing.assert_close(module(x[2:3], t[2:3], z[2:3]), y[2:3], rtol=1e-4, atol=1e-6)


def test_empty_batch(kind):
    module = make(kind)
    x, t, z = inputs(module, n=0)
    assert module(x, t, z).shape == x.shape


def test_training_reduces_a_loss(kind):
    module = make(kind)
    x, t, z = inputs(module)
    target = torch.tanh(torch.randn_like(x))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(30 if kind is ViTGenerator else 15):
        loss = (module(x, t, z) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.85 if kind is WaveletGenerator else 0.8) * losses[0]


def test_compiles(kind):
    module = make(kind)
    x, t, z = inputs(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, z), module(x, t, z), rtol=1e-4, atol=1e-6)


def test_bad_inputs(kind):
    module = make(kind)
    x, t, z = inputs(module)
    for args, name in (((x[:, :2], t, z), "x"), ((x, t[:1], z), "t"), ((x, t, z[:, :2]), "z")):
        with pytest.raises(ValueError, match=f"{kind.__name__}: {name} must be of shape"):
            module(*args)
