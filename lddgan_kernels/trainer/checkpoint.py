"""How far a run has come: the state of the stage in work, and the length of the log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lddgan_kernels.trainer import distributed, files
from lddgan_kernels.trainer.stage import Stage

KINDS = {"stage": str, "step": int, "state": dict, "seconds": float, "log_size": int}


class Checkpoint:
    """The file that a run goes on from.

    Args:
        path: of the file.
        device: where states are loaded to.

    Attributes:
        seconds: how long the run had worked when the loaded file was written.
        log_size: bytes of the log then.
        facts: what else the loaded file says of its run; {} where it is older than that.
        writes: facts that `save` writes.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.device = device
        self.seconds = 0.0
        self.log_size = 0
        self.facts: dict[str, Any] = {}
        self.writes: dict[str, Any] = {}
        self._loaded: dict[str, Any] | None = None
        self._saved: str | None = None

    def load(self) -> None:
        """Reads the file, if there is one, for `restore`.

        Raises:
            ValueError: it is damaged, or no checkpoint.
        """
        if self.path.exists():
            loaded = files.load_state(self.path, self.device)
            wrong = [key for key, kind in KINDS.items() if not isinstance(loaded.get(key), kind)]
            if wrong:
                raise ValueError(
                    f"checkpoint: {self.path} must be a run's checkpoint, but lacks "
                    f"{', '.join(wrong)}"
                )
            self._loaded, self.facts = loaded, loaded.get("facts", {})
            self.seconds, self.log_size = loaded["seconds"], loaded["log_size"]

    @property
    def stage(self) -> str | None:
        """The stage of the loaded file, until it is restored."""
        return self._loaded["stage"] if self._loaded else None

    def restore(self, stage: Stage) -> int:
        """Puts a stage where its checkpoint was; returns the steps that it has made.

        Raises:
            ValueError: the state is another stage's or network's, or not finite.
        """
        loaded = self._loaded
        if loaded is None or loaded["stage"] != stage.name:
            return 0
        state = loaded["state"]
        try:
            stage.restore(state)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"checkpoint: {self.path} must hold the state of this run's stage {stage.name}, "
                f"got {reason}"
            ) from error
        files.check_finite(self.path, {name: state[name] for name in stage.modules()})
        self._loaded = None
        return loaded["step"]

    def save(self, stage: Stage, step: int, seconds: float, log_size: int) -> None:
        """Writes the state of a stage after so many steps; rank 0 alone writes.

        Raises:
            OSError: it could not be written; the one before stays.
        """
        if distributed.rank() == 0:
            state: Mapping[str, Any] = {
                "stage": stage.name,
                "step": step,
                "state": stage.state(),
                "seconds": seconds,
                "log_size": log_size,
                "facts": self.writes,
            }
            files.save_state(self.path, state)
        self._loaded = None
        self._saved = f"{self.path} of step {step} of stage {stage.name}"
        distributed.wait()

    def last_good(self) -> str:
        """Where training can go on from."""
        saved = self._saved or (str(self.path) if self.path.exists() else None)
        return f"the last good checkpoint is {saved}" if saved else "no checkpoint was written yet"
