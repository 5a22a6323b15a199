"""Trained networks out to files and back in, with the configuration of their run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lddgan_kernels.data import weights_fingerprint
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


def load_system(generator: Path, device: torch.device | str) -> System:
    """The system of a `generator.safetensors`; its autoencoder, if any, lies beside it.

    Raises:
        ValueError: a file is damaged or another kind, or the autoencoder is not the one whose
            latents the generator makes.
    """
    tensors, config, facts = _load(generator)
    config = resolve_for_inference(config, torch.device(device))
    module = networks.build_generator(config)
    files.fill(module, tensors, generator)
    module = networks.place(module.eval().requires_grad_(False), device, config)
    autoencoder = None
    if config.codec == "autoencoder":
        path = generator.with_name("autoencoder.safetensors")
        autoencoder = load_autoencoder(path)[0]
        wanted, found = facts.get("autoencoder"), autoencoder_fingerprint(autoencoder)
        if wanted not in (None, found):
            raise ValueError(
                f"checkpoint: {path} must be the autoencoder of {generator} ({wanted}), got "
                f"another ({found})"
            )
        networks.place(autoencoder, device, config)
    return System(config, module, networks.build_codec(config, autoencoder))


def _load(path: Path) -> tuple[dict[str, Tensor], Config, dict[str, Any]]:
    """(weights, configuration, all facts) of a file that a run wrote."""
    tensors, facts = files.load_weights(path)
    if not isinstance(facts.get("config"), str):
        raise ValueError(f"checkpoint: {path} must be a network that train wrote, got another file")
    return tensors, config_file.parse(facts["config"], str(path)), facts
