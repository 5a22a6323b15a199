"""Scores while it trains: the average's samples against the training set."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lddgan_kernels.data import ImageDataset, PixelCache
from lddgan_kernels.metrics import (
    DigitJudge,
    FeatureNetwork,
    Moments,
    extract_features,
    frechet_distance,
    kernel_distance,
    load_features,
    load_statistics,
    neighbour_scores,
    save_statistics,
    statistics_facts,
)
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.system import System

# The score by which one generator is better than another: the lower, the better.
DECIDES = "frechet_distance"
BATCH = 64
DENSITY_K = 5


def load_network(config: Config) -> FeatureNetwork | None:
    """The feature network that scores while it trains; None: the judge of digits does, or nobody.

    Raises:
        ValueError, FileNotFoundError: the configuration names none, or one that is not there.
    """
    log = config.log
    if not log.score_every:
        return None
    if config.method == "vae":
        raise ValueError("config: log.score_every must be 0 for method vae, got a number")
    if log.scored <= DENSITY_K:
        raise ValueError(
            f"config: log.scored must be more than {DENSITY_K} with log.score_every, got "
            f"{log.scored}"
        )
    if log.features is None:
        if config.data is not None:
            raise ValueError(
                "config: log.features must name a feature network where log.score_every is set and "
                "the images are not the embedded digits, got none"
            )
        return None
    return load_features(log.features)


class Scorer:
    """scorer(): scores by name of the samples of seeds 0 to `log.scored` - 1.

    By a feature network: the Frechet distance from the whole training set; kernel distance,
    precision, recall, density and coverage against as many training images as there are samples.
    By the judge of the digits: the Frechet distance of its features and the share of samples that
    it is sure of, over that of real digits.

    Args:
        config: of the run.
        system: with the average's weights.
        dataset: what it trains on.
        folder: keeps the statistics of the training set.
        network: of `load_network`.
    """

    def __init__(
        self,
        config: Config,
        system: System,
        dataset: ImageDataset | PixelCache,
        folder: RunFolder,
        network: FeatureNetwork | None,
    ) -> None:
        self.system = system
        self.dataset = dataset
        self.folder = folder
        self.network = network
        self.seeds = torch.arange(config.log.scored)
        self.batch_size = min(len(self.seeds), config.training.batch_size)
        self.name = "the judge of digits" if network is None else network.name
        self._judge: DigitJudge | None = None
        self._real: tuple[Tensor, Tensor] | None = None
        self._some: Tensor | None = None

    def note(self) -> str | None:
        """What is to be known of the scores before they are read."""
        if self.network is None or len(self.seeds) >= self.network.features:
            return None
        return (
            f"Scores while training are of {len(self.seeds)} samples, fewer than the "
            f"{self.network.features} features of {self.name}: their Frechet distances are too "
            "large, all alike, and compare among themselves only."
        )

    def __call__(self) -> dict[str, float]:
        began = time.perf_counter()
        batches = (self.system(part) for part in self.seeds.split(self.batch_size))
        found = self._judged(batches) if self.network is None else self._compared(batches)
        return {**found, "took": round(time.perf_counter() - began, 3)}

    def _judged(self, batches: Iterable[Tensor]) -> dict[str, float]:
        samples = torch.cat(list(batches))
        if self._judge is None:
            self._judge = DigitJudge(samples.shape[-1])
        scores = self._judge.scores(samples)
        return {
            "frechet_distance": self._judge.frechet_distance(samples),
            "share_confident_ratio": scores.share_confident / scores.share_confident_real,
        }

    def _compared(self, batches: Iterable[Tensor]) -> dict[str, float]:
        network, device = self.network, self.system.device
        assert network is not None
        if self._real is None or self._some is None:
            self._real, self._some = self._of_training_set(network)
        total = len(self.seeds)
        fake = extract_features(network, batches, device=device, total=total)
        some, near = self._some.to(device), fake.to(device)
        found = {
            "frechet_distance": frechet_distance(fake, self._real),
            "kernel_distance": kernel_distance(near, some).mean,
        }
        if len(some) > DENSITY_K:
            found |= neighbour_scores(some, near, density_k=DENSITY_K)._asdict()
        return found

    def _of_training_set(self, network: FeatureNetwork) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Statistics of all images, kept in the run folder, and features of some, spread evenly."""
        path, count = self.folder.statistics, len(self.dataset)
        resolution = self.system.config.images.resolution
        about = {"network": network.name, "resolution": resolution, "count": count}
        known = None
        if path.exists() and statistics_facts(path) == about:
            known = load_statistics(path)
        if known is None:
            moments = Moments(network.features)
            device = self.system.device
            for part in self._progress(torch.arange(count).split(BATCH), count):
                moments.add(extract_features(network, [self._images(part)], device=device))
            save_statistics(path, moments, network, resolution)
            known = moments.statistics()
        wanted = min(count, len(self.seeds))
        chosen = torch.arange(wanted) * count // wanted
        parts = (self._images(part) for part in chosen.split(BATCH))
        return known, extract_features(network, parts, device=self.system.device, total=wanted)

    def _images(self, indices: Tensor) -> Tensor:
        return torch.stack([self.dataset[i] for i in indices.tolist()])

    def _progress(self, parts: Iterable[Tensor], total: int) -> Iterator[Tensor]:
        from tqdm import tqdm

        with tqdm(total=total, desc="training set", unit="img", disable=None, delay=2) as bar:
            for part in parts:
                yield part
                bar.update(len(part))
