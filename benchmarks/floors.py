"""What sampling should take on a GPU that is not at hand: its roofline, and what is aimed at.

For one H200 in bfloat16: T calls of the generator and one of the decoder, each block as long as its
multiplications or its bytes take (`_limits.least_seconds`), and how many kernels they start. No GPU
has confirmed these predictions.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._limits import least_seconds
from benchmarks._passes import passes
from benchmarks.sampling import PRESETS
from lddgan_kernels.nn.summary import summarize
from lddgan_kernels.trainer import config_file, networks

H200_FLOPS = 790e12  # bfloat16, operations a second
H200_BANDWIDTH = 4.3e12  # bytes a second
AIM = 2.5  # times the roofline
BATCHES = (1, 100)


def row(preset: str) -> str:
    """A preset's line of the table: milliseconds of each batch."""
    config = config_file.load(preset)
    latent, z = (1, *networks.latent_shape(config)), (1, config.generator.z_dim)
    steps = config.diffusion.num_steps
    generator, inputs = partial(networks.build_generator, config), [latent, (1,), z]
    calls = [(steps, summarize(generator, inputs))]
    kernels = launches(lambda: Steps(generator(), steps), inputs)
    if config.codec == "autoencoder":
        build = partial(networks.build_autoencoder, config)
        calls.append((1, summarize(build, [latent], "decode")))
        kernels += launches(lambda: build().decoder, [latent])
    cells = [preset, str(steps), str(kernels)]
    for batch in BATCHES:
        floor = sum(
            count * least_seconds(network, batch, torch.bfloat16, H200_FLOPS, H200_BANDWIDTH)
            for count, network in calls
        )
        cells += [f"{1e3 * floor:.2f}", f"{1e3 * AIM * floor:.2f}"]
    return f"| {' | '.join(cells)} |"


class Steps(nn.Module):
    """A generator's calls of one sample, without the noise between them."""

    def __init__(self, generator: nn.Module, steps: int) -> None:
        super().__init__()
        self.generator = generator
        self.steps = steps

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        conditions = (torch.stack([given] * self.steps) for given in (t, z))
        for predict in self.generator.predictors(*conditions):
            x = predict(x)
        return x


def launches(build: Callable[[], nn.Module], shapes: Sequence[tuple[int, ...]]) -> int:
    """Kernels that a call starts, at the least."""
    return sum(call.launches for call in passes(build, shapes, 1))


def table() -> list[str]:
    """The lines of a Markdown table."""
    heads = [f"batch {batch}: {what}" for batch in BATCHES for what in ("floor", "aim")]
    head = f"| preset | T | kernels | {' | '.join(heads)} |"
    return [head, "|---" * (3 + len(heads)) + "|", *map(row, PRESETS)]


def main(everything: bool = False) -> None:
    """Prints the table."""
    print("Predicted milliseconds of a batch on one H200 in bfloat16:", "", *table(), sep="\n")
