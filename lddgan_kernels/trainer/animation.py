"""An interpolation of samples as an animated picture."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lddgan_kernels import diffusion
from lddgan_kernels._checks import fail
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.files import write_atomically
from lddgan_kernels.trainer.pictures import grid, to_uint8
from lddgan_kernels.trainer.precision import autocast
from lddgan_kernels.trainer.samples import Sample
from lddgan_kernels.trainer.system import System

AnimationFormat = Literal["webp", "gif", "png"]

MOST_FRAMES = 2000
MILLISECONDS = 60  # of a frame


def write_animation(
    system: System, samples: Sequence[Sample], path: Path, *, frames: int, batch_size: int
) -> int:
    """Writes the way from seed to seed and back to the first; returns the number of frames.

    Args:
        system: a diffusion GAN.
        samples: at least two seeds; of a system with classes all of one class.
        path: a .webp, .gif or .png (an animated one).
        frames: from a seed to the next.
        batch_size: frames drawn at once.

    Raises:
        ValueError: the system has no such noise or is guided, or there are too few seeds or too
            many frames.
    """
    config = system.config
    if config.method != "gan":
        raise fail("animation", "method", "gan", config.method)
    if system.guidance:
        raise fail("animation", "guidance", "0", system.guidance)
    seeds, labels = [s.seed for s in samples], {s.label for s in samples}
    if len(seeds) < 2:
        raise fail("animation", "seeds", "at least two", seeds)
    label = next(iter(labels))
    if config.classes and (len(labels) > 1 or label is None):
        raise fail("animation", "classes", "one", sorted(x for x in labels if x is not None))
    total = len(seeds) * frames
    if frames < 1 or total > MOST_FRAMES:
        raise fail("animation", "frames", f"in 1..{MOST_FRAMES // len(seeds)}", frames)
    first = torch.tensor(seeds).repeat_interleave(frames)
    fractions = torch.arange(frames).repeat(len(seeds)) / frames
    schedule = networks.build_schedule(config, system.device)
    pictures = []
    with torch.no_grad(), autocast(config, system.device):
        for some in torch.arange(total).split(batch_size):
            latents = diffusion.interpolate(
                system.generator,
                schedule,
                networks.latent_shape(config),
                first[some].to(system.device),
                first.roll(-frames)[some].to(system.device),
                fractions[some],
                z_dim=config.generator.z_dim,
                labels=None if label is None else torch.full_like(some, label).to(system.device),
                memory_format=networks.layout(config),
            )
            pictures.append(to_uint8(system.codec.decode(latents)))
    _save(path, torch.cat(pictures))
    return total


def _save(path: Path, pictures: Tensor) -> None:
    from PIL import Image

    frames = [grid(picture[None]).permute(1, 2, 0).numpy() for picture in pictures]
    images = [Image.fromarray(f[:, :, 0] if f.shape[2] == 1 else f) for f in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    file = io.BytesIO()
    images[0].save(
        file,
        path.suffix[1:].upper(),
        save_all=True,
        append_images=images[1:],
        duration=MILLISECONDS,
        loop=0,
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda out: out.write(file.getvalue()))
