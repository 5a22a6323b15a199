"""Reading published checkpoints: tensors only, never code."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Classes that training frameworks leave in checkpoints beside the weights. Empty stand-ins take
# their place, so neither they nor their modules are ever imported.
BYSTANDERS = ("pytorch_lightning.", "lightning.", "omegaconf.", "argparse.Namespace")

# Where a checkpoint of a whole training run keeps its networks.
WRAPPERS = ("state_dict", "netG_dict", "netD_dict")


class Bystander(dict[Any, Any]):
    """Stands in for an object that is not needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Drops the state."""


def read_state_dict(
    checkpoint: str | Path | Mapping[str, Any], discriminator: bool
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under their names, without `module.` prefixes.

    Args:
        checkpoint: a path (`.safetensors`, or any file of `torch.save`), or what it would hold: a
            state dict, or a training run's dict with one inside.
        discriminator: which of a GAN training run's two networks is meant.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is truncated, no checkpoint, or
            holds Python objects that could run code.
    """
    content = _read(Path(checkpoint)) if isinstance(checkpoint, str | Path) else checkpoint
    if not isinstance(content, Mapping):
        raise ValueError(
            f"load_published: checkpoint must hold a dict of tensors, got {type(content).__name__}"
        )
    unwanted = "netG_dict" if discriminator else "netD_dict"
    for wrapper in WRAPPERS:
        if wrapper != unwanted and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        names = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ValueError(f"load_published: checkpoint must hold tensors, got {names}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"load_published: checkpoint {path} is not a file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"load_published: {path} is truncated or no safetensors file: {error}"
            ) from error
    try:
        with torch.serialization.safe_globals(_stand_ins(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", str(error))
        what = f"refers to {found[1]}" if found else "is truncated, no checkpoint, or holds objects"
        raise ValueError(
            f"load_published: {path} must hold tensors only, but {what}, which could run code; "
            "nothing of it was loaded"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(
            f"load_published: {path} is truncated or no PyTorch checkpoint: {reason}"
        ) from error


def _stand_ins(path: Path) -> list[Any]:
    """(stand-in, name) for each bystander that the file refers to."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return []  # not a zip archive, or a broken one: torch.load says more
    return [(Bystander, name) for name in names if name.startswith(BYSTANDERS)]
