"""The images of a run, and the batches of its stages: images, or cached latents."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lddgan_kernels.data import (
    ImageDataset,
    LatentCache,
    PixelCache,
    image_batches,
    open_images,
    steps_per_epoch,
)
from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.codec import Codec
from lddgan_kernels.trainer.config import Config


def open_dataset(config: Config) -> ImageDataset:
    """The images that a configuration names."""
    return open_images(
        config.data,
        config.images.resolution,
        limit=config.limit,
        channels=config.images.channels,
        enlarge=config.images.enlarge,
    )


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
        self.share = config.training.batch_size // distributed.world_size()
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
