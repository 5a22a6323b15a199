"""What a run left behind, back in: autoencoders, samplers; and the perceptual distance."""

from pathlib import Path
from urllib.error import URLError

import torch

from lddgan_kernels.data import LatentCache, open_images, weights_fingerprint
from lddgan_kernels.models import LPIPS, Autoencoder
from lddgan_kernels.models.lpips import MIN_SIZE
from lddgan_kernels.trainer import checkpoint, config_file, networks
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.pictures import Sampler
from lddgan_kernels.trainer.precision import resolve_for_inference
from lddgan_kernels.trainer.stage2 import create_cache


def load_lpips(config: Config) -> tuple[LPIPS | None, str | None]:
    """The perceptual distance that the configuration asks for; else None and a note why."""
    training, resolution = config.autoencoder_training, config.images.resolution
    reason = f"images of {resolution} px are under {MIN_SIZE} px"
    if resolution >= MIN_SIZE:
        reason = "no lpips_backbone is given"
        if training.lpips_backbone in ("vgg16", "alexnet"):
            try:
                return LPIPS.download(training.lpips_backbone), None
            except (URLError, OSError, RuntimeError) as error:
                reason = f"{training.lpips_backbone} could not be fetched ({error})"
        elif training.lpips_backbone is not None:
            if training.lpips_linear is None:
                raise ValueError(
                    "config: autoencoder_training.lpips_linear must be given beside a "
                    "lpips_backbone file, got None"
                )
            return LPIPS.from_files(training.lpips_backbone, training.lpips_linear), None
    return None, f"The autoencoder's L1 loss stands alone, without LPIPS: {reason}."


def load_autoencoder(path: Path) -> tuple[Autoencoder, Config]:
    """An autoencoder that a run wrote, in evaluation mode, and the run's configuration."""
    tensors, facts = checkpoint.load_weights(path)
    config = config_file.parse(facts["config"], str(path))
    autoencoder = networks.build_autoencoder(config).eval()
    autoencoder.load_state_dict(tensors)
    return autoencoder, config


def load_sampler(generator: Path, device: torch.device | str) -> Sampler:
    """The sampler of a `generator.safetensors`; its autoencoder, if any, lies beside it."""
    tensors, facts = checkpoint.load_weights(generator)
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
    return Sampler(config, module, networks.build_codec(config, autoencoder))


def encode_images(
    run: Path,
    out: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[LatentCache, list[tuple[str, str]]]:
    """Stage 2 alone: the latents of a set of images, by the autoencoder of a run.

    Args:
        run: its folder.
        out: the file of the latents (see `data.LatentCache`).
        data, limit: the images, as in the configuration; None: the run's own.

    Returns:
        The cache, and the images that could not be used with the reasons.
    """
    autoencoder, config = load_autoencoder(RunFolder(run).autoencoder)
    config = resolve_for_inference(config, torch.device(device))
    dataset = open_images(
        config.data if data is None else data,
        config.images.resolution,
        limit=config.limit if data is None and limit is None else limit,
        channels=config.images.channels,
    )
    fingerprint = weights_fingerprint(autoencoder)
    networks.place(autoencoder, device, config)
    cache = create_cache(config, out, dataset, autoencoder, fingerprint, batch_size)
    return cache, dataset.skipped
