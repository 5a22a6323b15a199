"""The images of a run, and the batches of its stages: images, or cached latents, and labels."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lddgan_kernels.data import (
    ImageDataset,
    LatentCache,
    PixelCache,
    epoch_order,
    image_batches,
    open_images,
    steps_per_epoch,
)
from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.codec import Codec
from lddgan_kernels.trainer.config import MOST_CLASSES, Config


def open_dataset(config: Config) -> ImageDataset:
    """The images that a configuration names."""
    return open_images(
        config.data,
        config.images.resolution,
        limit=config.limit,
        channels=config.images.channels,
        enlarge=config.images.enlarge,
    )


def resolve_classes(config: Config, dataset: ImageDataset | PixelCache) -> Config:
    """The configuration with the number of classes that the data set has, where it is left out.

    Raises:
        ValueError: labels are to be learned, and the data set has none, or others than classes.
    """
    if not config.labels:
        return config
    where = config.data or "the embedded digits"
    labels = dataset.labels
    if labels is None:
        why = "".join(f" ({name} {text})" for name, text in dataset.skipped if "label" in text)
        raise ValueError(
            f"train: data must have a class for each image (folders, dataset.json, `y` of an .npz) "
            f"for labels to be learned, got none in {where}{why}"
        )
    classes = config.classes or min(MOST_CLASSES, int(labels.max()) + 1)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"train: labels must be in 0..{classes - 1}, got {int(wrong[0])} in {where}"
        )
    return replace(config, classes=classes)


class ImageBatches:
    """Batches of images in [-1, 1], encoded by a codec where one is given.

    Their labels come beside them, where they are wanted.

    Args:
        dataset: the images.
        config: of the run.
        batch_size: over all processes.
        codec: None: the images themselves.
        device: where the codec runs.
        labels: whether they are wanted.
    """

    def __init__(
        self,
        dataset: ImageDataset | PixelCache,
        config: Config,
        batch_size: int,
        codec: Codec | None = None,
        device: torch.device | None = None,
        labels: bool = False,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.share = batch_size // distributed.world_size()
        self.codec = codec
        self.device = device
        self.labels = labels
        self.steps_per_epoch = steps_per_epoch(len(dataset), self.share, distributed.world_size())

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        place = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        which = (self.share, self.config.seed, number)
        order = epoch_order(len(self.dataset), *which, **place, start=start)
        for images in image_batches(
            self.dataset,
            *which,
            flip=self.config.images.flip,
            **place,
            start=start,
            workers=self.config.images.workers,
        ):
            x = images if self.codec is None else self.codec.encode(images.to(self.device))
            indices = next(order)[0]
            # Read after the images: only then it is known which of them others stand in for.
            labels = self.dataset.labels if self.labels else None
            yield (x,) if labels is None else (x, labels[indices])


class LatentBatches:
    """Batches of cached latents over `scale`, so that they lie in [-1, 1].

    `labels` (N,) are those of the pictures, or None.
    """

    def __init__(
        self, cache: LatentCache, scale: float, config: Config, labels: Tensor | None = None
    ) -> None:
        if labels is not None and cache.stand_ins:
            bad, came = torch.tensor(cache.stand_ins).T
            labels = labels.index_copy(0, bad, labels[came])
        self.labels = labels
        self.cache = cache
        self.scale = scale
        self.seed = config.seed
        self.share = config.training.batch_size // distributed.world_size()
        self.steps_per_epoch = steps_per_epoch(len(cache), self.share, distributed.world_size())

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        place = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        which = (self.share, self.seed, number)
        order = epoch_order(len(self.cache), *which, **place, start=start)
        for latents in self.cache.batches(*which, **place, start=start):
            x, indices = latents.div_(self.scale), next(order)[0]
            yield (x,) if self.labels is None else (x, self.labels[indices])
