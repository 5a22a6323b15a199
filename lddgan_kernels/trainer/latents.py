"""The data set's latents, encoded once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lddgan_kernels.data import (
    ImageDataset,
    LatentCache,
    PixelCache,
    Share,
    weights_fingerprint,
)
from lddgan_kernels.models import Autoencoder
from lddgan_kernels.trainer import distributed, networks
from lddgan_kernels.trainer.batches import open_dataset
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_autoencoder, save_autoencoder
from lddgan_kernels.trainer.precision import autocast, resolve_for_inference

ENCODED_AT_ONCE = 64
PIXELS_AT_ONCE = ENCODED_AT_ONCE * 64 * 64


def encode_dataset(
    config: Config,
    folder: RunFolder,
    dataset: ImageDataset | PixelCache,
    autoencoder: Autoencoder,
    check: Callable[[], None],
    scale: float | None = None,
) -> LatentCache:
    """The latents of the data set, both ways round where the images may be mirrored.

    Measures `autoencoder.latent_scale` on them, so that |latent| <= 1 from here on, and stores it
    with the autoencoder. A cache that this autoencoder made of this data set is used again.

    Args:
        check: called by all processes after each batch; may raise, in all.
        scale: the latent scale to store in place of the measured one, if any.
    """
    autoencoder.eval()
    fingerprint = weights_fingerprint(autoencoder)
    batch = max(1, min(ENCODED_AT_ONCE, PIXELS_AT_ONCE // config.images.resolution**2))
    cache = create_cache(config, folder.latents, dataset, autoencoder, fingerprint, batch, check)
    if not cache.abs_max > 0:
        raise ValueError(f"encode: the largest |latent| must be positive, got {cache.abs_max}")
    autoencoder.latent_scale.fill_(scale or cache.abs_max)
    save_autoencoder(config, folder, autoencoder)
    return cache


def create_cache(
    config: Config,
    path: Path,
    dataset: ImageDataset | PixelCache,
    autoencoder: Autoencoder,
    fingerprint: str,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> LatentCache:
    """The unscaled latents of the data set in a file, encoded by all processes."""
    device = autoencoder.latent_scale.device
    layout = networks.layout(config)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with autocast(config, device):
            return autoencoder.encode(images.contiguous(memory_format=layout)).float()

    def gather(own: Tensor) -> Tensor:
        check()
        return distributed.gather(own.to(device)).cpu()

    return LatentCache.create(
        path,
        dataset,
        encode,
        fingerprint,
        flip=config.images.flip,
        batch_size=batch_size,
        device=device,
        workers=config.images.workers,
        share=Share(distributed.rank(), distributed.world_size(), gather),
    )


def encode_images(
    run: Path,
    out: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[LatentCache, list[tuple[str, str]]]:
    """The latents of a set of images, by the autoencoder of a run.

    Args:
        run: its folder.
        out: the file of the latents (see `data.LatentCache`).
        data, limit: the images, as in the configuration; None: the run's own.

    Returns:
        The cache, and the images that could not be used with the reasons.
    """
    autoencoder, config = load_autoencoder(RunFolder(run).autoencoder)
    config = resolve_for_inference(config, torch.device(device))
    if data is not None or limit is not None:
        config = replace(config, data=config.data if data is None else data, limit=limit)
    dataset = open_dataset(config)
    fingerprint = weights_fingerprint(autoencoder)
    networks.place(autoencoder, device, config)
    cache = create_cache(config, out, dataset, autoencoder, fingerprint, batch_size)
    return cache, dataset.skipped
