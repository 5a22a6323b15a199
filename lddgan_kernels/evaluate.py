"""`python -m lddgan_kernels.evaluate`: how good, how varied and how fast.

    python -m lddgan_kernels.evaluate --run runs/cifar10 --features inception

judges a run (or a published checkpoint, named as for `sample`) against the images that it learned
from: Frechet and kernel distance, precision, recall, density, coverage, where the network has
classes the Inception Score, seconds for 100 images and memory; of a run with labels by class too.

    python -m lddgan_kernels.evaluate --real photos.zip --fake samples/ --resolution 256 \\
        --features pt_inception-2015-12-05-6726825d.pth

compares two sets of images, and

    python -m lddgan_kernels.evaluate statistics --data photos.zip --resolution 256 \\
        --features inception --out photos.npz

writes the statistics of a set, which may stand for the real images then. The same command goes on
where it was stopped; under `torchrun` the processes share the images, and the figures are the same.
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

from lddgan_kernels._checks import check_device, fail
from lddgan_kernels.data import ImageDataset, open_images
from lddgan_kernels.metrics import (
    FeatureNetwork,
    Moments,
    load_features,
    load_statistics,
    save_statistics,
    score,
    scores_by_class,
    statistics_facts,
)
from lddgan_kernels.trainer import command, distributed, files
from lddgan_kernels.trainer.environment import environment
from lddgan_kernels.trainer.evaluation_text import evaluation_text
from lddgan_kernels.trainer.feature_store import FeatureStore
from lddgan_kernels.trainer.open_system import SystemOptions, open_system
from lddgan_kernels.trainer.sampling_speed import sampling_speed

Statistics = tuple[Tensor, Tensor]

# Drawn from a run where the real images are statistics alone: as many as FID is usually taken of.
SAMPLES = 50_000


@dataclass(frozen=True, kw_only=True)
class _Images:
    """What both commands need to see images through a feature network."""

    features: str
    """The feature network: inception (FID), inception-torchscript, vgg16 or efficientnet-lite0,
    which are fetched; or a file of their weights, or of any TorchScript module."""
    limit: int | None = None
    """At most this many images of each set."""
    enlarge: bool = False
    """Use smaller images too, enlarged; a run's own choice is another default."""
    batch_size: int = 64
    workers: int = 0
    """Processes that decode images."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Options(_Images, SystemOptions):
    """Judges a system, or compares two sets of images."""

    real: str | None = None
    """Real images as for train, or an .npz or .npy with `mu` and `sigma` of the features (Frechet
    distance only); a run's own are the default."""
    fake: str | None = None
    """Generated images, likewise, in place of a system; a system draws as many as there are real
    ones, from seed 0 on."""
    resolution: int | None = None
    """Side of the images in pixels; larger ones are cropped and resized, smaller ones skipped. A
    system's own is the default."""
    out: Path = Path("evaluation.json")
    """Where the figures are written."""
    k: int = 3
    """Precision and recall: the balls reach to the k-th neighbour."""
    repeat: int = 10
    """How often 100 images are drawn to measure the time; 0: it is not measured."""


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions(_Images):
    """Writes the statistics of the features of a set of images."""

    data: str
    """The images, as for train."""
    resolution: int
    """Side in pixels; larger images are cropped and resized, smaller ones skipped."""
    out: Path = Path("statistics.npz")
    """Where mu and sigma are written."""


def evaluate(options: Options) -> dict[str, Any] | None:
    """The figures of `options`, as they are written to its `out`; None in processes but the first.

    Raises:
        ValueError, OSError: what is given does not fit; before anything long runs.
    """
    _check(options)
    with distributed.processes(options.device) as device:
        return _evaluate(replace(options, device=str(device)))


def _evaluate(options: Options) -> dict[str, Any] | None:
    system = None
    if options.named() is not None:
        system = open_system("evaluate", options, options.device)
        config = system.config
        options = replace(
            options,
            real=config.data if options.real is None else options.real,
            resolution=options.resolution or config.images.resolution,
            limit=config.limit if options.limit is None else options.limit,
            enlarge=options.enlarge or config.images.enlarge,
        )
    network = _network(options)
    # Both sets are opened, and what is stored is read, before anything is computed.
    real_set = _open(options.real, options, network)
    fake_set = _open(options.fake, options, network) if system is None else None
    if system is not None and system.config.images.resolution != options.resolution:
        raise fail(
            "evaluate",
            "resolution",
            f"that of the samples, {system.config.images.resolution}",
            options.resolution,
        )
    drawn = len(real_set) if isinstance(real_set, ImageDataset) else options.limit or SAMPLES
    counts = [_count(options.real, real_set), drawn if system else _count(options.fake, fake_set)]
    for text in _warnings(counts, network) if distributed.rank() == 0 else ():
        print(f"warning: {text}", flush=True)
    speed = None
    if system is not None and options.repeat and distributed.rank() == 0:
        speed = sampling_speed(system, options.repeat)
    store = FeatureStore(options.out.with_suffix(".parts"), network, options.batch_size)
    real = _features(real_set, options.real, store, options)
    if system is not None:
        fake: Tensor | Statistics = store.of_samples(system, drawn)
    else:
        assert fake_set is not None
        fake = _features(fake_set, options.fake, store, options)
    store.clear()
    if distributed.rank() > 0:
        return None
    # Some images may have been of no use.
    found = zip((real, fake), counts, strict=True)
    counts = [len(x) if isinstance(x, Tensor) else count for x, count in found]
    figures: dict[str, Any] = {
        "features": network.name,
        "preparation": str(network.preparation),
        "resolution": options.resolution,
        "real": _describe(options.real or "digits", real_set, real),
        "fake": _describe(options.named() or options.fake, fake_set, fake),
        "k": options.k,
        "warnings": _warnings(counts, network),
    }
    figures |= score(real, fake, network, k=options.k, device=options.device)
    labels = None if system is None else system.labels_of(torch.arange(drawn))
    if labels is not None and isinstance(real_set, ImageDataset) and real_set.labels is not None:
        assert isinstance(real, Tensor)
        assert isinstance(fake, Tensor)
        theirs = real_set.labels[real_set.good]
        figures["by_class"] = scores_by_class(real, theirs, fake, labels, options.device)
    if speed is not None:
        figures["sampling"] = speed
    return figures | {"environment": environment(options.device)}


def _check(options: Options) -> None:
    """Raises ValueError, before any work, for options that do not fit."""
    _check_common(options)
    if (options.named() is None) == (options.fake is None):
        raise ValueError(
            "evaluate: one of --fake and --run (or --checkpoint, --published) must be given"
        )
    if options.named() is None and (options.real is None or options.resolution is None):
        raise ValueError("evaluate: --real and --resolution must be given with --fake")
    if options.published is not None and options.real is None:
        raise ValueError("evaluate: --real must be given with --published")
    for name, least in (("k", 1), ("repeat", 0)):
        if getattr(options, name) < least:
            raise fail("evaluate", name, f"at least {least}", getattr(options, name))


def _check_common(options: Options | StatisticsOptions) -> None:
    check_device("evaluate", options.device)
    for name, least in (("batch_size", 1), ("limit", 1), ("resolution", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise fail("evaluate", name, f"at least {least}", value)
    if options.out.is_dir():
        raise fail("evaluate", "out", "a file", f"the folder {options.out}")
    for parent in options.out.parents:
        if parent.exists() and not parent.is_dir():
            raise fail("evaluate", "out", "a file in a folder", options.out)


def _network(options: Options | StatisticsOptions) -> FeatureNetwork:
    """Of the options, on the device; fetched by the first process alone."""
    if distributed.rank() > 0:
        distributed.wait()
    network = load_features(options.features).to(options.device)
    if distributed.rank() == 0:
        distributed.wait()
    return network


def _open(path: str | None, options: Options, network: FeatureNetwork) -> ImageDataset | Statistics:
    """The images at a path, or the statistics in it."""
    statistics = None if path is None else load_statistics(path)
    if statistics is None:
        assert options.resolution is not None
        images = open_images(path, options.resolution, limit=options.limit, enlarge=options.enlarge)
        _check_count(len(images), path, options)
        return images
    assert path is not None
    facts = statistics_facts(path)
    if len(statistics[0]) != network.features or facts.get("network", network.name) != network.name:
        found = f"{len(statistics[0])} of {facts.get('network', 'an unknown network')} in {path}"
        expected = f"statistics of the {network.features} features of {network.name}"
        raise fail("evaluate", "path", expected, found)
    if facts.get("resolution", options.resolution) != options.resolution:
        expected = f"statistics of images of {options.resolution} px"
        raise fail("evaluate", "path", expected, f"{facts['resolution']} px in {path}")
    return statistics


def _count(path: str | None, images: ImageDataset | Statistics | None) -> int | None:
    """How many images there are; None where statistics do not say."""
    if isinstance(images, ImageDataset):
        return len(images)
    return None if path is None else statistics_facts(path).get("count")


def _warnings(counts: Sequence[int | None], network: FeatureNetwork) -> list[str]:
    found = []
    if None in counts or counts[0] != counts[1]:
        found.append("Frechet distances compare at equal numbers of images only")
    least = min((count for count in counts if count is not None), default=network.features)
    if least < network.features:
        found.append(
            f"{least} images are fewer than the {network.features} features of {network.name}: the "
            "Frechet distance is too large, by about the bias given beside it"
        )
    return found


def _features(
    images: ImageDataset | Statistics,
    path: str | None,
    store: FeatureStore,
    options: Options,
) -> Tensor | Statistics:
    """Features (N, D) of the images that could be used; statistics as they are."""
    if not isinstance(images, ImageDataset):
        return images
    try:
        features = store.of_images(images, Path(path or "digits").name, options.workers)
    except ValueError as error:
        raise ValueError(f"evaluate: {path}: {error}") from None
    _check_count(len(features), path, options)
    return features


def _check_count(count: int, path: str | None, options: Options) -> None:
    if count <= options.k:
        raise fail("evaluate", "path", f"more than k = {options.k} images", f"{count} in {path}")


def _describe(
    path: object, images: ImageDataset | Statistics | None, found: Tensor | Statistics
) -> dict[str, Any]:
    return {
        "path": str(path),
        "count": len(found) if isinstance(found, Tensor) else None,
        "skipped": images.skipped if isinstance(images, ImageDataset) else [],
    }


def write_statistics(options: StatisticsOptions) -> str:
    """Writes the statistics of a set of images; returns a line about them."""
    _check_common(options)
    if options.out.suffix.lower() != ".npz":
        raise fail("evaluate", "out", "an .npz", options.out)
    with distributed.processes(options.device) as device:
        options = replace(options, device=str(device))
        network = _network(options)
        images = open_images(
            options.data, options.resolution, limit=options.limit, enlarge=options.enlarge
        )
        store = FeatureStore(options.out.with_suffix(".parts"), network, options.batch_size)
        features = store.of_images(images, Path(options.data).name, options.workers)
        store.clear()
        moments = Moments(network.features)
        for rows in features.split(1024):
            moments.add(rows)
        if distributed.rank() == 0:
            save_statistics(options.out, moments, network, options.resolution)
    return (
        f"statistics of {moments.count} images of {options.resolution} px by {network.name} "
        f"({network.preparation}) -> {options.out}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["statistics"]:
        program = "python -m lddgan_kernels.evaluate statistics"
        wanted = tyro.cli(StatisticsOptions, args=given[1:], prog=program)
        wanted = replace(wanted, out=wanted.out.expanduser())
        return command.run(lambda: print(write_statistics(wanted)))
    options = tyro.cli(Options, args=given)
    options = replace(options, out=options.out.expanduser())

    def work() -> None:
        figures = evaluate(options)
        if figures is None:
            return
        print(evaluation_text(figures), flush=True)
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        files.write_atomically(options.out, lambda file: file.write(text.encode()))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
