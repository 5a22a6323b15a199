"""`python -m lddgan_kernels.sample`: images from a trained run, or from a published checkpoint.

    python -m lddgan_kernels.sample --run runs/digits --seeds 0-63 --out samples/
    python -m lddgan_kernels.sample --run runs/digits-ddpm --sampler dpm++ --steps 20
    python -m lddgan_kernels.sample --published netG_1200.pth --options ddgan.json
    python -m lddgan_kernels.sample --published netG_950.pth --options lddgan.toml \\
        --autoencoder 16x16x4_551.ckpt --autoencoder-options autoencoder.json

A seed gives the same image at any batch size. Images are written as they are drawn; the same
command goes on where it was stopped. Under `torchrun` the processes share the seeds.
"""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from lddgan_kernels._checks import check_device
from lddgan_kernels.trainer import command, distributed
from lddgan_kernels.trainer.animation import AnimationFormat, write_animation
from lddgan_kernels.trainer.open_system import SystemOptions, open_system
from lddgan_kernels.trainer.pictures import grid, save_png
from lddgan_kernels.trainer.samples import Sample, draw, read_samples, write_samples
from lddgan_kernels.trainer.system import System

GRID_OF = 256
MOST_SEEDS = 10**7


@dataclass(frozen=True, kw_only=True)
class Options(SystemOptions):
    """Draws samples."""

    seeds: str = "0-63"
    """Which samples: "0-63", "7", "0-9,42"."""
    classes: str | None = None
    """Of a run with labels, classes to draw each seed of, likewise; left out: one a seed."""
    out: Path = Path("samples")
    """Folder of the images."""
    grid: bool = True
    """Also write the first 256 into one picture, grid.png, which evaluate does not count."""
    images: bool = True
    """Write each as SEED.png."""
    batch_size: int = 64
    """Samples at once."""
    animation: AnimationFormat | None = None
    """Write the way from seed to seed and back as animation.webp, .gif or .png, not the samples."""
    frames: int = 24
    """Of the animation, from a seed to the next."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to sample."""


def parse_seeds(text: str, what: str = "seeds") -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        seeds = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if seeds.start >= seeds.stop:
            raise ValueError(f'sample: {what} must be like "0-63" or "1,5,7", got {text!r}')
        if seeds.stop > 2**63 or seeds.stop - seeds.start > MOST_SEEDS:
            raise ValueError(
                f"sample: {what} must be below 2^63 and at most {MOST_SEEDS}, got {text!r}"
            )
        found += seeds
    return found


def load(options: Options) -> System:
    """The system that the options name."""
    return open_system("sample", options, options.device)


def chosen(options: Options, classes: int) -> list[Sample]:
    """What is to be drawn of a system with so many classes."""
    seeds = parse_seeds(options.seeds)
    if options.classes is None:
        return [Sample(seed) for seed in seeds]
    labels = list(dict.fromkeys(parse_seeds(options.classes, "classes")))
    if max(labels) >= classes:
        there = f"in 0..{classes - 1}" if classes else "left out for a run without labels"
        raise ValueError(f"sample: classes must be {there}, got {max(labels)}")
    return [Sample(seed, label) for label in labels for seed in seeds]


def write(options: Options) -> None:
    """Writes the samples of `options`."""
    if not 1 <= options.batch_size <= MOST_SEEDS:
        raise ValueError(f"sample: batch_size must be in 1..{MOST_SEEDS}, got {options.batch_size}")
    parse_seeds(options.seeds)
    out = options.out.expanduser()
    if out.exists() and not out.is_dir():
        raise ValueError(f"sample: out must be a folder, got the file {out}")
    system = load(options)
    samples = chosen(options, system.config.classes)
    if options.animation is not None:
        path = out / f"animation.{options.animation}"
        if distributed.rank() == 0:
            count, size = options.frames, options.batch_size
            drawn = write_animation(system, samples, path, frames=count, batch_size=size)
            print(f"{drawn} frames -> {path}")
        return
    began = time.perf_counter()
    shown = samples[:GRID_OF]
    if options.images:
        drawn = write_samples(system, samples, out, options.batch_size)
    else:
        drawn = len(shown)
        images = draw(system, shown, options.batch_size)
    if distributed.rank() > 0:
        return
    speed = drawn / (time.perf_counter() - began)
    if options.grid:
        save_png(out / "grid.png", grid(read_samples(out, shown) if options.images else images))
    there = len(samples) - drawn
    kept = f", {there} were there" if options.images and there else ""
    print(f"{len(samples)} samples -> {out}, {speed:.1f} a second{kept}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m lddgan_kernels.sample")

    def work() -> None:
        check_device("sample", options.device)
        with distributed.processes(options.device) as device:
            write(replace(options, device=str(device)))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
