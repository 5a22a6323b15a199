"""Files that are whole or absent, and checked on reading: training states, weights, reports."""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

# After the end of a state: this, and the 32 hexadecimal digits of a hash of all before.
TRAILER = b"\nblake2b:"
TRAILER_SIZE = len(TRAILER) + 32


class _Hashed:
    """A file that hashes what is written to it, and remembers why it could not be.

    (PyTorch's writer reports a full disk as a RuntimeError of its own.)
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.blake2b(digest_size=16)
        self.failed: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.failed = error
            raise
        self.hash.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Lets `write` fill a file that takes the name `path` once it is whole and on the disk.

    Raises:
        OSError: it could not be written, such as on a full disk; what `path` held before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    hashed: _Hashed | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            hashed = _Hashed(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        failed = error if isinstance(error, OSError) else None if hashed is None else hashed.failed
        if failed is None:
            raise
        reason = "no space left on the disk" if failed.errno == errno.ENOSPC else failed
        kept = "; the file there before is kept" if path.exists() else ""
        raise OSError(f"checkpoint: {path} could not be written: {reason}{kept}") from error


def _sync_folder(folder: Path) -> None:
    """The new name on the disk, too; where folders cannot be synchronized, it comes later."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state: nested dicts and lists of tensors, numbers and strings."""

    def write(file: _Hashed) -> None:
        torch.save(dict(state), cast(BinaryIO, file))
        file.write(TRAILER + file.hash.hexdigest().encode())

    write_atomically(path, write)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a training state; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged, or something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: path must be an existing file, got {path}")
    checked = _check_trailer(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint: {path} must be a whole training state: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(
            f"checkpoint: {path} must be a whole training state, got a {type(state).__name__}"
        )
    if not checked:
        _warn_unchecked(path)
    return state


def _check_trailer(path: Path) -> bool:
    """Whether the file has a checksum; raises ValueError where it does not fit."""
    left = path.stat().st_size - TRAILER_SIZE
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
        trailer = file.read()
    if not trailer.startswith(TRAILER):
        return False
    if trailer[len(TRAILER) :] != found.hexdigest().encode():
        raise _damaged(path, "training state")
    return True


def save_weights(path: Path, module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Writes a module's weights as safetensors, `facts` (JSON values) in its metadata."""
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    metadata["checksum"] = json.dumps(_checksum(tensors, metadata))
    write_atomically(path, lambda file: file.write(save(tensors, metadata)))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, facts) of a safetensors file that `save_weights` wrote.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged, holds numbers that are not
            finite, or is another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"checkpoint: path must be an existing file, got {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = metadata.pop("checksum", None)
        if checksum is not None and json.loads(checksum) != _checksum(tensors, metadata):
            raise _damaged(path, "safetensors")
        facts = {name: json.loads(value) for name, value in metadata.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"checkpoint: {path} must be whole safetensors: {error}") from error
    if checksum is None:
        _warn_unchecked(path)
    check_finite(path, tensors)
    return tensors, facts


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads a state dict from the file `path`.

    Raises:
        ValueError: it is another network's.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        kind = type(module).__name__
        raise ValueError(f"checkpoint: {path} must hold weights of this {kind}: {first}") from None


def check_finite(path: Path, tensors: Mapping[str, Any]) -> None:
    """Raises ValueError where a tensor, also in a nested dict, holds NaN or an infinity."""
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            check_finite(path, value)
        elif isinstance(value, Tensor) and not value.isfinite().all():
            raise ValueError(f"checkpoint: {path} must hold finite weights, got {name} with others")


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file of weights says."""
    found = hashlib.blake2b(json.dumps(dict(metadata), sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _damaged(path: Path, kind: str) -> ValueError:
    return ValueError(
        f"checkpoint: {path} must be a whole {kind}, but was damaged since it was written: its "
        "checksum does not fit"
    )


def _warn_unchecked(path: Path) -> None:
    warnings.warn(f"{path} has no checksum (an older file): damage would not be seen", stacklevel=3)
