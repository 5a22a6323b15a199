"""How a run ends: samples and scores."""

import os
import time
from typing import Any

import torch

from lddgan_kernels.data import ImageDataset, PixelCache
from lddgan_kernels.metrics import score_digits
from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.codec import AutoencoderCodec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.system import System


def summarize(config: Config, system: System, dataset: ImageDataset | PixelCache) -> dict[str, Any]:
    """Samples, their scores and their speed."""
    scores: dict[str, Any] = {}
    scored = config.log.scored if config.data is None else 0
    began = time.perf_counter()
    seeds = torch.arange(scored or config.log.grid)
    samples = system(seeds, batch_size=min(len(seeds), config.training.batch_size))
    speed = len(seeds) / (time.perf_counter() - began)
    if isinstance(system.codec, AutoencoderCodec):
        originals = torch.stack([dataset[i] for i in range(min(256, len(dataset)))])
        images = originals.float() / 127.5 - 1
        with torch.no_grad():
            decoded = torch.cat(
                [
                    system.codec.decode(system.codec.encode(x.to(system.device))).float().cpu()
                    for x in images.split(16)
                ]
            )
        scores["reconstruction_l1"] = (decoded.clamp(-1, 1) - images).abs().mean().item()
    if scored:
        digits = score_digits(samples, system.labels_of(seeds))._asdict()
        if digits["read_as_asked"] is None:
            del digits["read_as_asked"]
        digits["share_confident_ratio"] = digits["share_confident"] / digits["share_confident_real"]
        scores["digits"] = digits
    skipped = [list(item) for item in dataset.skipped]
    return {
        "scores": scores,
        "samples_per_second": round(speed, 1),
        "parameters": sum(p.numel() for p in system.generator.parameters()),
        "skipped": len(skipped),
        "skipped_images": skipped[:20],
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
