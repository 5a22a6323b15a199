"""`python -m lddgan_kernels.sample`: images from a trained run.

    python -m lddgan_kernels.sample --run runs/digits --seeds 0-63 --out samples/

A seed gives the same image at any batch size.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from lddgan_kernels.trainer import command
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.load import load_sampler
from lddgan_kernels.trainer.pictures import grid, save_png


@dataclass(frozen=True)
class Options:
    """Draws samples."""

    run: Path | None = None
    """The run folder."""
    checkpoint: Path | None = None
    """Or a generator.safetensors; its autoencoder lies beside it."""
    seeds: str = "0-63"
    """Which samples: "0-63", "7", "0-9,42"."""
    out: Path = Path("samples")
    """Folder of the images."""
    grid: bool = True
    """Write all into one picture, grid.png."""
    images: bool = True
    """Write each as SEED.png."""
    batch_size: int = 64
    """Samples at once."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to sample."""


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        found = []
    if not found:
        raise ValueError(f'sample: seeds must be like "0-63" or "1,5,7", got {text!r}')
    return found


def draw(options: Options) -> None:
    """Writes the samples of `options`."""
    if (options.run is None) == (options.checkpoint is None):
        raise ValueError("sample: either --run or --checkpoint must be given")
    if options.batch_size < 1:
        raise ValueError(f"sample: batch_size must be positive, got {options.batch_size}")
    seeds = parse_seeds(options.seeds)
    path = options.checkpoint or RunFolder(options.run or Path()).generator
    sampler = load_sampler(path, options.device)
    began = time.perf_counter()
    images = sampler(torch.tensor(seeds), options.batch_size)
    speed = len(seeds) / (time.perf_counter() - began)
    if options.images:
        for seed, image in zip(seeds, images, strict=True):
            save_png(options.out / f"{seed}.png", image)
    if options.grid:
        save_png(options.out / "grid.png", grid(images))
    print(f"{len(seeds)} samples -> {options.out}, {speed:.1f} a second")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = tyro.cli(Options, args=arguments)
    return command.run(lambda: draw(options))


if __name__ == "__main__":
    sys.exit(main())
