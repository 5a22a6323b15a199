"""One step of the diffusion GAN (both networks) of `cifar10` at batch 16, against the same model
under `use_backend("reference")`, in both layouts; ordinary steps and steps with the R1 penalty.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._harness import Case, device
from lddgan_kernels import use_backend
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.stage3 import GanStage

BATCH = 16


class _Latents:
    """Stands in for the latent cache: the stage asks only for its length."""

    steps_per_epoch = 1000


def _stage(precision: str, channels_last: bool) -> GanStage:
    config = config_file.load("cifar10")
    config = dataclasses.replace(
        config,
        precision=precision,
        channels_last=channels_last,
        gan=dataclasses.replace(config.gan, batch_size=BATCH),
    )
    return GanStage(config, _Latents(), device())  # type: ignore[arg-type]


def cases() -> Iterator[Case]:
    for precision in ("float32", "bfloat16"):
        for penalty in (False, True):
            yield _case(precision, penalty)


def _case(precision: str, penalty: bool) -> Case:
    ours, contiguous = _stage(precision, True), _stage(precision, False)
    index = 0 if penalty else 1

    def reference(stage: GanStage, batch: Tensor) -> dict[str, Tensor]:
        with use_backend("reference"):
            return stage.step(index, batch)

    def check() -> None:
        batch = inputs()[0]
        found = ours.step(index, batch)["discriminator"].item()
        plain = reference(contiguous, batch)["discriminator"].item()
        assert abs(found - plain) < 0.05 * abs(plain), (found, plain)

    shape = (BATCH, *networks.latent_shape(ours.config))

    def inputs() -> tuple[Tensor]:
        return (torch.rand(shape, device=device()) * 2 - 1,)

    kind = "with R1" if penalty else "without R1"
    return Case(
        name=f"cifar10 step, batch {BATCH}, {precision}, {kind}",
        group=f"{precision} {kind}",
        inputs=inputs,
        sides={
            "ours": lambda batch: ours.step(index, batch),
            "reference": lambda batch: reference(ours, batch),
            "reference contiguous": lambda batch: reference(contiguous, batch),
        },
        check=check,
        bytes_moved=0,
    )
