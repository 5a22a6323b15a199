"""Batches of images for training: shuffled and flipped as a function of seed and epoch alone."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lddgan_kernels._checks import fail
from lddgan_kernels.data.images import ImageDataset


class PixelCache(torch.utils.data.Dataset[Tensor]):
    """A dataset decoded once: `images` (N,C,H,W) uint8 in memory; the rest as it had it."""

    def __init__(self, dataset: ImageDataset, workers: int = 0) -> None:
        from tqdm import tqdm

        self.name = dataset.name
        self.identity = dataset.identity
        self.resolution = dataset.resolution
        self.channels = dataset.channels
        self.images = torch.empty(_shape(dataset), dtype=torch.uint8)
        loader = DataLoader(dataset, batch_size=64, num_workers=workers)
        done = 0
        with tqdm(
            total=len(dataset), desc="decode", unit="img", disable=len(dataset) < 2000
        ) as bar:
            for batch in loader:
                self.images[done : done + len(batch)] = batch
                done += len(batch)
                bar.update(len(batch))
        self.skipped = dataset.skipped
        self.labels = dataset.labels
        self.stand_ins = dataset.stand_ins

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def cache_pixels(
    dataset: ImageDataset, *, max_bytes: int = 2 << 30, workers: int = 0
) -> ImageDataset | PixelCache:
    """The dataset decoded into memory where its pixels fit into `max_bytes`, else the dataset."""
    count, channels, height, width = _shape(dataset)
    if count * channels * height * width > max_bytes:
        return dataset
    return PixelCache(dataset, workers)


def steps_per_epoch(length: int, batch_size: int, world_size: int = 1) -> int:
    """Whole batches in an epoch; 1 where the set is smaller than a batch (images then repeat)."""
    return max(1, length // (batch_size * world_size))


def epoch_order(
    length: int,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, flips) of each batch of an epoch, from batch `start` on: int64 and bool (B,).

    The order is shuffled as `seed` and `epoch` decide; a set smaller than the global batch is
    repeated to fill it. A rank gets every `world_size`th image of each global batch.
    """
    if not 0 <= rank < world_size:
        raise fail("epoch_order", "rank", f"0..{world_size - 1}", rank)
    if batch_size < 1 or length < 1:
        raise fail("epoch_order", "batch_size and length", "at least 1", (batch_size, length))
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    steps = steps_per_epoch(length, batch_size, world_size)
    total = steps * batch_size * world_size
    rounds = [torch.randperm(length, generator=generator) for _ in range(-(-total // length))]
    order = torch.cat(rounds)[:total].view(steps, batch_size, world_size)
    flips = torch.randint(0, 2, order.shape, generator=generator, dtype=torch.uint8).bool()
    for step in range(start, steps):
        yield order[step, :, rank], flips[step, :, rank]


def image_batches(
    dataset: ImageDataset | PixelCache,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    flip: bool,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    workers: int = 0,
) -> Iterator[Tensor]:
    """One epoch of (batch_size, C, H, W) float32 batches in [-1, 1].

    flip: mirror half of the images left to right (not for digits or text).
    start: the first batch to give, to go on where an epoch was left.
    workers: processes that decode; a `PixelCache` needs none.

    The batches depend on `seed`, `epoch` and the dataset only, not on `start` or `workers`.
    """
    batches = list(
        epoch_order(
            len(dataset), batch_size, seed, epoch, rank=rank, world_size=world_size, start=start
        )
    )
    if isinstance(dataset, PixelCache):
        pixels: Iterator[Tensor] = (dataset.images[indices] for indices, _ in batches)
    else:
        indices = [indices.tolist() for indices, _ in batches]
        pixels = iter(DataLoader(dataset, batch_sampler=indices, num_workers=workers))
    for images, (_, flips) in zip(pixels, batches, strict=True):
        if flip:
            images[flips] = images[flips].flip(-1)
        yield images.float().div_(127.5).sub_(1)


def _shape(dataset: ImageDataset) -> tuple[int, int, int, int]:
    return len(dataset), dataset.channels, dataset.resolution, dataset.resolution
