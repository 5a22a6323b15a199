"""Trained systems to share: from a folder or a model hub, to a folder or a hub.

    from lddgan_kernels.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained("runs/digits")
    images = pipeline(torch.arange(16))
    threes = pipeline(torch.arange(16), labels=torch.full((16,), 3))  # of a run with labels
    pipeline.save_pretrained("mine")

A shared folder holds `generator.safetensors`, for LDDGAN `autoencoder.safetensors`, `config.toml`,
the card `README.md`, `scores.json` and `samples.png`. Nothing in it is executed.
"""

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.card import model_card, read_scores
from lddgan_kernels.trainer.files import write_atomically
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.pictures import grid, save_png
from lddgan_kernels.trainer.system import System

WEIGHTS = ("generator.safetensors", "autoencoder.safetensors")
SHARED = (*WEIGHTS, "config.toml", "scores.json", "README.md", "samples.png")


class Pipeline:
    """pipeline(seeds): images of a trained system. Made by `from_pretrained`.

    Args:
        system: what draws.
        weights: the folder of its files of weights.
        scores: of its run, for the card.
    """

    def __init__(self, system: System, weights: Path, scores: dict[str, Any]) -> None:
        self.system = system
        self.scores = scores
        self._weights = weights

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        guidance: float = 0.0,
        revision: str | None = None,
        token: str | None = None,
    ) -> "Pipeline":
        """A system from a run folder, a folder that `save_pretrained` wrote, or a hub.

        Args:
            source: the folder; where there is none, "owner/name" on the hub (extra `hub`).
            device: where to draw.
            guidance: by the class, at each step, of a system with labels.
            revision: of the hub's repository.
            token: for the hub; None: what its own login stored.

        Raises:
            FileNotFoundError: there is neither such a folder nor such a name.
            ValueError: a file is damaged or none of this package.
            ImportError: the extra is missing.
        """
        folder = Path(source).expanduser()
        if not folder.is_dir():
            folder = _download(str(source), revision, token)
        run = RunFolder(folder)
        weights = (
            folder if any((folder / name).exists() for name in WEIGHTS) else folder / "checkpoints"
        )
        if not any((weights / name).exists() for name in WEIGHTS):
            raise FileNotFoundError(f"Pipeline: source must hold {WEIGHTS[0]}, got {folder}")
        stored = folder / "scores.json"
        scores = _scores(stored) if stored.exists() else read_scores(run.log)
        system = load_system(weights / WEIGHTS[0], device, guidance=guidance)
        return cls(system, weights, scores)

    def __call__(self, seeds: Tensor, batch_size: int = 64, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) uint8 on the CPU.

        Args:
            seeds: (N,) int64.
            batch_size: drawn at once.
            labels: (N,) int64, the class of each; None: each seed's own, its remainder.

        Raises:
            ValueError: there is no such class.
        """
        return self.system(seeds, batch_size, labels)

    def save_pretrained(self, folder: str | os.PathLike[str], *, name: str | None = None) -> None:
        """Writes weights, configuration, card, scores and a picture of the first 16 samples.

        Args:
            folder: a new or empty one, or one that this wrote.
            name: what the card tells people to load; the folder's by default.

        Raises:
            FileExistsError: the folder holds something else.
        """
        out = Path(folder).expanduser()
        foreign = [p.name for p in out.iterdir() if p.name not in SHARED] if out.is_dir() else []
        if foreign or (out.exists() and not out.is_dir()):
            held = f", which holds {foreign[0]}" if foreign else ""
            raise FileExistsError(f"Pipeline: folder must be a new or empty one, got {out}{held}")
        out.mkdir(parents=True, exist_ok=True)
        config = self.system.config
        parameters = sum(p.numel() for p in self.system.generator.parameters())
        texts = {
            "config.toml": config_file.dump(config),
            "scores.json": json.dumps(self.scores, indent=1) + "\n",
            "README.md": model_card(config, parameters, self.scores, name or out.name),
        }
        files = {name: text.encode() for name, text in texts.items()}
        for weights in WEIGHTS:
            if (self._weights / weights).exists():
                files[weights] = (self._weights / weights).read_bytes()
        save_png(out / "samples.png", grid(self(torch.arange(16))))
        for file_name, data in files.items():
            write_atomically(out / file_name, partial(_write, data))

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads what `save_pretrained` writes; returns the address of the commit.

        Args:
            repo_id: "owner/name"; made where there is none.
            private: whether a new repository is private.
            token: for the hub; None: what its own login stored.

        Raises:
            ImportError: the extra `hub` is missing.
        """
        hub = _hub()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id)
            hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
            return str(
                hub.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    token=token,
                    commit_message="Upload a system of lddgan_kernels",
                )
            )


def _scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Pipeline: {path} must be JSON, got {error}") from None
    if not isinstance(scores, dict):
        raise ValueError(f"Pipeline: {path} must hold a table, got {type(scores).__name__}")
    return scores


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            "Pipeline: the hub needs huggingface_hub: pip install 'lddgan_kernels[hub]'"
        ) from None
    return huggingface_hub


def _download(source: str, revision: str | None, token: str | None) -> Path:
    """The folder of a hub's repository: its known files alone."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f'Pipeline: source must be a folder, or "owner/name" on the hub, got {source}'
        )
    options = {"revision": revision, "token": token, "allow_patterns": list(SHARED)}
    return Path(_hub().snapshot_download(source, **options))
