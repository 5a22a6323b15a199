"""The run folder: where its parts lie, and who may write into it."""

import os
from dataclasses import replace
from pathlib import Path

from lddgan_kernels.trainer import config_file, distributed
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.files import write_atomically

# What may be another when a run goes on: where things lie, what is written, how DDPMs are sampled.
FREE = ("data", "start.", "images.workers", "log.", "ddpm.sample")


class RunFolder:
    """Paths of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.log = path / "log.jsonl"
        self.report = path / "report.html"
        self.samples = path / "samples"
        self.statistics = path / "statistics.npz"
        self.latents = path / "latents.bin"
        self.state = path / "checkpoints" / "last.pt"
        self.autoencoder = path / "checkpoints" / "autoencoder.safetensors"
        self.generator = path / "checkpoints" / "generator.safetensors"
        self.best = path / "checkpoints" / "best.safetensors"
        self._locked: int | None = None

    def going_on(self, config: Config) -> Config:
        """The configuration with which the run in the folder goes on.

        It may be made longer, not shorter: the larger number of epochs and steps counts.

        Raises:
            FileNotFoundError: there is no run to resume.
        """
        if not self.config.exists():
            raise FileNotFoundError(f"train: --resume needs a run, got none in {self.path}")
        old = config_file.load(str(self.config))
        steps = max(old.autoencoder_training.steps, config.autoencoder_training.steps)
        return replace(
            config,
            gan=replace(config.gan, epochs=max(old.gan.epochs, config.gan.epochs)),
            ddpm=replace(config.ddpm, epochs=max(old.ddpm.epochs, config.ddpm.epochs)),
            autoencoder_training=replace(config.autoencoder_training, steps=steps),
        )

    def begin(self, config: Config, resume: bool) -> None:
        """Takes the folder for this run: makes it, or checks that the run in it can go on so.

        Until `release`, or the process's end, no other process can.

        Raises:
            FileExistsError: it holds a run or other files, and `resume` is not set.
            ValueError: the run in it has another configuration.
            BlockingIOError: another process trains in it.
        """
        if resume:
            self.check_change(config_file.load(str(self.config)), config)
        elif distributed.rank() == 0 and not self._is_new():
            held = "a run" if self.config.exists() else "other files"
            hint = "; --resume continues it" if held == "a run" else ""
            raise FileExistsError(
                f"train: --out must be a new or empty folder, got {self.path}, which holds "
                f"{held}{hint}"
            )
        if distributed.rank() > 0:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        text = config_file.dump(config).encode()
        if not resume or self.config.read_bytes() != text:
            write_atomically(self.config, lambda file: file.write(text))
        self.samples.mkdir(exist_ok=True)
        self.state.parent.mkdir(exist_ok=True)

    def check_change(self, old: Config, new: Config) -> None:
        """Raises ValueError where the run, of configuration `old`, cannot go on with `new`.

        Beside its length it may log otherwise and find its data elsewhere (pictures are compared by
        their content).
        """
        free = FREE + (() if self.autoencoder.exists() else ("autoencoder_training.steps",))
        changed = [
            f"{name}: {before!r} -> {after!r}"
            for name, before, after in config_file.differences(old, new)
            if not name.startswith((*free, "gan.epochs", "ddpm.epochs"))
        ]
        if changed:
            raise ValueError(
                f"train: --resume must keep the run's configuration, got {'; '.join(changed)}"
            )

    def release(self) -> None:
        """Lets other processes have the folder."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def _is_new(self) -> bool:
        """Whether nothing is in it but what a start that was cut short may have left."""
        if not self.path.exists():
            return True
        left = (self.samples, self.state.parent, self.config.with_name("config.toml.tmp"))
        return self.path.is_dir() and all(
            item in left and (item.is_file() or not any(item.iterdir()))
            for item in self.path.iterdir()
        )

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        self._locked = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise BlockingIOError(f"train: another process trains in {self.path}") from None
        except OSError:  # a file system without locks
            self.release()
