"""Files from the web: resumed where they broke off, checked, put in place in one step."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: `LDDGAN_CACHE`, else `lddgan_kernels` in the user's cache."""
    chosen = os.environ.get("LDDGAN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lddgan_kernels"


def download(url: str, target: Path, *, md5: str = "", sha256: str = "") -> Path:
    """Fetches `url` to `target` unless it is there, with a progress bar; returns `target`.

    A download that was cut short goes on from `target.part`. The file appears under its name only
    when whole and of the given MD5 or SHA-256. Raises OSError where the server cannot be reached
    and ValueError where the checksum differs (what came is deleted).
    """
    kind, wanted = ("SHA-256", sha256) if sha256 else ("MD5", md5)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _fetch(url, part, target.name)
    except OSError as error:
        raise OSError(
            f"download: {url} could not be fetched ({error}); run again to go on from "
            f"{part}, or fetch it yourself and put it at {target}"
        ) from error
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256" if sha256 else "md5").hexdigest()
    if found != wanted:
        part.unlink()
        raise ValueError(f"download: {url} must have {kind} {wanted}, got {found}")
    part.replace(target)
    return target


def _fetch(url: str, part: Path, label: str) -> None:
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing is left to fetch
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=label) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise OSError(f"connection closed after {part.stat().st_size} of {total} bytes")
