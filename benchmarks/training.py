"""One step of the diffusion GAN (both networks) of `cifar10` at batch 16, against plain PyTorch.

Sides: the published form (FIR by zero-stuffing, contiguous) in float32 and in our precision, and
the best plain form (FIR as depthwise convolution, channels_last). A group's ratio weighs steps with
and without the R1 penalty as training does: one in `r1_every`.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import _limits
from benchmarks._harness import Case, device
from benchmarks._plain_models import BEST, PUBLISHED, Form, plain
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.stage3 import GanStage

BATCH = 16
TARGETS = {"float32": {"published float32": 1.2}, "bfloat16": {"published float32": 2.0}}


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
    ours = _stage(precision, True)
    index = 0 if penalty else 1
    every = ours.config.gan.r1_every
    shape = (BATCH, *networks.latent_shape(ours.config))

    def inputs() -> tuple[Tensor]:
        return (torch.rand(shape, device=device()) * 2 - 1,)

    def side(stage: GanStage, form: Form) -> Callable:
        def step(batch: Tensor) -> dict[str, Tensor]:
            with plain(form):
                return stage.step(index, batch)

        return step

    def step(batch: Tensor) -> dict[str, Tensor]:
        return ours.step(index, batch)

    sides: dict[str, Callable] = {
        "ours": step,
        "published float32": side(_stage("float32", False), PUBLISHED),
        "plain": side(_stage(precision, True), BEST),
    }
    if precision != "float32":
        sides["published"] = side(_stage(precision, False), PUBLISHED)

    def check() -> None:
        batch = inputs()[0]
        losses = {name: fn(batch)["discriminator"].item() for name, fn in sides.items()}
        expected = losses["published float32"]
        assert all(abs(loss - expected) < 0.05 * abs(expected) for loss in losses.values()), losses

    def facts(seconds: float) -> dict:
        batch = inputs()[0]
        published = sides.get("published", sides["published float32"])
        return {
            "images_per_second": BATCH / seconds,
            "peak_bytes": _limits.allocated(lambda: step(batch))[0],
            "peak_bytes_published": _limits.allocated(lambda: published(batch))[0],
        }

    kind = "with R1" if penalty else "without R1"
    return Case(
        name=f"cifar10 step, batch {BATCH}, {precision}, {kind}",
        group=precision,
        inputs=inputs,
        sides=sides,
        check=check,
        bytes_moved=0,
        targets=TARGETS[precision],
        share=1 / every if penalty else 1 - 1 / every,
        facts=facts,
    )
