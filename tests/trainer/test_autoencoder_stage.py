import copy

import pytest
import torch

from lddgan_kernels.models.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderOutput
from lddgan_kernels.models.lpips import LPIPS
from lddgan_kernels.models.patch_discriminator import PatchDiscriminator, patch_layers
from lddgan_kernels.trainer.autoencoder_losses import AutoencoderLoss, adaptive_weight
from lddgan_kernels.trainer.autoencoder_stage import (
    autoencoder_loss,
    autoencoder_optimizers,
    autoencoder_step,
    initialize_codebook,
)
from tests.models.test_autoencoder import KL, PLAIN, VQ
from tests.models.test_lpips import random_weights


def smooth_images(n, channels=3, size=16):
    """Random images with structure: low frequencies, in [-1, 1]."""
    coarse = torch.randn(n, channels, 4, 4)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").tanh()


def start(config, gan_start=None, lr=2e-3):
    model = Autoencoder(config)
    loss = autoencoder_loss(model, None, gan_start, gan_width=8)
    return model, loss, autoencoder_optimizers(model, loss, lr)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("config", [VQ, KL, PLAIN], ids=["vq", "kl", "plain"])
def test_reconstruction_loss_falls(config, autocast):
    model, loss, optimizers = start(config, gan_start=20)
    batch = smooth_images(8, config.image_channels)
    initialize_codebook(model, batch)
    history = [autoencoder_step(model, loss, optimizers, batch, i, autocast) for i in range(40)]
    assert all(value.isfinite() for metrics in history for value in metrics.values())
    assert history[-1]["l1"] < 0.7 * history[0]["l1"]
    assert "critic" not in history[19]
    assert history[20]["adaptive_weight"] > 0


def test_steps_repeat_bit_for_bit():
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model, loss, optimizers = start(KL, gan_start=1)
        batch = smooth_images(2)
        runs.append([autoencoder_step(model, loss, optimizers, batch, i) for i in range(3)])
    assert all(a[k].equal(b[k]) for a, b in zip(*runs, strict=True) for k in a)


def test_gan_starts_when_it_should_and_trains_the_critic():
    model, loss, optimizers = start(VQ, gan_start=1)
    batch = smooth_images(4)
    before = copy.deepcopy(loss.discriminator.state_dict())
    autoencoder_step(model, loss, optimizers, batch, 0)
    after = loss.discriminator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    losses = [autoencoder_step(model, loss, optimizers, batch, i)["critic"] for i in range(1, 12)]
    assert losses[-1] < losses[0]


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    layer = torch.randn(3, 5, requires_grad=True)
    likelihood, adversarial = 6.0 * layer.sum(), 2.0 * layer.sum()
    torch.testing.assert_close(
        adaptive_weight(likelihood, adversarial, layer), torch.tensor(3.0), rtol=1e-4, atol=0
    )
    assert adaptive_weight(1e9 * layer.sum(), adversarial, layer) == 1e4
    assert not adaptive_weight(likelihood, adversarial, layer).requires_grad


def test_loss_is_the_sum_of_its_parts():
    weights = random_weights("vgg16")
    lpips = LPIPS(*weights)
    layer = torch.randn(3, 3, 1, 1, requires_grad=True)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    reconstruction = torch.nn.functional.conv2d(images, layer)
    output = AutoencoderOutput(reconstruction, images, torch.tensor(2.0))
    critic = PatchDiscriminator(3, 8).eval()
    loss = AutoencoderLoss(0.25, lpips, critic, gan_start=0, gan_weight=0.5)
    total, parts = loss.autoencoder(images, output, layer, 0)
    l1 = (reconstruction - images).abs().mean()
    likelihood = l1 + lpips(images, reconstruction).mean()
    adversarial = -critic(reconstruction).mean()
    weight = 0.5 * adaptive_weight(likelihood, adversarial, layer)
    torch.testing.assert_close(total, likelihood + 0.25 * 2.0 + weight * adversarial)
    torch.testing.assert_close(parts["adaptive_weight"], weight)
    value, _ = loss.critic(images, reconstruction)
    real, fake = critic(images), critic(reconstruction)
    hinge = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    torch.testing.assert_close(value, hinge / 2)


def test_lpips_takes_part_from_64_px_on():
    lpips = LPIPS(*random_weights("vgg16"))
    small = autoencoder_loss(Autoencoder(VQ), lpips, None)
    assert small.lpips is None
    large = AutoencoderConfig(
        resolution=64, base_channels=8, channel_multipliers=(1, 1, 1), codebook_size=8
    )
    model = Autoencoder(large)
    loss = autoencoder_loss(model, lpips, None)
    optimizers = autoencoder_optimizers(model, loss, 1e-3)
    metrics = autoencoder_step(model, loss, optimizers, smooth_images(1, size=64), 0)
    assert metrics["lpips"] > 0
    assert all(p.grad is None for p in lpips.parameters())


@pytest.mark.parametrize(
    ("resolution", "layers"), [(256, 3), (32, 3), (24, 3), (16, 2), (8, 1), (5, 0)]
)
def test_patch_layers_leave_a_patch(resolution, layers):
    assert patch_layers(resolution) == layers
    if layers:
        out = PatchDiscriminator(1, 4, layers).eval()(torch.zeros(1, 1, resolution, resolution))
        assert out.shape[2] >= 1


def test_discriminator_size_is_the_published_one():
    parameters = sum(p.numel() for p in PatchDiscriminator().parameters())
    assert parameters == 2_765_633
    assert PatchDiscriminator()(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    with pytest.raises(ValueError, match="24 px or more, got"):
        PatchDiscriminator()(torch.zeros(1, 3, 16, 16))
