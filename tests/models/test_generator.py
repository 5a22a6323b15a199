"""NCSN++: sizes, shapes, dtypes and layouts, fused against reference, one step of training."""

import pytest
import torch

from lddgan_kernels import use_backend
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


def test_fused_agrees_with_reference():
    module = make()
    x, t, z = inputs()
    results = []
    for backend in (None, "reference"):
        module.zero_grad()
        xi, zi = x.clone().requires_grad_(), z.clone().requires_grad_()
        with use_backend(backend):
            y = module(xi, t, zi)
            y.square().mean().backward()
        results.append([y.detach(), xi.grad, zi.grad, *(p.grad for p in module.parameters())])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_float64_gradients_of_the_whole_network():
    config = GeneratorConfig(**{**vars(TINY), "resolution": 4, "z_dim": 2})
    module = make(config, torch.float64)
    x, t, z = inputs(config, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, z: module(x, t, z), (x.requires_grad_(), z.requires_grad_()), fast_mode=True
    )


def test_channels_last_in_channels_last_out():
    module = make()
    x, t, z = inputs()
    expected = module(x, t, z)
    module.to(memory_format=torch.channels_last)
    y = module(x.to(memory_format=torch.channels_last), t, z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(autocast):
    module = make()
    x, t, z = inputs()
    exact = module(x, t, z)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x, t, z)
    else:
        y = module.bfloat16()(x.bfloat16(), t, z.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_step_depends_on_t_and_z():
    module = make()
    x, t, z = inputs()
    y = module(x, t, z)
    assert (module(x, t + 1, z) - y).abs().max() > 1e-4
    assert (module(x, t, z + 1) - y).abs().max() > 1e-4


def test_samples_do_not_meet():
    module = make()
    x, t, z = inputs(n=4)
    y = module(x, t, z)
    torch.testing.assert_close(module(x[2:3], t[2:3], z[2:3]), y[2:3], rtol=1e-4, atol=1e-6)


def test_empty_batch():
    x, t, z = inputs(n=0)
    assert make()(x, t, z).shape == x.shape


def test_training_reduces_a_loss():
    module = make()
    x, t, z = inputs()
    target = torch.tanh(torch.randn_like(x))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = (module(x, t, z) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_dropout_acts_in_training_only():
    module = make(GeneratorConfig(**{**vars(TINY), "dropout": 0.5}))
    x, t, z = inputs()
    assert (module(x, t, z) - module(x, t, z)).abs().max() > 1e-4
    module.eval()
    assert torch.equal(module(x, t, z), module(x, t, z))


def test_compiles():
    module = make()
    x, t, z = inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, z), module(x, t, z), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"channel_multipliers": ()}, "channel_multipliers must hold one a level"),
    ({"resolution": 15}, "resolution must be a multiple of 2"),
    ({"base_channels": 0}, "base_channels must be positive"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"base_channels": 6}, "channels must be a multiple of 32"),
])  # fmt: skip
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        Generator(GeneratorConfig(**{**vars(TINY), **changes}))


def test_bad_inputs():
    module = make()
    x, t, z = inputs()
    for args, name in (((x[:, :2], t, z), "x"), ((x, t[:1], z), "t"), ((x, t, z[:, :2]), "z")):
        with pytest.raises(ValueError, match=f"Generator: {name} must be of shape"):
            module(*args)
