"""How far a run has come: the state of the stage in work, and the length of the log."""

from pathlib import Path
from typing import Any

import torch

from lddgan_kernels.trainer import distributed, files
from lddgan_kernels.trainer.stage import Stage


class Checkpoint:
    """The file that a run goes on from.

    Args:
        path: of the file.
        device: where states are loaded to.

    Attributes:
        seconds: how long the run had worked when the loaded file was written.
        log_size: bytes of the log then.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.device = device
        self.seconds = 0.0
        self.log_size = 0
        self._loaded: dict[str, Any] | None = None
        self._saved: str | None = None

    def load(self) -> None:
        """Reads the file, if there is one, for `restore`.

        Raises:
            ValueError: it is damaged.
        """
        if self.path.exists():
            self._loaded = files.load_state(self.path, self.device)
            self.seconds, self.log_size = self._loaded["seconds"], self._loaded["log_size"]

    def restore(self, stage: Stage) -> int:
        """Puts a stage where its checkpoint was; returns the steps that it has made."""
        loaded = self._loaded
        if loaded is None or loaded["stage"] != stage.name:
            return 0
        stage.restore(loaded["state"])
        self._loaded = None
        return loaded["step"]

    def save(self, stage: Stage, step: int, seconds: float, log_size: int) -> None:
        """Writes the state of a stage after so many steps; rank 0 alone writes.

        Raises:
            OSError: it could not be written; the one before stays.
        """
        if distributed.rank() == 0:
            state = {"stage": stage.name, "step": step, "state": stage.state()}
            files.save_state(self.path, state | {"seconds": seconds, "log_size": log_size})
        self._loaded = None
        self._saved = f"{self.path} of step {step} of stage {stage.name}"
        distributed.wait()

    def last_good(self) -> str:
        """Where training can go on from."""
        saved = self._saved or (str(self.path) if self.path.exists() else None)
        return f"the last good checkpoint is {saved}" if saved else "no checkpoint was written yet"
