"""`python -m lddgan_kernels.evaluate`: compares two sets of images.

    python -m lddgan_kernels.evaluate --real photos.zip --fake samples/ --resolution 256 \\
        --features pt_inception-2015-12-05-6726825d.pth

prints the Frechet distance and improved precision and recall in a feature network's features, and
writes them as JSON.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader

from lddgan_kernels._checks import fail
from lddgan_kernels.data import open_images
from lddgan_kernels.metrics import (
    FeatureNetwork,
    extract_features,
    frechet_distance,
    load_features,
    precision_recall,
)


@dataclass(frozen=True)
class Options:
    """Compares two sets of images: Frechet distance, precision and recall."""

    real: Path
    """Real images: a folder, zip, .npz, LMDB or CIFAR-10 archive, or an .npz with `mu` and `sigma`
    of the features (Frechet distance only)."""
    fake: Path
    """Generated images, likewise."""
    resolution: int
    """Side of the images in pixels; larger ones are cropped and resized, smaller ones skipped."""
    features: Path
    """Weights of the feature network: pt_inception-2015-12-05 (FID) or EfficientNet-lite0."""
    out: Path = Path("evaluation.json")
    """Where the figures are written."""
    k: int = 3
    """Precision and recall: the balls reach to the k-th neighbour."""
    limit: int | None = None
    """At most this many images of each set."""
    batch_size: int = 64
    workers: int = 0
    """Processes that decode images."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def evaluate(options: Options) -> dict[str, Any]:
    """The figures of `options`, as they are written to its `out`."""
    network = load_features(options.features)
    figures: dict[str, Any] = {"features": network.name, "resolution": options.resolution}
    sets = {}
    for name, path in (("real", options.real), ("fake", options.fake)):
        found, skipped = _features(path, network, options)
        sets[name] = found
        count = len(found) if isinstance(found, Tensor) else None
        figures[name] = {"path": str(path), "count": count, "skipped": skipped}
    real, fake = sets["real"], sets["fake"]
    figures["frechet_distance"] = frechet_distance(real, fake)
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        real, fake = real.to(options.device), fake.to(options.device)
        figures["k"] = options.k
        figures["precision"], figures["recall"] = precision_recall(real, fake, options.k)
    return figures


def _features(
    path: Path, network: FeatureNetwork, options: Options
) -> tuple[Tensor | tuple[Tensor, Tensor], list[tuple[str, str]]]:
    """Features (N, D) or statistics (mu, sigma), and the images that could not be used."""
    if path.suffix == ".npz" and path.exists():
        with np.load(path, allow_pickle=False) as file:
            if "mu" in file.files and "sigma" in file.files:
                return (torch.from_numpy(file["mu"]), torch.from_numpy(file["sigma"])), []
    dataset = open_images(path, options.resolution, limit=options.limit)
    loader = DataLoader(dataset, batch_size=options.batch_size, num_workers=options.workers)
    features = extract_features(network, loader, device=options.device, total=len(dataset))
    if dataset.skipped:
        # Where an image was skipped its neighbour stands in; it must not count twice.
        features = features[dataset.good]
    if len(features) <= options.k:
        raise fail(
            "evaluate", "path", f"more than k = {options.k} images", f"{len(features)} in {path}"
        )
    return features, dataset.skipped


def report(figures: dict[str, Any]) -> str:
    """The figures for a person to read."""
    lines = []
    counts = []
    for name in ("real", "fake"):
        count, skipped = figures[name]["count"], figures[name]["skipped"]
        counts.append(count)
        held = "statistics" if count is None else f"{count} images"
        lines.append(f"{name}: {held} in {figures[name]['path']}")
        lines += [f"  skipped {item}: {reason}" for item, reason in skipped[:20]]
        if len(skipped) > 20:
            lines.append(f"  skipped {len(skipped) - 20} more")
    if None in counts or counts[0] != counts[1]:
        lines.append("warning: Frechet distances compare at equal numbers of images only")
    lines.append(f"Frechet distance ({figures['features']}): {figures['frechet_distance']:.4f}")
    if "precision" in figures:
        lines.append(f"precision {figures['precision']:.4f}, recall {figures['recall']:.4f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = tyro.cli(Options, args=arguments)
    try:
        figures = evaluate(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
