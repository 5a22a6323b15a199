"""The presets load and fit, the predecessors have their sizes, all systems train a step."""

from dataclasses import replace

import pytest
import torch

from lddgan_kernels.models import ViTGenerator, WaveletGenerator
from lddgan_kernels.nn.summary import summarize
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.gan_stage import GanStage

SYSTEMS = ("cifar10", "ddgan-cifar10", "wddgan-cifar10", "wddgan-stl10", "cifar10-vit-tiny")


class OneBatch:
    steps_per_epoch = 1


@pytest.mark.parametrize("preset", config_file.presets())
def test_a_preset_loads_and_its_networks_fit(preset):
    config = config_file.load(preset)
    networks.validate(config)
    assert config_file.parse(config_file.dump(config)) == config
    latent = (1, *networks.latent_shape(config))
    inputs = [latent, (1,), (1, config.generator.z_dim)]
    if config.method != "vae":
        assert summarize(lambda: networks.build_generator(config), inputs).macs
    if config.method == "gan":
        assert summarize(lambda: networks.build_discriminator(config), [latent, (1,), latent]).macs
    if config.codec == "autoencoder":
        images = (1, config.images.channels, config.images.resolution, config.images.resolution)
        assert summarize(lambda: networks.build_autoencoder(config), [images]).macs


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("ddgan-cifar10", 48.43),
        ("ddgan-celebahq256", 39.73),
        ("wddgan-cifar10", 33.37),
        ("wddgan-celebahq256", 31.49),
    ],
)
def test_sizes_of_the_predecessors(preset, millions):
    config = config_file.load(preset)
    with torch.device("meta"):
        count = sum(p.numel() for p in networks.build_generator(config).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def reduced(preset):
    """The preset in its own structure, but narrow."""
    config = config_file.load(preset)
    return replace(
        config,
        precision="float32",
        images=replace(config.images, workers=0),
        generator=replace(config.generator, base_channels=16, mapping_width=16),
        vit=replace(config.vit, width=32, num_heads=2, mlp_width=64),
        discriminator=replace(config.discriminator, base_channels=8, time_embedding=16),
        gan=replace(config.gan, batch_size=2, lr_generator=1e-3),
    )


@pytest.mark.parametrize("preset", SYSTEMS)
def test_a_step_of_each_system(preset):
    config = reduced(preset)
    stage = GanStage(config, OneBatch(), torch.device("cpu"))
    kinds = {"vit": ViTGenerator, "wavelet": WaveletGenerator}
    expected = kinds.get(config.generator.kind)
    assert expected is None or type(stage.generator) is expected
    codec = networks.build_codec(config, None) if config.codec != "autoencoder" else None
    if codec is None:
        x0 = torch.rand(2, *networks.latent_shape(config)) * 2 - 1
    else:
        size = config.images.resolution
        x0 = codec.encode(torch.rand(2, 3, size, size) * 2 - 1)
        assert x0.shape[1:] == networks.latent_shape(config)
    assert x0.abs().max() <= 1
    before = [p.detach().clone() for p in stage.generator.parameters()]
    metrics = stage.step(0, x0)
    assert {"discriminator", "generator", "reconstruction", "r1"} <= set(metrics)
    assert all(value.isfinite() for value in metrics.values())
    after = list(stage.generator.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_one_step_makes_a_one_shot_gan():
    config = reduced("ddgan-cifar10")
    config = replace(config, diffusion=replace(config.diffusion, num_steps=1))
    stage = GanStage(config, OneBatch(), torch.device("cpu"))
    metrics = stage.step(0, torch.rand(2, 3, 32, 32) * 2 - 1)
    assert all(value.isfinite() for value in metrics.values())
