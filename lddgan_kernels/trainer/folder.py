"""The run folder: where its parts lie, and who may write into it."""

from pathlib import Path

from lddgan_kernels.trainer import config_file, distributed
from lddgan_kernels.trainer.config import Config


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
        self.latents = path / "latents.bin"
        self.state = path / "checkpoints" / "last.pt"
        self.autoencoder = path / "checkpoints" / "autoencoder.safetensors"
        self.generator = path / "checkpoints" / "generator.safetensors"

    def begin(self, config: Config, resume: bool) -> None:
        """Makes the folder, or checks that the run in it can go on with this configuration.

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
