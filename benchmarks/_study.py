"""Systems trained and judged side by side: what `trilemma` and `ablations` share.

A study keeps its run folders and `results.json` in one folder; stopped, the same command goes on.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lddgan_kernels.data.digits import load_digits
from lddgan_kernels.metrics import (
    DigitJudge,
    extract_features,
    frechet_distance,
    load_features,
    neighbour_scores,
)
from lddgan_kernels.trainer import config_file, networks, train
from lddgan_kernels.trainer.autoencoder_stage import AutoencoderStage
from lddgan_kernels.trainer.batches import open_dataset
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.diffusion_stage import DiffusionStage
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.gan_stage import GanStage
from lddgan_kernels.trainer.system import System

TIMED_SECONDS = 20.0  # for the speed of a system, about
TIMED = 100  # images, as the papers have it


class Judge:
    """judge(samples): scores by name of samples (N, C, H, W) uint8, against the training images.

    On the embedded digits the features are those of `DigitJudge`, which also tells which share of
    the samples it is sure of (over that of real digits) and which digits it reads.

    Args:
        config: names the images.
        features: of a feature network, as for `load_features`; None: on the digits.
        count: real images that neighbours are looked for among.
        device: where the network runs.
    """

    def __init__(self, config: Config, features: str | None, count: int, device: str) -> None:
        self.device = device
        self._digits, self._network = None, None
        if config.data is None:
            self._digits = DigitJudge(config.images.resolution)
            self._real = self._digits.features(
                load_digits("train", config.images.resolution).images
            )
        elif features is None:
            raise ValueError("study: --features must name a feature network with --data, got none")
        else:
            self._network = load_features(features)
            dataset = open_dataset(dataclasses.replace(config, limit=count))
            images = torch.stack([dataset[i] for i in range(len(dataset))])
            self._real = self._features(images)

    def __call__(self, samples: Tensor) -> dict[str, Any]:
        fake = self._features(samples)
        found: dict[str, Any] = {"frechet": frechet_distance(fake, self._real)}
        found |= neighbour_scores(self._real, fake)._asdict()
        if self._digits is not None:
            scores = self._digits.scores(samples)
            shares = scores.digit_shares
            found["confident"] = scores.share_confident / scores.share_confident_real
            found["rarest"], found["commonest"] = min(shares), max(shares)
        return found

    def _features(self, images: Tensor) -> Tensor:
        if self._digits is not None:
            return self._digits.features(images)
        assert self._network is not None
        return extract_features(self._network, images.split(64), device=self.device)


class Study:
    """The results of a folder, by name; each is stored as soon as it is there."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / "results.json"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.rows = json.loads(self.path.read_text())

    def trained(self, name: str, make: Callable[[], Config], device: str) -> RunFolder:
        """The finished run `name`; `make` is asked for its configuration where it is new."""
        folder = RunFolder(self.out / name)
        begun = folder.config.exists()
        if not _finished(folder):
            config = config_file.load(str(folder.config)) if begun else make()
            train(config, folder.path, resume=begun, device=device)
        return folder

    def judged(self, name: str, system: System, judge: Judge, count: int) -> dict[str, Any]:
        """The scores of samples of seeds 0 .. count - 1, the calls and seconds for 100 images."""
        if name not in self.rows:
            row = {"calls": system.calls, "seconds": seconds_of(system)}
            self.rows[name] = row | judge(system(torch.arange(count), TIMED))
            self.out.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
            print(f"{name}: {shown(self.rows[name])}", flush=True)
        return self.rows[name]


def _finished(folder: RunFolder) -> bool:
    """Whether the run ended with its summary."""
    if not folder.log.exists():
        return False
    lines = folder.log.read_text().splitlines()
    return bool(lines) and json.loads(lines[-1])["kind"] == "summary"


def shown(row: dict[str, Any]) -> str:
    """A row for a line of text."""
    return ", ".join(f"{k} {v:.4g}" for k, v in row.items())


def seconds_of(system: System) -> float:
    """The median time of 100 images, after what is done once."""
    seeds = torch.arange(TIMED)
    times: list[float] = []
    begin = time.perf_counter()
    for _ in range(2):  # the second records or captures
        system(seeds, TIMED)
        if time.perf_counter() - begin > TIMED_SECONDS:
            break
    while len(times) < 3 or sum(times) < TIMED_SECONDS / 4:
        begin = time.perf_counter()
        system(seeds, TIMED)
        times.append(time.perf_counter() - begin)
        if sum(times) > TIMED_SECONDS:
            break
    return statistics.median(times)


class _Batches:
    """Stands in for the data: a stage asks only for its length."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch

    def epoch(self, number: int, start: int) -> Iterator[Tensor]:
        raise NotImplementedError


def within(config: Config, minutes: float, images: int, device: str) -> Config:
    """The configuration with as many epochs, or a VAE's steps, as fit into the time here.

    An autoencoder's training counts; at most half of the time is its own, but of a VAE.
    """
    place, left = torch.device(device), 60.0 * minutes
    if config.codec == "autoencoder":
        shape = (config.images.channels, config.images.resolution, config.images.resolution)
        stage = AutoencoderStage(config, _Batches(1), place, None)
        each = _seconds_a_step(stage, shape)
        most = int((left if config.method == "vae" else left / 2) / each)
        training = config.autoencoder_training
        steps = most if config.method == "vae" else min(training.steps, most)
        training = dataclasses.replace(training, steps=max(1, steps))
        config = dataclasses.replace(config, autoencoder_training=training)
        left -= each * training.steps
    if config.method == "vae":
        return config
    kind = DiffusionStage if config.method == "ddpm" else GanStage
    epoch = max(1, images // config.training.batch_size)
    each = _seconds_a_step(kind(config, _Batches(epoch), place), networks.latent_shape(config))
    changed = dataclasses.replace(config.training, epochs=max(1, int(left / (each * epoch))))
    name = "ddpm" if config.method == "ddpm" else "gan"
    return dataclasses.replace(config, **{name: changed})


def _seconds_a_step(stage: Any, shape: tuple[int, ...], steps: int = 20) -> float:
    """After a few steps that load and tune; R1 is in some."""
    batch = torch.rand(stage.batch_size, *shape, device=stage.device) * 2 - 1
    for index in range(5):
        stage.step(index, batch)
    begin = time.perf_counter()
    for index in range(steps):
        metrics = stage.step(index, batch)
    next(iter(metrics.values())).item()  # waits for a GPU
    return (time.perf_counter() - begin) / steps
