"""A folder of samples, written as they are drawn; a call that was stopped goes on where it was."""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lddgan_kernels.data import read_listed, weights_fingerprint, write_listed
from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.codec import AutoencoderCodec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.pictures import save_png
from lddgan_kernels.trainer.stop import Interrupted, StopRequest
from lddgan_kernels.trainer.system import System

# Seconds between two notes of which pictures are there: what is drawn since is drawn again.
NOTED_EVERY = 2.0


class Sample(NamedTuple):
    """What is drawn: a seed, and the class that is asked for, if any."""

    seed: int
    label: int | None = None

    @property
    def name(self) -> str:
        """The picture's: those of a class lie in its folder."""
        return f"{self.seed}.png" if self.label is None else f"{self.label}/{self.seed}.png"


def draw(system: System, samples: Sequence[Sample], batch_size: int) -> Tensor:
    """The images of samples, all with a label or none: (N, C, H, W) uint8."""
    seeds = torch.tensor([sample.seed for sample in samples], dtype=torch.int64)
    labels = [sample.label for sample in samples if sample.label is not None]
    return system(seeds, batch_size, *([torch.tensor(labels)] if labels else []))


def write_samples(system: System, samples: Sequence[Sample], out: Path, batch_size: int) -> int:
    """Draws samples into `out`, under their names; returns how many were drawn now.

    Pictures that an earlier call with the same system and samples left are kept. `out` then lists
    those of this call (`data.write_listed`), with their labels: what else is there is not taken for
    a sample. Several processes share the work; the first lists them.

    Raises:
        Interrupted: a stop was asked for; the batch under way is written.
    """
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    for label in {sample.label for sample in samples if sample.label is not None}:
        (out / str(label)).mkdir(exist_ok=True)
    names = [sample.name for sample in samples]
    call = {"system": system_fingerprint(system), "seeds": names}
    listed = read_listed(out)
    same = listed is not None and listed.get("call") == _short(call)
    before = set(listed["pictures"]) if same and listed is not None else set[str]()
    there = {name for name in before if _is_whole(out / name)}
    left = [sample for sample in samples if sample.name not in there]
    own = left[distributed.rank() :: distributed.world_size()]

    def note() -> None:
        if distributed.rank() > 0:
            return
        done = [sample for sample in samples if sample.name in there]
        labels = [sample.label for sample in done if sample.label is not None]
        write_listed(out, [sample.name for sample in done], labels, call=_short(call))

    note()
    if not left:
        return 0
    drawn, noted = 0, time.monotonic()
    with (
        StopRequest() as stop,
        tqdm(total=len(own), unit="img", delay=5, disable=distributed.rank() > 0) as bar,
    ):
        try:
            for start in range(0, len(own), batch_size):
                part = own[start : start + batch_size]
                for sample, image in zip(part, draw(system, part, batch_size), strict=True):
                    save_png(out / sample.name, image)
                    there.add(sample.name)
                bar.update(len(part))
                drawn += len(part)
                if time.monotonic() - noted > NOTED_EVERY:
                    note()
                    noted = time.monotonic()
                if stop.asked and drawn < len(own):
                    raise Interrupted(
                        f"stopped after {len(there)} of {len(names)} samples in {out}",
                        "the same command goes on",
                    )
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may be full: that is the first error
                note()
            raise
    distributed.wait()
    there.update(names)
    note()
    return len(left)


def read_samples(out: Path, samples: Sequence[Sample]) -> Tensor:
    """(N, C, H, W) uint8 of the pictures of samples."""
    pixels = [np.asarray(Image.open(out / sample.name)) for sample in samples]
    images = torch.from_numpy(np.stack(pixels))
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def system_fingerprint(system: System) -> str:
    """A hash of all that decides which image a seed gives."""
    codec, config = system.codec, system.config
    scale = codec.autoencoder.latent_scale.item() if isinstance(codec, AutoencoderCodec) else 1.0
    about = {
        "generator": weights_fingerprint(system.generator),
        "codec": [type(codec).__name__, weights_fingerprint(codec), scale],
        "diffusion": asdict(config.diffusion) | _sampler(config),
        "precision": config.precision,
        "guidance": system.guidance,
    }
    return _short(about)


def _sampler(config: Config) -> dict[str, object]:
    """How a DDPM is sampled; of other systems nothing."""
    if config.method != "ddpm":
        return {}
    ddpm = config.ddpm
    return {"sampler": ddpm.sampler, "steps": ddpm.sample_steps, "of": ddpm.num_steps}


def _short(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether a picture is there: written to the end (a power cut can leave an empty name)."""
    try:
        with open(path, "rb") as file:
            file.seek(-12, 2)
            return file.read()[4:8] == b"IEND"
    except OSError:
        return False
