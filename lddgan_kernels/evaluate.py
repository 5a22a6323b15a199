"""`python -m lddgan_kernels.evaluate`: compares two sets of images.

    python -m lddgan_kernels.evaluate --real photos.zip --fake samples/ --resolution 256 \\
        --features pt_inception-2015-12-05-6726825d.pth

or samples of a run with the images that it learned from,

    python -m lddgan_kernels.evaluate --run runs/cifar10 --features pt_inception-2015-12-05.pth

prints the Frechet distance and improved precision and recall in a feature network's features, and
writes them as JSON.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from lddgan_kernels.trainer import command
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_system

Features = Tensor | tuple[Tensor, Tensor]
Skipped = list[tuple[str, str]]

# Drawn from a run where the real images are statistics alone: as many as FID is usually taken of.
SAMPLES = 50_000


@dataclass(frozen=True)
class Options:
    """Compares two sets of images: Frechet distance, precision and recall."""

    features: Path
    """Weights of the feature network: pt_inception-2015-12-05 (FID) or EfficientNet-lite0."""
    real: str | None = None
    """Real images: a folder, zip, .npz, LMDB or CIFAR-10 archive, or an .npz with `mu` and `sigma`
    of the features (Frechet distance only); a run's own are the default."""
    fake: str | None = None
    """Generated images, likewise."""
    run: Path | None = None
    """Or the folder of a run that draws them: as many as there are real ones, from seed 0 on."""
    resolution: int | None = None
    """Side of the images in pixels; larger ones are cropped and resized, smaller ones skipped. A
    run's own is the default."""
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
    if (options.run is None) == (options.fake is None):
        raise ValueError("evaluate: one of --fake and --run must be given")
    system = None
    if options.run is not None:
        system = load_system(RunFolder(options.run).generator, options.device)
        run = system.config
        options = replace(
            options,
            real=run.data if options.real is None else options.real,
            resolution=options.resolution or run.images.resolution,
            limit=options.limit or run.limit,
        )
    elif options.real is None or options.resolution is None:
        raise ValueError("evaluate: --real and --resolution must be given with --fake")
    network = load_features(options.features)
    figures: dict[str, Any] = {"features": network.name, "resolution": options.resolution}

    def note(name: str, path: object, found: Features, skipped: Skipped) -> Features:
        count = len(found) if isinstance(found, Tensor) else None
        figures[name] = {"path": str(path), "count": count, "skipped": skipped}
        return found

    real = note("real", options.real or "digits", *_features(options.real, network, options))
    if system is None:
        fake = note("fake", options.fake, *_features(options.fake, network, options))
    else:
        count = len(real) if isinstance(real, Tensor) else options.limit or SAMPLES
        batches = (system(seeds) for seeds in torch.arange(count).split(options.batch_size))
        drawn = extract_features(network, batches, device=options.device, total=count)
        fake = note("fake", options.run, drawn, [])
    figures["frechet_distance"] = frechet_distance(real, fake)
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        real, fake = real.to(options.device), fake.to(options.device)
        figures["k"] = options.k
        figures["precision"], figures["recall"] = precision_recall(real, fake, options.k)
    return figures


def _features(
    path: str | None, network: FeatureNetwork, options: Options
) -> tuple[Features, Skipped]:
    """Features (N, D) or statistics (mu, sigma), and the images that could not be used."""
    if path is not None and path.endswith(".npz") and Path(path).exists():
        with np.load(path, allow_pickle=False) as file:
            if "mu" in file.files and "sigma" in file.files:
                return (torch.from_numpy(file["mu"]), torch.from_numpy(file["sigma"])), []
    assert options.resolution is not None
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

    def work() -> None:
        figures = evaluate(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
        print(report(figures))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
