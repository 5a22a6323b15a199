"""The discriminators: shapes, dtypes and layouts, fused against reference, the R1 penalty."""

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels.models import Discriminator, DiscriminatorConfig

SMALL = DiscriminatorConfig(3, "small", base_channels=4, time_embedding=8, num_blocks=3)
LARGE = DiscriminatorConfig(3, "large", base_channels=4, time_embedding=8, num_blocks=4)


def make(config, dtype=torch.float32):
    """A discriminator whose zero-initialised layers are filled, so that all of it counts."""
    module = Discriminator(config)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1 and p.abs().max() < 1e-3:
                torch.nn.init.normal_(p, std=0.1)
    return module.to(dtype)


def inputs(config, n=4, size=16, dtype=torch.float32):
    x = torch.randn(n, config.channels, size, size, dtype=dtype)
    return x, torch.arange(n) % 4, torch.randn_like(x)


def penalty(module, x, t, x_next):
    """The R1 penalty: mean squared norm of the gradient in x, differentiable."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(module(x, t, x_next).sum(), x, create_graph=True)
    return grad.square().sum(dim=(1, 2, 3)).mean()


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("num_blocks", [3, 4, 5, 6])
def test_every_depth(kind, num_blocks):
    if kind == "small" and num_blocks > 4:
        with pytest.raises(ValueError, match="num_blocks must be 3 to 4"):
            DiscriminatorConfig(3, kind, num_blocks=num_blocks)
        return
    config = DiscriminatorConfig(3, kind, base_channels=4, time_embedding=8, num_blocks=num_blocks)
    y = make(config)(*inputs(config, size=64))
    assert y.shape == (4, 1)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("config", [SMALL, LARGE])
def test_fused_agrees_with_reference_to_second_order(config):
    module = make(config)
    x, t, x_next = inputs(config)
    results = []
    for backend in (None, "reference"):
        module.zero_grad()
        with use_backend(backend):
            y = module(x, t, x_next)
            (y.mean() + penalty(module, x, t, x_next)).backward()
        grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        results.append([y.detach(), *grads])
    for ours, reference in zip(*results, strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * scale)


def test_second_order_is_right_in_float64():
    module = make(SMALL, torch.float64)
    x, t, x_next = inputs(SMALL, 2, 8, torch.float64)
    weight = module.blocks[1].conv1.weight
    loss = penalty(module, x, t, x_next)
    (grad,) = torch.autograd.grad(loss, weight)
    direction = torch.randn_like(weight)
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
    high = penalty(module, x, t, x_next)
    with torch.no_grad():
        weight -= 2 * step * direction
    low = penalty(module, x, t, x_next)
    torch.testing.assert_close(
        (high - low) / (2 * step), (grad * direction).sum(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("config", [SMALL, LARGE])
def test_channels_last_and_bfloat16(config):
    module = make(config)
    x, t, x_next = inputs(config)
    exact = module(x, t, x_next)
    last = torch.channels_last
    module.to(memory_format=last)
    y = module(x.to(memory_format=last), t, x_next.to(memory_format=last))
    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, t, x_next)
    assert (y.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_odd_sizes_and_patches():
    assert make(SMALL)(*inputs(SMALL, size=13)).shape == (4, 1)
    config = DiscriminatorConfig(3, "small", base_channels=4, time_embedding=8, patch_size=2)
    assert make(config)(*inputs(config, size=16)).shape == (4, 1)


def test_depends_on_time_and_both_images():
    module = make(SMALL)
    x, t, x_next = inputs(SMALL)
    y = module(x, t, x_next)
    for args in ((x + 1, t, x_next), (x, t + 1, x_next), (x, t, x_next + 1)):
        assert (module(*args) - y).abs().max() > 1e-5


def test_training_tells_two_sets_apart():
    module = make(SMALL)
    real, t, x_next = inputs(SMALL, n=8)
    fake = real.flip(2) + 0.5
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    softplus = torch.nn.functional.softplus
    losses = []
    for _ in range(10):
        loss = softplus(-module(real, t, x_next)).mean() + softplus(module(fake, t, x_next)).mean()
        (loss + 0.01 * penalty(module, real, t, x_next)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_compiles():
    module = make(SMALL)
    args = inputs(SMALL)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), module(*args), rtol=1e-4, atol=1e-6)


def test_bad_inputs():
    with pytest.raises(ValueError, match="kind must be one of small, large, got 'tiny'"):
        DiscriminatorConfig(3, "tiny")
    with pytest.raises(ValueError, match="base_channels must be at least 1"):
        DiscriminatorConfig(3, "small", base_channels=0)
    module = make(SMALL)
    x, t, x_next = inputs(SMALL)
    for args, name in (
        ((x[:, :2], t, x_next), "x"),
        ((x[:, :, :3, :3], t, x_next[:, :, :3, :3]), "x"),
        ((x, t[:1], x_next), "t"),
        ((x, t, x_next[:2]), "x_next"),
    ):
        with pytest.raises(ValueError, match=f"Discriminator: {name} must be"):
            module(*args)
