"""Pictures of what a system has learned: its samples' nearest training images, interpolations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels.data import ImageDataset, PixelCache
from lddgan_kernels.diffusion import STREAM_POSTERIOR, STREAM_X_T, STREAM_Z
from lddgan_kernels.metrics import nearest
from lddgan_kernels.ops import posterior_sample, seeded_normal
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.pictures import grid, to_uint8
from lddgan_kernels.trainer.precision import autocast
from lddgan_kernels.trainer.system import System

SAMPLES = 8
NEIGHBOURS = 7
COMPARED_AT = 16  # px
MOST_IMAGES = 50_000
PAIRS = 3
STATIONS = 10


def neighbours(system: System, dataset: ImageDataset | PixelCache) -> Tensor:
    """Samples, each followed by its nearest training images: a grid (C, H, W) uint8."""
    samples = system(torch.arange(SAMPLES))
    count = min(len(dataset), MOST_IMAGES)
    points = torch.cat([_small(dataset[i][None]) for i in range(count)])
    _, indices = nearest(_small(samples), points, min(NEIGHBOURS, count))
    rows = [
        torch.cat([sample[None], torch.stack([dataset[i] for i in found])])
        for sample, found in zip(samples, indices.tolist(), strict=True)
    ]
    return grid(torch.cat(rows), columns=len(rows[0]))


def _small(images: Tensor) -> Tensor:
    """(N, D) of uint8 images, averaged down."""
    side = min(COMPARED_AT, images.shape[-1])
    return F.interpolate(images.float(), (side, side), mode="area").flatten(1)


@torch.no_grad()
def interpolations(system: System) -> Tensor:
    """From seed to seed, two rows a pair: of z alone, then of all noise: a grid (C, H, W) uint8.

    Noise between two seeds is their weighted sum over its deviation, so normal again. Of a system
    with classes all are of the first seed's.
    """
    config, device = system.config, system.device
    schedule = networks.build_schedule(config, device)
    weights = torch.linspace(0, 1, STATIONS, device=device)

    def noise(shape: tuple[int, ...], pair: Tensor, stream: int, step: int, moves: bool) -> Tensor:
        first, second = seeded_normal((2, *shape), pair, stream, step=step)
        if not moves:
            return first.expand(STATIONS, *shape).contiguous()
        w = weights.view(-1, *[1] * len(shape))
        return ((1 - w) * first + w * second) / ((1 - w).square() + w.square()).sqrt()

    rows = []
    shape, layout = networks.latent_shape(config), networks.layout(config)
    for number in range(PAIRS):
        pair = torch.tensor([2 * number, 2 * number + 1], device=device)
        label = system.labels_of(pair[:1])
        labels = () if label is None else (label.expand(STATIONS),)
        for all_moves in (False, True):
            x = noise(shape, pair, STREAM_X_T, 0, all_moves).contiguous(memory_format=layout)
            for i in reversed(range(schedule.num_steps)):
                t = torch.full((STATIONS,), i, device=device)
                z = noise((config.generator.z_dim,), pair, STREAM_Z, i, True)
                with autocast(config, device):
                    x0 = system.generator(x, t, z, *labels).float()
                x0 = x0.contiguous(memory_format=layout)
                given = noise(shape, pair, STREAM_POSTERIOR, i, all_moves)
                given = given.contiguous(memory_format=layout)
                x = posterior_sample(x0, x, t, schedule, noise=given)
            with autocast(config, device):
                rows.append(to_uint8(system.codec.decode(x)))
    return grid(torch.cat(rows), columns=STATIONS)
