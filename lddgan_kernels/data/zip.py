"""A zip of images."""

import os
import zipfile
from pathlib import Path

from lddgan_kernels._checks import fail
from lddgan_kernels.data.kinds import check_bytes, is_picture, readable
from lddgan_kernels.data.labels import LISTED, find_labels
from lddgan_kernels.data.source import Skipped


class ZipSource:
    """Images inside the zip file `path`, in the order of their names; labels by `find_labels`."""

    def __init__(self, path: Path) -> None:
        self.name = readable(path.stem)
        self.passed_over: Skipped = []
        self._path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        try:
            members = [info for info in self._zip().infolist() if not info.is_dir()]
        except Exception as error:  # a damaged directory may raise anything
            raise fail("open_images", "path", "a readable zip", f"{path}: {error}") from None
        pictures = [info for info in members if self._is_picture(info)]
        self._members = sorted(pictures, key=lambda info: info.filename)
        listed = any(info.filename == LISTED for info in members)
        self.labels = find_labels(
            [info.filename for info in self._members],
            (lambda: self._zip().read(LISTED)) if listed else None,
            self.passed_over,
        )

    def __len__(self) -> int:
        return len(self._members)

    def item_name(self, index: int) -> str:
        return readable(self._members[index].filename)

    def read(self, index: int) -> bytes:
        check_bytes(self._members[index].file_size)
        return self._zip().read(self._members[index])

    def _is_picture(self, info: zipfile.ZipInfo) -> bool:
        def head() -> bytes:
            try:
                with self._zip().open(info) as file:
                    return file.read(16)
            except Exception:  # encrypted, damaged or of an unknown compression
                return b""

        return is_picture(info.filename, head)

    def _zip(self) -> zipfile.ZipFile:
        # One handle a process: a forked worker would share the parent's file position.
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), zipfile.ZipFile(self._path))
        return self._handle[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}
