"""A folder of images, searched recursively."""

import os
from pathlib import Path

from PIL import Image

from lddgan_kernels.data.prepare import open_checked

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".avif"),
)


def is_image_name(name: str) -> bool:
    """Whether a relative path looks like an image (macOS's shadow files `._x.jpg` do not)."""
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(
        part.startswith(".") or part == "__MACOSX" for part in parts
    )


class FolderSource:
    """Images below `path`, in the order of their relative names."""

    def __init__(self, path: Path) -> None:
        self.name = path.resolve().name
        self.labels = None
        self._root = path
        names = []
        for folder, _, files in os.walk(path):
            relative = Path(folder).relative_to(path)
            names += [(relative / file).as_posix() for file in files]
        self._names = sorted(name for name in names if is_image_name(name))

    def __len__(self) -> int:
        return len(self._names)

    def item_name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int, resolution: int) -> Image.Image:
        with open(self._root / self._names[index], "rb") as file:
            image = open_checked(file, resolution)
            image.load()
        return image
