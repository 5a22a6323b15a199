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

import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader

from lddgan_kernels._checks import check_device, fail
from lddgan_kernels.data import ImageDataset, open_images
from lddgan_kernels.metrics import (
    FeatureNetwork,
    extract_features,
    frechet_distance,
    load_features,
    load_statistics,
    precision_recall,
)
from lddgan_kernels.trainer import command, files
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_system

Statistics = tuple[Tensor, Tensor]
Features = Tensor | Statistics

# Drawn from a run where the real images are statistics alone: as many as FID is usually taken of.
SAMPLES = 50_000


@dataclass(frozen=True)
class Options:
    """Compares two sets of images: Frechet distance, precision and recall."""

    features: Path
    """Weights of the feature network: pt_inception-2015-12-05 (FID) or EfficientNet-lite0."""
    real: str | None = None
    """Real images as for train, or an .npz or .npy with `mu` and `sigma` of the features (Frechet
    distance only); a run's own are the default."""
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
    enlarge: bool = False
    """Use smaller images too, enlarged; a run's own choice is the default."""
    batch_size: int = 64
    workers: int = 0
    """Processes that decode images."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def evaluate(options: Options) -> dict[str, Any]:
    """The figures of `options`, as they are written to its `out`."""
    _check(options)
    system = None
    if options.run is not None:
        system = load_system(RunFolder(options.run).generator, options.device)
        run = system.config
        options = replace(
            options,
            real=run.data if options.real is None else options.real,
            resolution=options.resolution or run.images.resolution,
            limit=options.limit or run.limit,
            enlarge=options.enlarge or run.images.enlarge,
        )
    network = load_features(options.features)
    # Both sets are opened before anything is computed of one.
    real_set = _open(options.real, options)
    fake_set = _open(options.fake, options) if system is None else None
    real = _features(real_set, options.real, network, options)
    if system is None:
        assert fake_set is not None
        fake = _features(fake_set, options.fake, network, options)
    else:
        count = len(real) if isinstance(real, Tensor) else options.limit or SAMPLES
        batches = (system(seeds) for seeds in torch.arange(count).split(options.batch_size))
        fake = extract_features(network, batches, device=options.device, total=count)
    figures: dict[str, Any] = {
        "features": network.name,
        "resolution": options.resolution,
        "real": _describe(options.real or "digits", real_set, real),
        "fake": _describe(options.run or options.fake, fake_set, fake),
        "frechet_distance": frechet_distance(real, fake),
    }
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        real, fake = real.to(options.device), fake.to(options.device)
        figures["k"] = options.k
        figures["precision"], figures["recall"] = precision_recall(real, fake, options.k)
    return figures


def _check(options: Options) -> None:
    """Raises ValueError, before any work, for options that do not fit."""
    check_device("evaluate", options.device)
    if (options.run is None) == (options.fake is None):
        raise ValueError("evaluate: one of --fake and --run must be given")
    if options.run is None and (options.real is None or options.resolution is None):
        raise ValueError("evaluate: --real and --resolution must be given with --fake")
    for name in ("k", "batch_size", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise fail("evaluate", name, "at least 1", value)
    if options.out.is_dir():
        raise fail("evaluate", "out", "a file", f"the folder {options.out}")
    for parent in options.out.parents:
        if parent.exists() and not parent.is_dir():
            raise fail("evaluate", "out", "a file in a folder", options.out)


def _open(path: str | None, options: Options) -> ImageDataset | Statistics:
    """The images at a path, or the statistics in it."""
    statistics = None if path is None else load_statistics(path)
    if statistics is not None:
        return statistics
    assert options.resolution is not None
    return open_images(path, options.resolution, limit=options.limit, enlarge=options.enlarge)


def _features(
    images: ImageDataset | Statistics,
    path: str | None,
    network: FeatureNetwork,
    options: Options,
) -> Features:
    """Features (N, D) of the images that could be used; statistics as they are."""
    if not isinstance(images, ImageDataset):
        if len(images[0]) != network.features:
            raise fail(
                "evaluate",
                "path",
                f"statistics of the {network.features} features of {network.name}",
                f"{len(images[0])} in {path}",
            )
        return images
    loader = DataLoader(images, batch_size=options.batch_size, num_workers=options.workers)
    try:
        features = extract_features(network, loader, device=options.device, total=len(images))
    except ValueError as error:
        raise ValueError(f"evaluate: {path}: {error}") from None
    # Where an image was skipped its neighbour stands in; it must not count twice.
    features = features[images.good]
    if len(features) <= options.k:
        raise fail(
            "evaluate", "path", f"more than k = {options.k} images", f"{len(features)} in {path}"
        )
    return features


def _describe(
    path: object, images: ImageDataset | Statistics | None, found: Features
) -> dict[str, Any]:
    return {
        "path": str(path),
        "count": len(found) if isinstance(found, Tensor) else None,
        "skipped": images.skipped if isinstance(images, ImageDataset) else [],
    }


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
    options = replace(options, out=options.out.expanduser())

    def work() -> None:
        figures = evaluate(options)
        print(report(figures), flush=True)
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        files.write_atomically(options.out, lambda file: file.write(text.encode()))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
