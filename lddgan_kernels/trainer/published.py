"""Systems of published checkpoints: DDGAN, WDDGAN and LDDGAN."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from lddgan_kernels.diffusion.schedule import MAX_BETA
from lddgan_kernels.interop import load_published
from lddgan_kernels.interop.options import flag, integer, number, wrong
from lddgan_kernels.models import Autoencoder, AutoencoderOptions, Generator
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.config import Config, Diffusion, GeneratorOptions, Images
from lddgan_kernels.trainer.system import System


def read_options(path: Path) -> dict[str, Any]:
    """Published options from a .json or .toml file.

    Raises:
        OSError: it cannot be read. ValueError: it is neither, or holds no table.
    """
    path = path.expanduser()
    parse = tomllib.loads if path.suffix.lower() == ".toml" else json.loads
    if path.exists() and not path.is_file():
        raise ValueError(f"sample: options must be a file, got {path}")
    try:
        options = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"sample: options must be .json or .toml, got {path}: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"sample: options must be a table, got {type(options).__name__} in {path}")
    return options


def published_system(
    checkpoint: Path,
    network: str,
    options: Mapping[str, Any],
    device: torch.device | str,
    autoencoder: tuple[Path, Mapping[str, Any]] | None = None,
) -> System:
    """The system of a published generator.

    Args:
        checkpoint: see `interop.load_published`.
        network: "NCSNpp" or "WaveletNCSNpp".
        options: its options, with `num_timesteps`, `beta_min` and `beta_max` (4, 0.1, 20 by
            default) and, beside an autoencoder, `scale_factor`, by which latents are multiplied
            before they are decoded.
        device: where to sample.
        autoencoder: LDDGAN's checkpoint and options; those of a VQModelInterface have `n_embed`.
            Without one, 12 channels are Haar bands (WDDGAN), 3 are pixels (DDGAN).

    Raises:
        As `interop.load_published`. ValueError: what is given does not fit together.
    """
    generator = load_published(checkpoint, network, options)
    if not isinstance(generator, Generator):
        raise ValueError(f"sample: network must be a generator, got {network}")
    channels, resolution = generator.config.channels, generator.config.resolution
    codec: Literal["autoencoder", "haar", "none"]
    decoder, autoencoder_options = None, AutoencoderOptions()
    if autoencoder is not None:
        decoder = _load_autoencoder(*autoencoder, options)
        structure = decoder.config
        if structure.latent_channels != channels:
            raise ValueError(
                f"sample: the autoencoder must have latents of the generator's {channels} "
                f"channels, got {structure.latent_channels}"
            )
        codec = "autoencoder"
        images = Images(resolution * structure.factor, _colours(structure.image_channels))
        names = [field.name for field in fields(AutoencoderOptions)]
        autoencoder_options = AutoencoderOptions(**{n: getattr(structure, n) for n in names})
    elif channels == 12:
        codec, images = "haar", Images(2 * resolution)
    else:
        codec, images = "none", Images(resolution, _colours(channels))
    config = Config(
        codec=codec,
        precision="float32",
        images=images,
        autoencoder=autoencoder_options,
        diffusion=_diffusion(options),
        generator=GeneratorOptions(z_dim=generator.config.z_dim),
    )
    if decoder is not None:
        networks.place(decoder, device, config)
    generator = networks.place(generator.requires_grad_(False), device, config)
    return System(config, generator, networks.build_codec(config, decoder))


def _load_autoencoder(
    path: Path, options: Mapping[str, Any], generator_options: Mapping[str, Any]
) -> Autoencoder:
    network = "VQModelInterface" if "n_embed" in options else "AutoencoderKL"
    module = load_published(path, network, options)
    assert isinstance(module, Autoencoder)
    if "scale_factor" not in generator_options:
        raise ValueError("sample: options must hold scale_factor where an autoencoder is given")
    module.latent_scale.fill_(number(generator_options, "scale_factor", 0.0, high=1e6))
    return module


def _diffusion(options: Mapping[str, Any]) -> Diffusion:
    """The schedule of the published options, whose geometric one is not known here."""
    if flag(options, "use_geometric", False):
        raise wrong("use_geometric", "False", options["use_geometric"])
    return Diffusion(
        integer(options, "num_timesteps", 4),
        beta_min=number(options, "beta_min", 0.1, high=MAX_BETA),
        beta_max=number(options, "beta_max", 20.0, high=MAX_BETA),
    )


def _colours(channels: int) -> Any:
    if channels not in (1, 3):
        raise ValueError(
            f"sample: images have 1 or 3 channels, got {channels}: latents need --autoencoder"
        )
    return channels
