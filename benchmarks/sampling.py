"""Sampling latents in T generator calls, against the same model under `use_backend("reference")`.

Batch 1 and 16 of `cifar10`; with `--all` every system's CIFAR-10 preset. The plain form is timed in
both layouts. The last line is the headline.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._harness import Case, device, run
from lddgan_kernels import use_backend
from lddgan_kernels.diffusion import Schedule, sample
from lddgan_kernels.trainer import config_file, networks

PRESETS = ("cifar10", "ddgan-cifar10", "wddgan-cifar10", "cifar10-vit-tiny")


def _cases(everything: bool) -> Iterator[Case]:
    for preset in PRESETS if everything else PRESETS[:1]:
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 16):
                yield _case(preset, dtype, batch)


def _case(preset: str, dtype: torch.dtype, batch: int) -> Case:
    config = config_file.load(preset)
    torch.manual_seed(0)
    models = [
        networks.place(
            networks.build_generator(config).eval().to(dtype),
            device(),
            dataclasses.replace(config, channels_last=channels_last),
        )
        for channels_last in (True, False)
    ]
    models[1].load_state_dict(models[0].state_dict())
    schedule = Schedule(config.diffusion.num_steps, device())
    shape, z_dim = networks.latent_shape(config), config.generator.z_dim
    layouts = (torch.channels_last, torch.contiguous_format)

    def draw(which: int, seeds: Tensor) -> Tensor:
        return sample(
            models[which], schedule, shape, seeds, z_dim=z_dim, dtype=dtype,
            memory_format=layouts[which],
        )  # fmt: skip

    def plain(which: int, seeds: Tensor) -> Tensor:
        with use_backend("reference"):
            return draw(which, seeds)

    def check() -> None:
        seeds = torch.arange(batch, device=device())
        ours, other = draw(0, seeds).float(), plain(1, seeds).float()
        allowed = 1e-3 if dtype == torch.float32 else 0.2
        assert (ours - other).abs().max() <= allowed * other.abs().max()

    name = str(dtype).removeprefix("torch.")
    return Case(
        name=f"{preset}, {name}, batch {batch}",
        group=f"{preset} {name} batch {batch}",
        inputs=lambda: (torch.arange(batch, device=device()),),
        sides={
            "ours": lambda seeds: draw(0, seeds),
            "reference": lambda seeds: plain(0, seeds),
            "reference contiguous": lambda seeds: plain(1, seeds),
        },
        check=check,
        bytes_moved=0,
    )


def main(everything: bool = False) -> None:
    """Runs the benchmark; its headline is the last line printed."""
    summary = run("sampling", _cases(everything), seconds=2.0)
    ratio = summary["cifar10 float32 batch 16"]["reference contiguous"]["ratio"]
    print(f"sampling cifar10, batch 16, float32: {ratio:.2f}x over the plain model")
