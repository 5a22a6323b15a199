"""Encoding a data set in several processes, batch by batch as one would."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lddgan_kernels._checks import fail
from lddgan_kernels.data.batches import PixelCache
from lddgan_kernels.data.images import ImageDataset


class Share(NamedTuple):
    """Processes that work together, each on every `world_size`th batch, from that of its `rank` on.

    Attributes:
        gather: called by all with (1, ...), returns the (world_size, ...) of all; what it raises,
            it raises in all.
    """

    rank: int
    world_size: int
    gather: Callable[[Tensor], Tensor]


ALONE = Share(0, 1, lambda x: x)


def encode_together(
    dataset: ImageDataset | PixelCache,
    encode: Callable[[Tensor], Tensor],
    batches: Sequence[range],
    empty: Tensor,
    workers: int,
    share: Share,
) -> Iterator[Tensor]:
    """The latents of each batch, in their order, in every process.

    Args:
        encode: uint8 images (B, C, H, W) to latents (B, ...).
        batches: which images are in which.
        empty: of the shape and dtype of the largest batch's latents.
        workers: processes that decode pictures.
    """
    own = [list(batch) for batch in batches[share.rank :: share.world_size]]
    loaded = iter(DataLoader(dataset, batch_sampler=own, num_workers=workers))
    for first in range(0, len(batches), share.world_size):
        images, made = next(loaded, None), torch.zeros_like(empty)
        if images is not None:
            made[: len(images)] = encode(images)
        for batch, latents in zip(batches[first:], share.gather(made[None]), strict=False):
            if not latents.isfinite().all():
                raise fail(
                    "LatentCache",
                    "encode",
                    f"finite in {empty.dtype}",
                    f"inf or NaN among images {batch[0]}..{batch[-1]}",
                )
            yield latents[: len(batch)]


def merge_bad(dataset: ImageDataset | PixelCache, share: Share) -> None:
    """Lets every process know the pictures that any could not use."""
    if isinstance(dataset, ImageDataset):
        bad = (~dataset.good).to(torch.uint8)
        dataset.mark_bad(share.gather(bad[None]).bool().any(dim=0))
