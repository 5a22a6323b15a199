"""A small LDDGAN on the embedded digits: trained, sampled and saved to share.

    python examples/train_and_sample.py [FOLDER] [--quick]

Digits worth looking at take `python -m lddgan_kernels.train`; this shows the calls.
"""

import sys
import tempfile
from pathlib import Path

import torch

from lddgan_kernels import train
from lddgan_kernels.pipeline import Pipeline


def main() -> None:
    given = [argument for argument in sys.argv[1:] if argument != "--quick"]
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given[0]) if given else Path(temporary)
        steps, epochs, limit = ("5", "1", "32") if quick else ("200", "20", "1000")
        arguments = ["--out", str(folder / "run"), "--device", "cpu", "--log.scored", "0"]
        arguments += ["--autoencoder-training.steps", steps, "--gan.epochs", epochs]
        arguments += ["--limit", limit, "--log.grid", "4"]
        if train.main(arguments) != 0:
            sys.exit(1)
        pipeline = Pipeline.from_pretrained(folder / "run")
        images = pipeline(torch.arange(4))
        pipeline.save_pretrained(folder / "shared")
        again = Pipeline.from_pretrained(folder / "shared")(torch.arange(4))
        assert torch.equal(images, again)
        files = sorted(path.name for path in (folder / "shared").iterdir())
        print(f"{tuple(images.shape)} uint8; to share: {', '.join(files)}")


if __name__ == "__main__":
    main()
