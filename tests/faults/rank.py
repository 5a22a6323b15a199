"""A process that torchrun starts: `rank.py FOLDER [RANK]` trains; that of RANK dies on the way."""

import os
import signal
import sys
from pathlib import Path

import torch

from lddgan_kernels.trainer import command, gan_stage, run
from tests.faults.runs import CONFIG


def die() -> None:
    """Kill -9 in the GAN's third step."""
    step = gan_stage.GanStage.step

    def dying(self, index, batch):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, index, batch)

    gan_stage.GanStage.step = dying


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == [os.environ["RANK"]]:
        die()
    folder = Path(sys.argv[1])
    resume = (folder / "config.toml").exists()
    sys.exit(command.run(lambda: run.train(CONFIG, folder, resume=resume)))
