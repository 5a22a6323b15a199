"""`python -m lddgan_kernels.train`: from images to samples with one command.

    python -m lddgan_kernels.train
    python -m lddgan_kernels.train --preset cifar10 --data cifar10 --out runs/cifar10
    torchrun --nproc-per-node 8 -m lddgan_kernels.train --preset celebahq256 --data celeba.zip

trains the autoencoder, caches the latents, trains the diffusion GAN and ends with samples, scores
and `report.html` in the run folder. Ctrl-C leaves a checkpoint; `--resume` goes on from it.
"""

import sys
from collections.abc import Sequence
from typing import Any

from lddgan_kernels.trainer import command
from lddgan_kernels.trainer.run import train


def describe(summary: dict[str, Any]) -> str:
    """The end of a run, for a person."""
    scores = summary["scores"]
    lines = []
    if "reconstruction_l1" in scores:
        lines.append(f"reconstruction: L1 {scores['reconstruction_l1']:.4f}")
    if "digits" in scores:
        digits = scores["digits"]
        lines += [
            f"read with p > 0.9: {digits['share_confident']:.3f} of the samples, "
            f"{digits['share_confident_real']:.3f} of held-out real digits "
            f"(ratio {digits['share_confident_ratio']:.3f}), "
            f"{digits['share_confident_blends']:.3f} of blends, "
            f"{digits['share_confident_noise']:.3f} of noise",
            "share of each digit: "
            + " ".join(f"{i}:{share:.3f}" for i, share in enumerate(digits["digit_shares"])),
            *(
                "read as the class asked for: "
                + " ".join(f"{i}:{share:.3f}" for i, share in enumerate(shares))
                for shares in (digits.get("read_as_asked"),)
                if shares
            ),
            "distance to the nearest training image: "
            f"{digits['nearest_distance_ratio']:.3f} of that of held-out digits",
        ]
    if summary["skipped"]:
        lines.append(f"{summary['skipped']} images could not be used:")
        lines += [f"  {name}: {reason}" for name, reason in summary["skipped_images"]]
    lines.append(f"{summary['samples_per_second']:.1f} samples a second")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        options, out = command.parse("train", str(__doc__), arguments)
        summary = train(options.config, out, resume=options.resume, device=options.device)
        if summary is not None:
            print(describe(summary))
            print(f"report: {out / 'report.html'}")

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
