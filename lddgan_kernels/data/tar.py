"""Tar archives of images, and the shards of WebDataset, which are such archives."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.kinds import LARGEST, check_bytes, is_picture, readable
from lddgan_kernels.data.labels import labels_of_folders
from lddgan_kernels.data.source import Skipped

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

LABEL = ".cls"  # of WebDataset

# How gzip, bzip2 and xz files begin.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")

# A compressed archive cannot be read from the middle: its files are kept in memory.
MOST_HELD = 4 << 30


class Member(NamedTuple):
    """A file inside an archive: its bytes where the archive is compressed, else its place."""

    name: str
    size: int
    archive: Path
    offset: int
    held: bytes | None

    def read(self, count: int = LARGEST) -> bytes:
        """Its first `count` bytes."""
        if self.held is not None:
            return self.held[:count]
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            found = file.read(min(count, self.size))
        if len(found) < min(count, self.size):
            raise ValueError("the archive was cut short since it was opened")
        return found


def read_members(path: Path) -> tuple[list[Member], Skipped]:
    """The plain files of a tar archive in its order, and those that cannot be read.

    Raises ValueError, which names the archive, where it is damaged, cut short or too large.
    """
    passed_over: Skipped = []
    try:
        with open(path, "rb") as file:
            compressed = file.read(6).startswith(COMPRESSED)
        with tarfile.open(path, "r:*" if compressed else "r:") as archive:
            members = (_compressed if compressed else _plain)(path, archive, passed_over)
            return list(members), passed_over
    except Exception as error:  # damage in a compressed stream may raise anything
        raise fail("open_images", "path", "a whole tar archive", f"{path}: {error}") from None


def _plain(path: Path, archive: tarfile.TarFile, passed_over: Skipped) -> Iterator[Member]:
    for info in archive:
        if info.isreg() and not info.issparse():
            yield Member(info.name, info.size, path, info.offset_data, None)
        elif is_picture(info.name, bytes):
            passed_over.append((readable(info.name), "a link or no plain file"))
    # tarfile ends as quietly at a damaged header as at the end.
    with open(path, "rb") as file:
        file.seek(archive.offset)
        rest = file.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"no header of a file at byte {archive.offset}")
    if len(rest) < tarfile.BLOCKSIZE:
        passed_over.append((readable(path.name), "ends without a mark: it may have been cut short"))


def _compressed(path: Path, archive: tarfile.TarFile, passed_over: Skipped) -> Iterator[Member]:
    left = MOST_HELD
    for info in archive:
        if not info.isreg() or info.size > LARGEST:
            if is_picture(info.name, bytes):
                passed_over.append((readable(info.name), "a link, or too large a file"))
            continue
        left -= info.size
        if left < 0:
            raise ValueError(f"of more than {MOST_HELD >> 30} GiB: unpack it into a plain .tar")
        file = archive.extractfile(info)
        held = b"" if file is None else file.read()
        if len(held) < info.size:
            raise EOFError("ends within a file")
        yield Member(info.name, info.size, path, 0, held)
    # To the end, where the checksums are.
    while archive.fileobj is not None and archive.fileobj.read(1 << 20):
        pass


class TarSource:
    """The images among files of archives, in their order.

    Labels are WebDataset's, numbers in files `.cls` beside the pictures, or else the folders.
    """

    def __init__(self, name: str, members: list[Member], passed_over: Skipped) -> None:
        self.name = name
        self.passed_over = passed_over
        self._members = [member for member in members if _is_picture(member)]
        self.labels = self._find_labels(members)

    def _find_labels(self, members: list[Member]) -> Tensor | None:
        numbered = {_key(m): m for m in members if m.name.endswith(LABEL)}
        if not numbered:
            return labels_of_folders([member.name for member in self._members])
        found = []
        for index, member in enumerate(self._members):
            try:
                found.append(int(numbered[_key(member)].read(20)))
            except (KeyError, OSError, ValueError):
                reason = f"gives no labels: beside it must lie a number in a file {LABEL}"
                self.passed_over.append((self.item_name(index), reason))
                return None
        return torch.tensor(found)

    def __len__(self) -> int:
        return len(self._members)

    def item_name(self, index: int) -> str:
        member = self._members[index]
        return readable(f"{member.archive.name}:{member.name}")

    def read(self, index: int) -> bytes:
        check_bytes(self._members[index].size)
        return self._members[index].read()


def _key(member: Member) -> tuple[Path, str]:
    """The same for all files of a sample: what comes before the first dot of its name."""
    folder, _, name = member.name.rpartition("/")
    return member.archive, f"{folder}/{name.partition('.')[0]}"


def open_shards(name: str, paths: list[Path]) -> TarSource:
    """The images of several archives, one after the other."""
    members: list[Member] = []
    passed_over: Skipped = []
    for path in paths:
        found, not_read = read_members(path)
        members += found
        passed_over += not_read
    return TarSource(name, members, passed_over)


def _is_picture(member: Member) -> bool:
    return is_picture(member.name.removeprefix("./"), lambda: member.read(16))
