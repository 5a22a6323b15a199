"""Which files are pictures: by their names, and where those say nothing by their first bytes."""

import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath

# The largest picture that is read, in bytes as it is stored: whatever is larger is skipped and
# named, so that a small archive cannot fill the memory.
LARGEST = 256 << 20

# Formats that Pillow may lack (.heic, .jxl, .exr, raw photographs) are here too: such files are
# skipped and named, not passed over in silence.
SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp"),
        *(".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".tga", ".ico", ".qoi", ".psd", ".dds"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pcx", ".sgi", ".jp2", ".j2k", ".jpf", ".jpx"),
        *(".j2c", ".jpc", ".avif", ".avifs", ".heic", ".heif", ".jxl", ".exr", ".hdr", ".dng"),
        *(".svg", ".jxr", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    )
)
UNFINISHED = (".tmp", ".part", ".crdownload", "~")

_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|qoif"
    rb"|\xff\x4f\xff\x51|\0\0\0\x0cjP  |....ftyp(?:avif|avis|heic|heix|mif1)|P[1-6]\s+[#\d]",
    re.DOTALL,
)


def is_encoded(head: bytes) -> bool:
    """Whether data that begins with `head` (16 bytes or more) is an encoded picture."""
    return _BEGINNINGS.match(head) is not None


def is_picture(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a relative path is a picture's; not hidden ones, nor macOS's shadow files.

    head: gives the first bytes, for names that do not tell.
    """
    path = PurePosixPath(name)
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    return not name.lower().endswith(UNFINISHED) and is_encoded(head())


def check_bytes(size: int) -> None:
    """Raises ValueError for a picture of more than `LARGEST` bytes."""
    if size > LARGEST:
        raise ValueError(f"{size >> 20} MiB, more than the {LARGEST >> 20} MiB that a picture may")


def readable(name: str) -> str:
    """A name that can be printed in a line and stored, whatever bytes it has on the disk."""
    decoded = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in decoded)
