"""One step of the diffusion GAN (both networks) of `cifar10`, against plain PyTorch.

Ours is, on a GPU, replayed as CUDA graphs; "ours, call by call" is without. Other sides: the
published form (FIR by zero-stuffing, contiguous) in float32 and in our precision, and the best
plain form (FIR as depthwise convolution, channels_last); on a GPU, and with `--all`, that with both
networks under torch.compile too (steps with the R1 penalty stay eager there: compiled code has no
second derivative), on a GPU replayed as ours is. A group's ratio weighs steps with and without the
penalty as training does: one in `r1_every`. The batch is the preset's on a GPU, 16 on a CPU.
`--all` adds the other presets.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import _limits
from benchmarks._harness import Case, device, network_dtypes
from benchmarks._plain_models import BEST, PUBLISHED, Form, plain
from benchmarks.sampling import PRESETS
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.gan_stage import GanStage

TARGETS = {
    "float32": {"published float32": 1.8, "plain": 1.4},
    "bfloat16": {"published float32": 2.0},
}
GPU_TARGETS = {"bfloat16": {"published": 2.0, "compile": 1.3}}


class _Latents:
    """Stands in for the latent cache: the stage asks only for its length."""

    steps_per_epoch = 1000


def _batch(config: Config) -> int:
    if device().type == "cuda":
        return config.gan.batch_size
    # On two cores a step on maps of 64 px takes seconds an image.
    return 16 if networks.latent_shape(config)[1] <= 32 else 2


def _stage(preset: str, precision: str, channels_last: bool, cuda_graphs: bool = False) -> GanStage:
    config = config_file.load(preset)
    config = dataclasses.replace(
        config,
        precision=precision,
        channels_last=channels_last,
        cuda_graphs=cuda_graphs,
        gan=dataclasses.replace(config.gan, batch_size=_batch(config)),
    )
    return GanStage(config, _Latents(), device())  # type: ignore[arg-type]


def _compiled(preset: str, precision: str, penalty: bool, cuda_graphs: bool) -> GanStage:
    """The best plain form, both networks under torch.compile unless for steps with a penalty."""
    torch._dynamo.reset()
    stage = _stage(preset, precision, True, cuda_graphs)
    if penalty:
        return stage
    stage.generator.compile(dynamic=False)
    stage.discriminator.compile(dynamic=False)
    return stage


def cases_of_systems(everything: bool) -> Iterator[Case]:
    for preset in PRESETS if everything else PRESETS[:1]:
        for dtype in network_dtypes():
            precision = str(dtype).removeprefix("torch.")
            for penalty in (False, True):
                yield _case(preset, precision, penalty, everything)


def _case(preset: str, precision: str, penalty: bool, everything: bool) -> Case:
    ours = _stage(preset, precision, True, cuda_graphs=True)
    index = 0 if penalty else 1
    every, batch_size = ours.config.gan.r1_every, ours.batch_size
    shape = (batch_size, *networks.latent_shape(ours.config))
    gpu = device().type == "cuda"
    targets = (GPU_TARGETS if gpu else TARGETS).get(precision, {}) if preset == "cifar10" else {}

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
        "published float32": side(_stage(preset, "float32", False), PUBLISHED),
        "plain": side(_stage(preset, precision, True), BEST),
    }
    if precision != "float32":
        sides["published"] = side(_stage(preset, precision, False), PUBLISHED)
    if gpu:
        eager = _stage(preset, precision, True)
        sides["ours, call by call"] = lambda batch: eager.step(index, batch)
    if gpu or everything:
        sides["compile"] = side(_compiled(preset, precision, penalty, cuda_graphs=gpu), BEST)

    def check() -> None:
        batch = inputs()[0]
        losses = {name: fn(batch)["discriminator"].item() for name, fn in sides.items()}
        expected = losses["published float32"]
        assert all(abs(loss - expected) < 0.05 * abs(expected) for loss in losses.values()), losses

    def facts(seconds: float) -> dict:
        batch = inputs()[0]
        published = sides.get("published", sides["published float32"])
        return {
            "images_per_second": batch_size / seconds,
            "peak_bytes": _limits.allocated(lambda: step(batch))[0],
            "peak_bytes_published": _limits.allocated(lambda: published(batch))[0],
        }

    kind = "with R1" if penalty else "without R1"
    return Case(
        name=f"{preset} step, batch {batch_size}, {precision}, {kind}",
        group=precision if preset == "cifar10" else f"{preset} {precision}",
        inputs=inputs,
        sides=sides,
        check=check,
        bytes_moved=0,
        targets=targets,
        share=1 / every if penalty else 1 - 1 / every,
        facts=facts,
        as_called=True,
    )
