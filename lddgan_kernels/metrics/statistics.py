"""Statistics of features that others stored: `mu` and `sigma` in an `.npz` or `.npy`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.data.arrays import read_header
from lddgan_kernels.data.pickles import load_arrays
from lddgan_kernels.metrics.features import FeatureNetwork
from lddgan_kernels.metrics.frechet import check_statistics
from lddgan_kernels.metrics.moments import Moments

FACTS = {
    "network": (str, "a named `network`"),
    "resolution": (int, "a `resolution` from 1 on"),
    "count": (int, "a `count` from 1 on"),
}
EXPECTED = "an .npz, or a .npy of a dict, with `mu` (D,) and `sigma` (D, D)"


def load_statistics(path: str | Path) -> tuple[Tensor, Tensor] | None:
    """(mu, sigma) in float64 of a file of statistics; None for any other file or folder.

    An `.npz` with `mu` and `sigma`, or a `.npy` of a pickled dict of them, as the published code
    has it; of its pickle nothing is executed.

    Raises ValueError, which names the file, where they are damaged, not finite or no covariance.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy") or not path.is_file():
        return None
    try:
        found = _read_npz(path) if suffix == ".npz" else _read_npy(path)
        if found is None:
            return None
        if any(np.iscomplexobj(part) for part in found):
            raise ValueError("complex numbers")
        mu, sigma = (torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in found)
        check_statistics("load_statistics", "path", mu, sigma)
    except Exception as error:  # a damaged or hostile file may raise anything
        raise fail("load_statistics", "path", EXPECTED, f"{path}: {error}") from None
    return mu, sigma


def save_statistics(path: Path, moments: Moments, network: FeatureNetwork, resolution: int) -> None:
    """Writes mu and sigma to an `.npz`, with what they are of: `network`, `resolution`, `count`."""
    mu, sigma = moments.statistics()
    held: dict[str, Any] = {"mu": mu.numpy(), "sigma": sigma.numpy()}
    held |= {"network": network.name, "resolution": resolution, "count": moments.count}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **held)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def statistics_facts(path: str | Path) -> dict[str, Any]:
    """What a file of statistics says that it is of; {} where it does not.

    Raises ValueError, which names the file, where that is no name, resolution or count.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".npz":
        return {}
    facts: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for name, (kind, expected) in FACTS.items():
            if name in file.files:
                try:
                    facts[name] = file[name].item()
                except ValueError:  # pickled, or several
                    facts[name] = None
                if type(facts[name]) is not kind or (kind is int and facts[name] < 1):
                    found = f"`{name}` {facts[name]!r} in {path}"
                    raise fail("load_statistics", "path", f"a file with {expected}", found)
    return facts


def _read_npz(path: Path) -> tuple[Any, Any] | None:
    with np.load(path, allow_pickle=False) as file:
        if "mu" not in file.files or "sigma" not in file.files:
            return None
        return file["mu"], file["sigma"]


def _read_npy(path: Path) -> tuple[Any, Any] | None:
    """The dict of a `.npy`; None for one that holds an array."""
    with open(path, "rb") as file:
        if not read_header(file).dtype.hasobject:
            return None
        content = load_arrays(file)
    held = content.item() if isinstance(content, np.ndarray) and content.size == 1 else content
    if not isinstance(held, dict):
        raise ValueError(f"a pickle of {type(held).__name__}")
    by_name = {key.decode() if isinstance(key, bytes) else key: held[key] for key in held}
    return by_name["mu"], by_name["sigma"]
