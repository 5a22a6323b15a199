"""`python -m lddgan_kernels.encode`: the latents of a data set.

    python -m lddgan_kernels.encode --run runs/cifar10 --data photos.zip --out latents.bin

encodes images with a run's autoencoder into a memory-mapped file; encoding that was cut short goes
on where it stopped. Under `torchrun` the processes share the batches, and the file is the same.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from lddgan_kernels._checks import check_device, fail
from lddgan_kernels.trainer import command, distributed
from lddgan_kernels.trainer.latents import encode_images


@dataclass(frozen=True)
class Options:
    """Encodes images with a run's autoencoder."""

    run: Path
    """The run folder."""
    out: Path
    """The file to write; its description goes to OUT.json."""
    data: str | None = None
    """Images as for train; left out: the run's own."""
    limit: int | None = None
    """At most this many images."""
    batch_size: int = 64
    """Images at once."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to encode."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m lddgan_kernels.encode")

    def work() -> None:
        check_device("encode", options.device)
        if options.out.is_dir():
            raise fail("encode", "out", "a file", f"the folder {options.out}")
        if options.batch_size < 1:
            raise fail("encode", "batch_size", "at least 1", options.batch_size)
        with distributed.processes(options.device) as device:
            cache, skipped = encode_images(
                options.run,
                options.out,
                data=options.data,
                limit=options.limit,
                batch_size=options.batch_size,
                device=device,
            )
            if distributed.rank() > 0:
                return
        print(f"{len(cache)} images -> {options.out}, {tuple(cache.shape)} {cache.dtype}")
        print(f"largest |latent| {cache.abs_max:.4g}; {len(skipped)} images skipped")
        for name, reason in skipped[:20]:
            print(f"  {name}: {reason}")

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
