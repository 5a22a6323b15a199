"""Files that are whole or absent: training states, weights, reports."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a file that takes the name `path` once it is whole and on the disk.

    Raises:
        OSError: it could not be written, such as on a full disk; what `path` held before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else error
        kept = "; the file there before is kept" if path.exists() else ""
        raise OSError(f"checkpoint: {path} could not be written: {reason}{kept}") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state: nested dicts and lists of tensors, numbers and strings."""
    write_atomically(path, lambda file: torch.save(dict(state), file))


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a training state; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: path must be an existing file, got {path}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint: {path} must be a whole training state: {error}") from error


def save_weights(path: Path, module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Writes a module's weights as safetensors, `facts` (JSON values) in its metadata."""
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    write_atomically(path, lambda file: file.write(save(tensors, metadata)))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, facts) of a safetensors file that `save_weights` wrote.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"checkpoint: path must be an existing file, got {path}")
    try:
        with safe_open(path, "pt") as file:
            facts = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} must be whole safetensors: {error}") from error
    return tensors, facts
