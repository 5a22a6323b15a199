"""The run folder: configuration, checkpoints, and who may write into it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lddgan_kernels.trainer import checkpoint, config_file, distributed
from lddgan_kernels.trainer.config import Config

if TYPE_CHECKING:
    from lddgan_kernels.trainer.logging import RunLog
    from lddgan_kernels.trainer.loop import Stage


class RunFolder:
    """Paths of a run, and its checkpoint of the stage in work.

    Args:
        path: the folder.
        device: where checkpoints are loaded to.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.device = device
        self.config = path / "config.toml"
        self.log = path / "log.jsonl"
        self.report = path / "report.html"
        self.samples = path / "samples"
        self.latents = path / "latents.bin"
        self.state = path / "checkpoints" / "last.pt"
        self.autoencoder = path / "checkpoints" / "autoencoder.safetensors"
        self.generator = path / "checkpoints" / "generator.safetensors"
        self._loaded: dict[str, Any] | None = None
        self._saved: str | None = None

    def begin(self, config: Config, resume: bool) -> None:
        """Makes the folder, or goes on with the run in it.

        Raises:
            FileExistsError: it holds a run or other files, and `resume` is not set.
            FileNotFoundError: there is no run to resume.
            ValueError: the run in it has another configuration.
        """
        if resume:
            if not self.config.exists():
                raise FileNotFoundError(f"train: --resume needs a run, got none in {self.path}")
            changed = config_file.differences(config_file.load(str(self.config)), config)
            if changed:
                raise ValueError(
                    f"train: --resume must keep the run's configuration, got {'; '.join(changed)}"
                )
            if self.state.exists():
                self._loaded = checkpoint.load_state(self.state, self.device)
            return
        if distributed.rank() > 0:
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            held = "a run" if self.config.exists() else "other files"
            hint = "; --resume continues it" if held == "a run" else ""
            raise FileExistsError(
                f"train: --out must be a new or empty folder, got {self.path}, which holds "
                f"{held}{hint}"
            )
        self.samples.mkdir(parents=True, exist_ok=True)
        self.state.parent.mkdir(exist_ok=True)
        self.config.write_text(config_file.dump(config))

    @property
    def seconds(self) -> float:
        """How long the run had worked when its checkpoint was written."""
        return self._loaded["seconds"] if self._loaded else 0.0

    @property
    def log_size(self) -> int:
        """Bytes of the log when the checkpoint was written."""
        return self._loaded["log_size"] if self._loaded else 0

    def restore(self, stage: "Stage") -> int:
        """Puts a stage where its checkpoint was; returns the steps that it has made."""
        loaded = self._loaded
        if loaded is None or loaded["stage"] != stage.name:
            return 0
        stage.restore(loaded["state"])
        self._loaded = None
        return loaded["step"]

    def save(self, stage: "Stage", step: int, log: "RunLog") -> None:
        """Writes the checkpoint of a stage after so many steps; rank 0 alone writes.

        Raises:
            OSError: it could not be written; the one before stays.
        """
        if distributed.rank() == 0:
            checkpoint.save_state(
                self.state,
                {
                    "stage": stage.name,
                    "step": step,
                    "state": stage.state(),
                    "seconds": log.seconds(),
                    "log_size": log.size(),
                },
            )
        self._loaded = None
        self._saved = f"{self.state} of step {step} of stage {stage.name}"
        distributed.wait()

    def last_good(self) -> str:
        """Where training can go on from."""
        saved = self._saved or (str(self.state) if self.state.exists() else None)
        return f"the last good checkpoint is {saved}" if saved else "no checkpoint was written yet"
