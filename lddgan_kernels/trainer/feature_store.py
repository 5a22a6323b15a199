"""Features of many images, part by part on the disk: a call that was stopped goes on, processes
share the parts."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lddgan_kernels._checks import fail
from lddgan_kernels.data import ImageDataset, weights_fingerprint
from lddgan_kernels.metrics import FeatureNetwork
from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.files import write_atomically
from lddgan_kernels.trainer.log import progress_bar
from lddgan_kernels.trainer.samples import system_fingerprint
from lddgan_kernels.trainer.system import System

PART = 256  # images, about

# (images that can be used, which of the batch they are)
Batches = Iterator[tuple[Tensor, Tensor]]


class FeatureStore:
    """Features (N, D) float32 of images 0 to N - 1, whatever the number of processes.

    Parts are cut at the same places and go through the network in the same batches in any number
    of processes, so the features are the same to the bit. The folder must be seen by all of them.

    Args:
        folder: of the parts; `clear` empties it.
        network: on its device.
        batch_size: images at once.
    """

    def __init__(self, folder: Path, network: FeatureNetwork, batch_size: int) -> None:
        self.folder = folder
        self.network = network
        self.batch_size = batch_size
        self.part = batch_size * max(1, PART // batch_size)
        self._unwritten: dict[Path, tuple[Tensor, Tensor]] = {}
        self._about = [network.name, str(network.preparation), weights_fingerprint(network.network)]

    def of_images(self, images: ImageDataset, name: str, workers: int = 0) -> Tensor:
        """Of the images that could be used; marks the others in `images`."""

        def read(part: Tensor) -> Batches:
            chosen = Subset(images, part.tolist())
            loader = DataLoader(chosen, self.batch_size, num_workers=workers)
            for batch, indices in zip(loader, part.split(self.batch_size), strict=True):
                # Where an image is skipped its neighbour stands in; it must not count twice.
                good = images.good[indices]
                yield batch[good], good

        features, good = self._of(read, len(images), images.identity, name)
        images.mark_bad(~good)
        return features

    def of_samples(self, system: System, count: int) -> Tensor:
        """Of the samples of seeds 0 to count - 1."""

        def draw(part: Tensor) -> Batches:
            for seeds in part.split(self.batch_size):
                yield system(seeds, self.batch_size), torch.ones(len(seeds), dtype=torch.bool)

        return self._of(draw, count, system_fingerprint(system), "samples")[0]

    def clear(self) -> None:
        """Removes the parts, by rank 0, once all have read them."""
        distributed.wait()
        if distributed.rank() == 0 and self.folder.exists():
            for path in self.folder.glob("*.npz"):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _of(
        self,
        images: Callable[[Tensor], Batches],
        count: int,
        source: str,
        name: str,
    ) -> tuple[Tensor, Tensor]:
        """(features, which images were good)."""
        key = hashlib.sha256(json.dumps([*self._about, source]).encode()).hexdigest()[:16]
        parts = torch.arange(count).split(self.part)
        paths = [self.folder / f"{key}-{part[0]}-{part[-1]}.npz" for part in parts]
        rank, world = distributed.rank(), distributed.world_size()
        mine = list(zip(paths, parts, strict=True))[rank::world]
        title = f"{self.network.name} features, {name}"
        total = sum(len(part) for _, part in mine)
        with progress_bar(title, 0, total, "img") as bar:
            for path, part in mine:
                if _read(path) is None:
                    self._compute(path, part, images(part))
                bar.update(len(part))
        distributed.wait()
        found = [self._unwritten.get(path) or _read(path) for path in paths]
        if any(part is None for part in found):
            raise fail("evaluate", "out", "in a folder that all processes see", self.folder)
        features, good = zip(*(part for part in found if part is not None), strict=True)
        return torch.cat(features), torch.cat(good)

    def _compute(self, path: Path, part: Tensor, batches: Batches) -> None:
        device = next(self.network.parameters(), part).device
        features, good = [torch.zeros(0, self.network.features)], []
        for batch, usable in batches:
            if len(batch):
                with torch.inference_mode():
                    features.append(self.network(batch.to(device)).float().cpu())
            good.append(usable)
        rows, marks = torch.cat(features), torch.cat(good)
        if not rows.isfinite().all():
            first = int(part[marks][(~rows.isfinite()).any(1)][0])
            raise fail("evaluate", "features", "finite on all images", f"NaN on image {first}")
        held = io.BytesIO()
        np.savez(held, features=rows.numpy(), good=marks.numpy())
        try:
            write_atomically(path, lambda file: file.write(held.getvalue()))
        except OSError:  # one process needs no files, but to go on another time
            if distributed.world_size() > 1:
                raise
            self._unwritten[path] = rows, marks


def _read(path: Path) -> tuple[Tensor, Tensor] | None:
    """(features, which images were good) of a part; None where there is none that is whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return torch.from_numpy(file["features"]), torch.from_numpy(file["good"])
    except Exception:  # a damaged file may raise anything; it is made anew
        return None
