"""The trainer: stages, losses, checkpoints and logs."""

from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.run import train

__all__ = ["Config", "train"]
