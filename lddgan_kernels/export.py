"""`python -m lddgan_kernels.export`: a trained system as a file for other programs.

    python -m lddgan_kernels.export --run runs/digits --format onnx
    python -m lddgan_kernels.export --run runs/cifar10 --part generator --format aoti --out g.pt2

`pt2` is a torch.export program, `aoti` one compiled by AOTInductor, `onnx` for onnxruntime and its
like. The sampler takes int64 seeds and returns images of about [-1, 1]: those that `sample` draws.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from lddgan_kernels._checks import check_device
from lddgan_kernels.trainer import command
from lddgan_kernels.trainer.exports import Format, PartName, export
from lddgan_kernels.trainer.open_system import SystemOptions, open_system

SUFFIXES = {"pt2": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class Options(SystemOptions):
    """Exports a system or a part of it, in float32, for batches of any size."""

    format: Format = "pt2"
    """torch.export's, AOTInductor's or ONNX."""
    part: PartName = "sampler"
    """All from seeds to images; the generator's one call; or what turns its outputs into images."""
    out: Path | None = None
    """The file; PART.pt2, PART.aoti.pt2 or PART.onnx by default."""
    portable: bool = False
    """In PyTorch's operators alone: it then runs without lddgan_kernels. Always so for ONNX."""
    device: str = "cpu"
    """What the file is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m lddgan_kernels.export")

    def work() -> None:
        check_device("export", options.device)
        system = open_system("export", options, options.device)
        out = options.out or Path(options.part + SUFFIXES[options.format])
        for line in export(system, options.part, options.format, out, portable=options.portable):
            print(line)

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
