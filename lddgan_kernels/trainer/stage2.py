"""Stage 2: the data set's latents, encoded once; and the batches of every stage."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from lddgan_kernels.data import (
    ImageDataset,
    LatentCache,
    PixelCache,
    image_batches,
    steps_per_epoch,
    weights_fingerprint,
)
from lddgan_kernels.models import Autoencoder
from lddgan_kernels.trainer import checkpoint, config_file, distributed, networks
from lddgan_kernels.trainer.codec import Codec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.precision import autocast

ENCODED_AT_ONCE = 64
PIXELS_AT_ONCE = ENCODED_AT_ONCE * 64 * 64


class ImageBatches:
    """Batches of images in [-1, 1], encoded by a codec where one is given.

    Args:
        dataset: the images.
        config: of the run.
        batch_size: over all processes.
        codec: None: the images themselves.
        device: where the codec runs.
    """

    def __init__(
        self,
        dataset: ImageDataset | PixelCache,
        config: Config,
        batch_size: int,
        codec: Codec | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.share = batch_size // distributed.world_size()
        self.codec = codec
        self.device = device
        self.steps_per_epoch = steps_per_epoch(len(dataset), self.share, distributed.world_size())

    def epoch(self, number: int, start: int) -> Iterator[Tensor]:
        for images in image_batches(
            self.dataset,
            self.share,
            self.config.seed,
            number,
            flip=self.config.images.flip,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start=start,
            workers=self.config.images.workers,
        ):
            yield images if self.codec is None else self.codec.encode(images.to(self.device))


class LatentBatches:
    """Batches of cached latents over `scale`, so that they lie in [-1, 1]."""

    def __init__(self, cache: LatentCache, scale: float, config: Config) -> None:
        self.cache = cache
        self.scale = scale
        self.seed = config.seed
        self.share = config.gan.batch_size // distributed.world_size()
        self.steps_per_epoch = steps_per_epoch(len(cache), self.share, distributed.world_size())

    def epoch(self, number: int, start: int) -> Iterator[Tensor]:
        for latents in self.cache.batches(
            self.share,
            self.seed,
            number,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start=start,
        ):
            yield latents.div_(self.scale)


def encode_dataset(
    config: Config,
    folder: RunFolder,
    dataset: ImageDataset | PixelCache,
    autoencoder: Autoencoder,
    check: Callable[[], None],
) -> LatentCache:
    """The latents of the data set, both ways round where the images may be mirrored.

    Measures `autoencoder.latent_scale` on them, so that |latent| <= 1 from here on, and stores it
    with the autoencoder. A cache that this autoencoder made of this data set is used again.

    Args:
        check: called before each batch; may raise.
    """
    autoencoder.eval()
    fingerprint = weights_fingerprint(autoencoder)
    if distributed.rank() == 0:
        batch = max(1, min(ENCODED_AT_ONCE, PIXELS_AT_ONCE // config.images.resolution**2))
        create_cache(config, folder.latents, dataset, autoencoder, fingerprint, batch, check)
    distributed.wait()
    cache = LatentCache.open(folder.latents, fingerprint, dataset=dataset)
    if not cache.abs_max > 0:
        raise ValueError(f"encode: the largest |latent| must be positive, got {cache.abs_max}")
    autoencoder.latent_scale.fill_(cache.abs_max)
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
    """The unscaled latents of the data set in a file; `check` is called before each batch."""
    device = autoencoder.latent_scale.device
    layout = networks.layout(config)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        check()
        with autocast(config, device):
            return autoencoder.encode(images.contiguous(memory_format=layout)).float()

    return LatentCache.create(
        path,
        dataset,
        encode,
        fingerprint,
        flip=config.images.flip,
        batch_size=batch_size,
        device=device,
        workers=config.images.workers,
    )


def save_autoencoder(config: Config, folder: RunFolder, autoencoder: Autoencoder) -> None:
    """Writes the autoencoder with the run's configuration."""
    if distributed.rank() == 0:
        facts = {"config": config_file.dump(config)}
        checkpoint.save_weights(folder.autoencoder, autoencoder, facts)
    distributed.wait()
