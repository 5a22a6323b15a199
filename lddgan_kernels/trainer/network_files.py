"""Trained networks out to files and back in, with the configuration of their run."""

from pathlib import Path

import torch
from torch import nn

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


def save_generator(config: Config, folder: RunFolder, generator: nn.Module) -> None:
    """Writes the averaged generator with the run's configuration, by rank 0."""
    files.save_weights(folder.generator, generator, {"config": config_file.dump(config)})


def load_autoencoder(path: Path) -> tuple[Autoencoder, Config]:
    """An autoencoder that a run wrote, in evaluation mode, and the run's configuration."""
    tensors, facts = files.load_weights(path)
    config = config_file.parse(facts["config"], str(path))
    autoencoder = networks.build_autoencoder(config).eval()
    autoencoder.load_state_dict(tensors)
    return autoencoder, config


def load_system(generator: Path, device: torch.device | str) -> System:
    """The system of a `generator.safetensors`; its autoencoder, if any, lies beside it."""
    tensors, facts = files.load_weights(generator)
    if "config" not in facts:
        raise ValueError(f"sample: {generator} must be a generator that train wrote")
    config = resolve_for_inference(
        config_file.parse(facts["config"], str(generator)), torch.device(device)
    )
    module = networks.build_generator(config)
    module.load_state_dict(tensors)
    module = networks.place(module.eval().requires_grad_(False), device, config)
    autoencoder = None
    if config.codec == "autoencoder":
        autoencoder = load_autoencoder(generator.with_name("autoencoder.safetensors"))[0]
        networks.place(autoencoder, device, config)
    return System(config, module, networks.build_codec(config, autoencoder))
