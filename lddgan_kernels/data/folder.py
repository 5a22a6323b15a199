"""A folder of images, searched recursively; and what `sample` notes in a folder of its samples."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lddgan_kernels.data.kinds import check_bytes, is_picture, readable
from lddgan_kernels.data.labels import LISTED as LABELS
from lddgan_kernels.data.labels import find_labels
from lddgan_kernels.data.source import Skipped
from lddgan_kernels.data.tar import SUFFIXES as TAR_SUFFIXES

# `sample` lists here which pictures of the folder are those of its last call.
LISTED = "samples.json"

# Files that are sets of pictures themselves.
SETS = (".zip", ".parquet", *TAR_SUFFIXES)


class FolderSource:
    """Images below `path`, in the order of their relative names; labels by `find_labels`.

    Linked folders are entered, each folder once. Hidden names are left out. Where the folder holds
    the samples of a call of `sample`, these alone are meant: not their grid, nor those of an
    earlier call. `sets` are the files below `path` that hold images themselves.
    """

    def __init__(self, path: Path) -> None:
        self.name = readable(path.resolve().name)
        self.passed_over: Skipped = []
        self.sets: list[Path] = []
        self._root = path
        self._names: list[str] = []
        listed = read_listed(path)
        if listed is None:
            self._search()
        else:
            self._names = [name for name in listed["pictures"] if (path / name).is_file()]
        named = path / LABELS
        read = named.read_bytes if named.is_file() else None
        self.labels = find_labels(self._names, read, self.passed_over)

    def __len__(self) -> int:
        return len(self._names)

    def item_name(self, index: int) -> str:
        return readable(self._names[index])

    def read(self, index: int) -> bytes:
        with open(self._root / self._names[index], "rb") as file:
            check_bytes(os.fstat(file.fileno()).st_size)
            return file.read()

    def _search(self) -> None:
        """Finds the pictures: folders first, then what links lead to that was not met before."""
        folders, links, entered = [""], list[str](), set[tuple[int, int]]()
        while folders or links:
            inside = folders.pop() if folders else links.pop(0)
            try:
                status = os.stat(self._root / inside)
                if (status.st_dev, status.st_ino) in entered:
                    continue
                entered.add((status.st_dev, status.st_ino))
                with os.scandir(self._root / inside) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.passed_over.append((readable(inside) or str(self._root), _reason(error)))
                continue
            for entry in found:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_dir():
                    if not entry.name.startswith("."):
                        (links if entry.is_symlink() else folders).append(name)
                elif entry.is_file():
                    self._take(name)
                elif is_picture(name, bytes):
                    self.passed_over.append((readable(name), "no file that can be read"))
        self._names.sort()
        self.sets.sort()

    def _take(self, name: str) -> None:
        try:
            if is_picture(name, lambda: _head(self._root / name)):
                self._names.append(name)
            elif name.lower().endswith(SETS):
                self.sets.append(self._root / name)
        except OSError as error:
            self.passed_over.append((readable(name), _reason(error)))


def read_listed(folder: Path) -> dict[str, Any] | None:
    """What `write_listed` noted in a folder; None where nothing of the kind is there."""
    if not (folder / LISTED).is_file():
        return None
    try:
        found = json.loads((folder / LISTED).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("made by") != "lddgan_kernels.sample":
        return None
    pictures = found.get("pictures")
    return found if isinstance(pictures, list) and all(map(_is_plain, pictures)) else None


def write_listed(
    folder: Path, pictures: list[str], labels: Sequence[int] = (), **facts: Any
) -> None:
    """Notes in a folder which pictures in it are samples of one call, with `facts` about it.

    Labels, one a picture, go into a `dataset.json`.
    """
    content = {"made by": "lddgan_kernels.sample", **facts, "pictures": pictures}
    _write(folder / LISTED, json.dumps(content))
    if labels:
        pairs = list(zip(pictures, labels, strict=True))
        _write(folder / LABELS, json.dumps({"labels": pairs}))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {_reason(error)}") from error


def _is_plain(name: object) -> bool:
    """Whether a name is that of a picture in the folder, or in a folder in it."""
    return isinstance(name, str) and re.fullmatch(r"(?:\d+/)?[^/]+", name) is not None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
