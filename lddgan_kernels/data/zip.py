"""A zip of images."""

import io
import os
import zipfile
from pathlib import Path

from PIL import Image

from lddgan_kernels._checks import fail
from lddgan_kernels.data.folder import is_image_name
from lddgan_kernels.data.prepare import open_checked


class ZipSource:
    """Images inside the zip file `path`, in the order of their names."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.labels = None
        self._path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        try:
            names = self._zip().namelist()
        except (zipfile.BadZipFile, EOFError) as error:
            raise fail("open_images", "path", "a readable zip", f"{path}: {error}") from None
        self._names = sorted(name for name in names if is_image_name(name))

    def __len__(self) -> int:
        return len(self._names)

    def item_name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int, resolution: int) -> Image.Image:
        data = self._zip().read(self._names[index])
        return open_checked(io.BytesIO(data), resolution)

    def _zip(self) -> zipfile.ZipFile:
        # One handle a process: a forked worker would share the parent's file position.
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), zipfile.ZipFile(self._path))
        return self._handle[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}
