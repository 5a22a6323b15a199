"""Trained networks out to files and back in, with the configuration of their run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lddgan_kernels.data import weights_fingerprint
from lddgan_kernels.diffusion import SamplerName, check_sampler
from lddgan_kernels.models import Autoencoder
from lddgan_kernels.trainer import config_file, distributed, files, networks
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.precision import resolve_for_inference
from lddgan_kernels.trainer.system import System


def save_autoencoder(config: Config, folder: RunFolder, autoencoder: Autoencoder) -> None:
    """Writes the autoencoder with the run's configuration."""
    if distributed.rank() == 0:
        facts = {"config": config_file.dump(config)}
        files.save_weights(folder.autoencoder, autoencoder, facts)
    distributed.wait()


def save_generator(
    config: Config, path: Path, generator: nn.Module, autoencoder: Autoencoder | None
) -> None:
    """Writes the averaged generator with the run's configuration, by rank 0.

    And with the fingerprint of the autoencoder, if any, whose latents it makes.
    """
    facts = {"config": config_file.dump(config)}
    if autoencoder is not None:
        facts["autoencoder"] = autoencoder_fingerprint(autoencoder)
    files.save_weights(path, generator, facts)


def autoencoder_fingerprint(autoencoder: Autoencoder) -> str:
    """A hash of its weights, and the scale of its latents."""
    return f"{weights_fingerprint(autoencoder)}, latents over {autoencoder.latent_scale.item():.9g}"


def load_autoencoder(path: Path) -> tuple[Autoencoder, Config]:
    """An autoencoder that a run wrote, in evaluation mode, and the run's configuration."""
    tensors, config, _ = _load(path)
    autoencoder = networks.build_autoencoder(config).eval()
    files.fill(autoencoder, tensors, path)
    return autoencoder, config


def load_system(
    generator: Path,
    device: torch.device | str,
    *,
    sampler: SamplerName | None = None,
    steps: int | None = None,
    guidance: float = 0.0,
) -> System:
    """The system of a `generator.safetensors`; its autoencoder, if any, lies beside it.

    A VAE is its autoencoder alone.

    Args:
        sampler, steps: of a DDPM, in place of those of its configuration.
        guidance: of the system.

    Raises:
        ValueError: a file is damaged or another kind, or the autoencoder is not the one whose
            latents the generator makes, or a sampler is named for what is no DDPM.
    """
    beside = generator.with_name("autoencoder.safetensors")
    if not generator.exists() and beside.exists():
        autoencoder, config = load_autoencoder(beside)
        if config.method == "vae":
            config = _with_sampler(config, sampler, steps)
            config = resolve_for_inference(config, torch.device(device))
            networks.place(autoencoder, device, config)
            return System(config, autoencoder, networks.build_codec(config, autoencoder), guidance)
    tensors, config, facts = _load(generator)
    config = _with_sampler(config, sampler, steps)
    config = resolve_for_inference(config, torch.device(device))
    module = networks.build_generator(config)
    files.fill(module, tensors, generator)
    module = networks.place(module.eval().requires_grad_(False), device, config)
    decoder = None
    if config.codec == "autoencoder":
        decoder = load_autoencoder(beside)[0]
        wanted, found = facts.get("autoencoder"), autoencoder_fingerprint(decoder)
        if wanted not in (None, found):
            raise ValueError(
                f"checkpoint: {beside} must be the autoencoder of {generator} ({wanted}), got "
                f"another ({found})"
            )
        networks.place(decoder, device, config)
    return System(config, module, networks.build_codec(config, decoder), guidance)


def _with_sampler(config: Config, sampler: SamplerName | None, steps: int | None) -> Config:
    """The configuration with another way to sample its DDPM."""
    if sampler is None and steps is None:
        return config
    if config.method != "ddpm":
        raise ValueError(
            f"sample: --sampler and --steps must be left out for method {config.method}, which "
            f"has one way to sample, got {sampler} and {steps}"
        )
    ddpm = replace(
        config.ddpm,
        sampler=config.ddpm.sampler if sampler is None else sampler,
        sample_steps=config.ddpm.sample_steps if steps is None else steps,
    )
    check_sampler("sample", ddpm.sampler, ddpm.sample_steps, ddpm.num_steps)
    return replace(config, ddpm=ddpm)


def _load(path: Path) -> tuple[dict[str, Tensor], Config, dict[str, Any]]:
    """(weights, configuration, all facts) of a file that a run wrote."""
    tensors, facts = files.load_weights(path)
    if not isinstance(facts.get("config"), str):
        raise ValueError(f"checkpoint: {path} must be a network that train wrote, got another file")
    return tensors, config_file.parse(facts["config"], str(path)), facts
