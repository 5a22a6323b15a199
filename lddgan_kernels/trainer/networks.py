"""From a configuration to networks and codecs."""

from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

import torch
from torch import nn

from lddgan_kernels.diffusion import Schedule, VPDiffusion, check_sampler
from lddgan_kernels.diffusion import calls as diffusion_calls
from lddgan_kernels.models import (
    Autoencoder,
    AutoencoderConfig,
    CommonOptions,
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    ViTConfig,
    ViTGenerator,
    WaveletGenerator,
)
from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.codec import AutoencoderCodec, Codec, HaarCodec, PixelCodec
from lddgan_kernels.trainer.config import Config

Network = TypeVar("Network", bound=nn.Module)


def validate(config: Config) -> None:
    """Raises ValueError where a field is wrong in itself or does not fit the others."""
    config_file.check(config)
    if config.classes and not config.labels:
        raise ValueError(f"config: classes must be 0 without labels, got {config.classes}")
    if config.labels and config.method == "vae":
        raise ValueError("config: labels must be False for method vae, got True")
    if config.codec == "autoencoder":
        autoencoder_config(config)
    if config.method == "vae":
        _check_vae(config)
        return
    generator_config(config)
    if config.method == "ddpm":
        _check_ddpm(config)
        return
    build_schedule(config, "cpu")
    if config.generator.z_dim == 0:
        raise ValueError("config: generator.z_dim must be positive for method gan, got 0")
    discriminator_config(config)
    resolution, model = latent_shape(config)[1], config.discriminator
    smallest = model.patch_size * 2 ** (model.num_blocks - (model.kind == "small"))
    if resolution % model.patch_size or resolution < smallest:
        raise ValueError(
            f"config: discriminator.num_blocks must leave a latent of {resolution} px something, "
            f"got {model.num_blocks} (kind {model.kind!r}, patches of {model.patch_size}), which "
            f"need {smallest} px"
        )


def _check_ddpm(config: Config) -> None:
    """Raises ValueError where a network that predicts noise, or its sampler, does not fit."""
    build_process(config)
    for name, wanted in (("z_dim", 0), ("tanh_out", False)):
        value = getattr(config.generator, name)
        if value != wanted:
            raise ValueError(
                f"config: generator.{name} must be {wanted} for method ddpm, got {value}"
            )
    ddpm = config.ddpm
    check_sampler("config", ddpm.sampler, ddpm.sample_steps, ddpm.num_steps)


def _check_vae(config: Config) -> None:
    if config.codec != "autoencoder" or not config.autoencoder.kl:
        raise ValueError(
            f"config: autoencoder.kl must be set, and codec autoencoder, for method vae, "
            f"got {config.autoencoder.kl} and {config.codec}"
        )


def calls(config: Config) -> int:
    """How often the network is called for an image (NFE), a decoder aside."""
    if config.method == "ddpm":
        return diffusion_calls(config.ddpm.sampler, config.ddpm.sample_steps)
    return config.diffusion.num_steps if config.method == "gan" else 1


def build_process(config: Config) -> VPDiffusion:
    """The diffusion of a network that predicts noise."""
    ends = config.diffusion
    return VPDiffusion(config.ddpm.num_steps, ends.beta_min, ends.beta_max)


def build_schedule(config: Config, device: torch.device | str) -> Schedule:
    """The schedule of a diffusion GAN."""
    steps = config.diffusion
    return Schedule(steps.num_steps, device, beta_min=steps.beta_min, beta_max=steps.beta_max)


def latent_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of what is sampled before it is decoded."""
    images = config.images
    if config.codec == "autoencoder":
        side = autoencoder_config(config).latent_resolution
        return config.autoencoder.latent_channels, side, side
    if config.codec == "haar":
        if images.resolution % 2:
            raise ValueError(
                f"config: images.resolution must be even for wavelets, got {images.resolution}"
            )
        return 4 * images.channels, images.resolution // 2, images.resolution // 2
    return images.channels, images.resolution, images.resolution


def autoencoder_config(config: Config) -> AutoencoderConfig:
    """The autoencoder's structure."""
    return AutoencoderConfig(
        image_channels=config.images.channels,
        resolution=config.images.resolution,
        **asdict(config.autoencoder),
    )


def generator_config(config: Config) -> GeneratorConfig | ViTConfig:
    """The generator's structure."""
    channels, resolution, _ = latent_shape(config)
    options = asdict(config.generator)
    options["classes"] = config.classes
    if options.pop("kind") == "vit":
        shared = {field.name: options[field.name] for field in fields(CommonOptions)}
        return ViTConfig(
            channels, resolution, classes=config.classes, **shared, **asdict(config.vit)
        )
    return GeneratorConfig(channels, resolution, **options)


def discriminator_config(config: Config) -> DiscriminatorConfig:
    """The discriminator's structure."""
    return DiscriminatorConfig(
        channels=latent_shape(config)[0], classes=config.classes, **asdict(config.discriminator)
    )


def build_generator(config: Config) -> nn.Module:
    """A new generator."""
    structure = generator_config(config)
    if isinstance(structure, ViTConfig):
        return ViTGenerator(structure)
    return (WaveletGenerator if config.generator.kind == "wavelet" else Generator)(structure)


def build_discriminator(config: Config) -> nn.Module:
    """A new discriminator."""
    return Discriminator(discriminator_config(config))


def build_autoencoder(config: Config) -> Autoencoder:
    """A new autoencoder."""
    return Autoencoder(autoencoder_config(config))


def build_codec(config: Config, autoencoder: Autoencoder | None) -> Codec:
    """The codec; `autoencoder` is needed for the codec of that name."""
    if config.codec == "haar":
        return HaarCodec()
    if config.codec == "none":
        return PixelCodec()
    if autoencoder is None:
        raise ValueError('build_codec: autoencoder must be given for codec "autoencoder", got None')
    return AutoencoderCodec(autoencoder)


def layout(config: Config) -> torch.memory_format:
    """The memory layout of images and convolution weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def place(module: Network, device: torch.device | str, config: Config) -> Network:
    """Moves a module to a device and into the layout."""
    return cast(Any, module).to(device, memory_format=layout(config))
