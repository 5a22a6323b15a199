"""A data set's latents, encoded once and read from a file."""

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lddgan_kernels._checks import fail
from lddgan_kernels.data.batches import PixelCache, epoch_order
from lddgan_kernels.data.file_array import FileArray
from lddgan_kernels.data.images import ImageDataset
from lddgan_kernels.data.share import ALONE, Share, encode_together, merge_bad

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def weights_fingerprint(module: nn.Module) -> str:
    """A short hash of a module's parameters and buffers: names, shapes, dtypes and values.

    `latent_scale` does not count: it is measured on the latents, which are cached unscaled.
    """
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        if name.split(".")[-1] == "latent_scale":
            continue
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


class LatentCache:
    """Latents (N, flips, C, H, W) in one file, with what they were made from.

    `path` holds the numbers, `path.json` the shape, dtype, the autoencoder's fingerprint, the
    identity of the data set (a hash of its pictures), the largest magnitude, `abs_max` (which the
    GAN's latents are divided by), `stand_ins` ([index, the picture that came for a bad one]), and a
    checksum of all that. Made by `create`, found again by
    `open`.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.shape: tuple[int, ...] = tuple(facts["shape"])
        self.dtype = DTYPES[facts["dtype"]]
        self.abs_max = float(facts["abs_max"])
        self.dataset: dict[str, Any] = facts["dataset"]
        self.stand_ins: list[list[int]] = facts.get("stand_ins", [])
        # An item is an image one way round, as bytes.
        self._file = _open_items(path, self.shape[0] * self.shape[1], self.shape[2:], self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def latents(self) -> Tensor:
        """All of them, read anew."""
        return self._read(range(len(self._file))).view(self.shape)

    def _read(self, items: Sequence[int]) -> Tensor:
        """(B, C, H, W) as stored."""
        read = torch.from_numpy(self._file.items(items))
        return read.view(self.dtype).view(-1, *self.shape[2:])

    @classmethod
    def create(
        cls,
        path: str | Path,
        dataset: ImageDataset | PixelCache,
        encode: Callable[[Tensor], Tensor],
        fingerprint: str,
        *,
        flip: bool,
        batch_size: int = 64,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
        workers: int = 0,
        share: Share = ALONE,
    ) -> "LatentCache":
        """Opens the cache at `path` if it was made from these, else encodes the data set.

        encode: (B, C, H, W) float32 in [-1, 1] on `device` -> latents (B, c, h, w), unscaled.
        fingerprint: of the autoencoder, `weights_fingerprint`.
        flip: also encode each image mirrored.
        share: the processes that call this; batches are as in one, and so are the latents. Rank 0
            writes.

        Encoding that was cut short goes on where it stopped; the file appears under its name only
        when whole. What is there but is damaged, or was made from other pictures or by another
        autoencoder, is made anew, with a warning. Raises OSError where the disk has too little
        room, before encoding, or another process is encoding into `path`, and ValueError for
        latents that are not finite in `dtype`.
        """
        path = Path(path)
        names = [name for name, known in DTYPES.items() if known == dtype]
        if not names:
            raise fail("LatentCache", "dtype", ", ".join(DTYPES), dtype)
        found = cls._find(path, dataset, fingerprint, dtype, flip) if share.rank == 0 else None
        if share.gather(torch.tensor([found is not None]))[0]:
            return found or cls.open(path, fingerprint)
        shape = _latent_shape(dataset, encode, flip, device)
        facts: dict[str, Any] = {
            "shape": shape,
            "dtype": names[0],
            "fingerprint": fingerprint,
            "dataset": _describe(dataset),
        }
        part = path.with_name(path.name + ".part")
        there = min(shape[0], _resumable(part, facts)) if share.rank == 0 else 0
        first = int(share.gather(torch.tensor([there]))[0])
        starts = range(first, shape[0], batch_size)
        batches = [range(i, min(i + batch_size, shape[0])) for i in starts]
        whole = torch.empty(batch_size, *shape[1:], dtype=dtype)

        def encode_flips(images: Tensor) -> Tensor:
            return _encode_flips(images, encode, flip, device)

        latents = encode_together(dataset, encode_flips, batches, whole, workers, share)
        if share.rank == 0:
            _write(path, facts, first, latents)
            merge_bad(dataset, share)
            facts["abs_max"] = _abs_max(_open_items(part, shape[0], shape[1:], dtype), dtype)
            facts["stand_ins"] = _stand_ins(dataset)
            facts["checksum"] = _checksum(part, facts)
            _sidecar(path).unlink(missing_ok=True)
            part.replace(path)
            _write_json(_sidecar(path), facts)
            _sidecar(part).unlink()
            _sums(part).unlink()
        else:
            deque(latents, maxlen=0)
            merge_bad(dataset, share)
        share.gather(torch.zeros(1))  # the file is there
        return cls(path, facts) if share.rank == 0 else cls.open(path, fingerprint)

    @classmethod
    def _find(
        cls,
        path: Path,
        dataset: ImageDataset | PixelCache,
        fingerprint: str,
        dtype: torch.dtype,
        flip: bool,
    ) -> "LatentCache | None":
        """The cache at `path` if it was made from these."""
        try:
            found = cls.open(path, fingerprint, dataset=dataset)
        except FileNotFoundError:
            return None
        except ValueError as error:
            warnings.warn(f"{error}; it is made anew", stacklevel=3)
            return None
        if found.dtype != dtype or found.shape[1] != (2 if flip else 1):
            return None
        part = path.with_name(path.name + ".part")
        for left in (_sidecar(part), _sums(part)):  # by one killed right after its end
            left.unlink(missing_ok=True)
        return found

    @classmethod
    def open(
        cls,
        path: str | Path,
        fingerprint: str,
        *,
        dataset: ImageDataset | PixelCache | None = None,
    ) -> "LatentCache":
        """The finished cache at `path`.

        Reads the file once for its checksum; once it has changed since, reading from it raises
        ValueError. Raises FileNotFoundError where there is none, ValueError where it is damaged or
        came from another autoencoder or (where `dataset` is given) another data set.
        """
        path = Path(path)
        if not path.exists() or not _sidecar(path).exists():
            raise FileNotFoundError(f"LatentCache: path must be a finished cache, got {path}")
        try:
            facts = json.loads(_sidecar(path).read_text())
            size = math.prod(facts["shape"]) * DTYPES[facts["dtype"]].itemsize
            made_by, made_from = facts["fingerprint"], facts["dataset"]
            checksum = facts["checksum"]
        except (ValueError, KeyError, TypeError) as error:
            raise fail("LatentCache", "path", "a cache", f"{_sidecar(path)}: {error!r}") from None
        if path.stat().st_size != size:
            raise fail(
                "LatentCache", "path", f"of {size} bytes", f"{path.stat().st_size} in {path}"
            )
        if made_by != fingerprint:
            raise fail(
                "LatentCache",
                "path",
                f"encoded by the autoencoder {fingerprint}",
                f"{path}, encoded by {made_by}: encode the data set again",
            )
        try:
            cache = cls(path, facts)  # before what is read, so that no change stays unseen
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise fail("LatentCache", "path", "a cache", f"{_sidecar(path)}: {error!r}") from None
        if _checksum(path, facts) != checksum:
            raise fail(
                "LatentCache", "path", "what was written", f"{path}, which was damaged since"
            )
        if dataset is not None and made_from != _describe(dataset):
            raise fail(
                "LatentCache",
                "path",
                f"encoded from {_describe(dataset)}",
                f"{path}, encoded from {made_from}: encode the data set again",
            )
        return cache

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> Iterator[Tensor]:
        """One epoch of (batch_size, C, H, W) float32 batches, each image mirrored or not at random.

        The order depends on `seed` and `epoch` only; `start` is the first batch to give.
        """
        for indices, flips in epoch_order(
            len(self), batch_size, seed, epoch, rank=rank, world_size=world_size, start=start
        ):
            items = indices * self.shape[1] + flips.long() % self.shape[1]
            yield self._read(items.tolist()).float()


def _describe(dataset: ImageDataset | PixelCache) -> dict[str, Any]:
    return {"length": len(dataset), "identity": dataset.identity}


def _stand_ins(dataset: ImageDataset | PixelCache) -> list[list[int]]:
    came = dataset.stand_ins
    bad = (came != torch.arange(len(came))).nonzero().flatten()
    return torch.stack([bad, came[bad]], dim=1).tolist()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _sums(part: Path) -> Path:
    """Beside an unfinished file: the CRC-32 of each image's latents, 4 bytes each."""
    return part.with_name(part.name + ".sums")


def _checksum(path: Path, facts: dict[str, Any]) -> str:
    """A hash of the file and of the facts about it."""
    about = {name: value for name, value in facts.items() if name != "checksum"}
    found = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(facts, indent=1))
    temporary.replace(path)


def _latent_shape(
    dataset: ImageDataset | PixelCache,
    encode: Callable[[Tensor], Tensor],
    flip: bool,
    device: torch.device | str,
) -> list[int]:
    latent = _encode_flips(dataset[0][None], encode, flip, device)
    return [len(dataset), *latent.shape[1:]]


def _encode_flips(
    images: Tensor, encode: Callable[[Tensor], Tensor], flip: bool, device: torch.device | str
) -> Tensor:
    """uint8 images (B,C,H,W) -> latents (B, flips, c, h, w)."""
    x = images.to(device).float() / 127.5 - 1
    with torch.no_grad():
        return torch.stack([encode(x), encode(x.flip(-1))] if flip else [encode(x)], dim=1)


def _write(path: Path, facts: dict[str, Any], first: int, latents: Iterator[Tensor]) -> None:
    """Writes `path.part` from image `first` on, what is before it being of an earlier attempt."""
    from tqdm import tqdm

    part = path.with_name(path.name + ".part")
    count, item_bytes = facts["shape"][0], _item_bytes(facts)
    needed = (count - first) * item_bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"LatentCache: {path} needs {needed} bytes, {free} are free on its disk"
        )
    done = first
    with (
        open(part, "ab") as file,
        open(_sums(part), "ab") as sums,
        tqdm(total=count, initial=done, desc="encode", unit="img", disable=count < 2000) as bar,
    ):
        _lock(file, path)
        file.truncate(done * item_bytes)
        sums.truncate(done * 4)
        _write_json(_sidecar(part), facts)
        for batch in latents:
            for one in batch.contiguous().flatten(1).view(torch.uint8).numpy():
                file.write(one.data)
                sums.write(zlib.crc32(one.data).to_bytes(4, "little"))
            done += len(batch)
            bar.update(len(batch))
        file.flush()
        os.fsync(file.fileno())


def _lock(file: BinaryIO, path: Path) -> None:
    """Keeps other processes from writing the same file, until it is closed or this one ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise OSError(f"LatentCache: {path} is being written by another process") from None


def _item_bytes(facts: dict[str, Any]) -> int:
    """Of an image's latents."""
    size: int = math.prod(facts["shape"][1:]) * DTYPES[facts["dtype"]].itemsize
    return size


def _resumable(part: Path, facts: dict[str, Any]) -> int:
    """How many images of an earlier attempt with these facts are there, undamaged."""
    done, item_bytes = 0, _item_bytes(facts)
    try:
        if json.loads(_sidecar(part).read_text()) == facts:
            with open(part, "rb") as file, open(_sums(part), "rb") as sums:
                while (sum_ := sums.read(4)) and (one := file.read(item_bytes)):
                    if len(one) < item_bytes or zlib.crc32(one).to_bytes(4, "little") != sum_:
                        break
                    done += 1
    except (OSError, ValueError):
        pass
    return done


def _open_items(path: Path, count: int, shape: Sequence[int], dtype: torch.dtype) -> FileArray:
    """A file of `count` items as bytes (numpy has no bfloat16)."""
    return FileArray(path, (count, math.prod(shape) * dtype.itemsize), "uint8")


def _abs_max(file: FileArray, dtype: torch.dtype) -> float:
    """The largest magnitude in a file of latents."""
    parts = (range(i, min(i + 256, len(file))) for i in range(0, len(file), 256))
    values = (torch.from_numpy(file.items(part)).view(dtype) for part in parts)
    return max(part.float().abs().amax().item() for part in values)
