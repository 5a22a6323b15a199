"""Sampling in T generator calls, our models against the same in plain PyTorch.

Sides: the published form (FIR by zero-stuffing, contiguous), the best plain form (FIR as depthwise
convolution) in both layouts, and torch.compile of that with its weights frozen, by default options;
ONNX Runtime and OpenVINO where they are installed (`_peers.py`). `--all` adds max-autotune, the
other presets and the decoder. Noise is each side's own: Philox here,
torch.randn there. Images must agree within the error rule on the same noise before anything is
timed. The last line is the headline.

On a GPU all are called from Python, as users do; further sides are torch.compile in the mode that
replays its calls as CUDA graphs, and the compiled calls of a sample captured by hand as one graph.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _limits, _peers
from benchmarks._harness import Case, copy_bandwidth, device, network_dtypes, recorded_calls
from benchmarks._plain_models import BEST, PUBLISHED, Form, plain
from benchmarks.decoder import check_decoder
from benchmarks.decoder import published as published_decoder
from lddgan_kernels.diffusion import (
    STREAM_POSTERIOR,
    STREAM_X_T,
    STREAM_Z,
    Sampler,
    Schedule,
    sample,
)
from lddgan_kernels.ops import posterior_sample, seeded_normal
from lddgan_kernels.testing import assert_error_rule, relative_error
from lddgan_kernels.trainer import config_file, networks

SECONDS = 2.0
PRESETS = (
    "cifar10",
    "ddgan-cifar10",
    "wddgan-cifar10",
    "cifar10-vit-tiny",
    "celebahq256",
    "lsun-church256",
)
LAST = torch.channels_last
Noise = Callable[[tuple[int, ...], int, int], Tensor]

# Over which side how much was asked, by dtype and batch, on the CPU.
TARGETS = {
    ("float32", 1): {"published": 1.35, "fastest other": 1.2},
    ("float32", 16): {"published": 1.2, "fastest other": 1.4},
    ("bfloat16", 1): {"published float32": 2.0, "published": 1.6, "fastest other": 1.3},
    ("bfloat16", 16): {"published float32": 2.1, "published": 1.5, "fastest other": 1.3},
}
GPU_TARGETS = {("bfloat16", 100): {"published float32": 3.0, "compile max-autotune": 1.4}}


class Subject:
    """A preset's networks in one dtype, in both layouts; the weights are the same in all."""

    def __init__(self, preset: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.preset, self.dtype = preset, dtype
        self.config = config_file.load(preset)
        generator = networks.build_generator(self.config).eval().requires_grad_(False)
        for parameter in generator.parameters():  # the last layers of the blocks start at 0
            parameter.add_(torch.randn_like(parameter) * 0.01)
        self.generator = generator.to(device(), dtype)
        self.last = copy.deepcopy(self.generator).to(memory_format=LAST)
        self.schedule = Schedule(self.config.diffusion.num_steps, device())
        self.shape = networks.latent_shape(self.config)
        self.z_dim = self.config.generator.z_dim
        self.decoder: nn.Module | None = None
        if self.config.codec == "autoencoder":
            decoder = networks.build_autoencoder(self.config).eval().requires_grad_(False)
            self.decoder = decoder.to(device(), dtype)
        self.options: dict = {"z_dim": self.z_dim, "dtype": dtype, "memory_format": LAST}
        network = self.last, self.schedule, self.shape
        self.ours = Sampler(*network, **self.options)  # on a GPU, a graph
        self.images = Sampler(*network, decoder=self.decoder, **self.options)

    @torch.no_grad()
    def plain(self, generator: Callable, form: Form, batch: int, noise: Noise) -> Tensor:
        """`ours` step by step with PyTorch's functions and the given noise."""
        with plain(form):
            x = noise((batch, *self.shape), STREAM_X_T, 0)
            for i in reversed(range(self.schedule.num_steps)):
                t = torch.full((batch,), i, device=x.device)
                x0 = generator(x, t, noise((batch, self.z_dim), STREAM_Z, i))
                drawn = noise((batch, *self.shape), STREAM_POSTERIOR, i)
                x = posterior_sample(x0, x, t, self.schedule, step=i, noise=drawn)
        return x

    def noise(self, layout: torch.memory_format) -> Noise:
        def draw(shape: tuple[int, ...], stream: int, step: int) -> Tensor:
            x = torch.randn(shape, dtype=self.dtype, device=device())
            return x.contiguous(memory_format=layout) if len(shape) == 4 else x

        return draw

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """For two seeds on the same noise: "ours", and the plain forms in our dtype and float64.

        The "plain" one runs in our layout: PyTorch's convolutions add up otherwise in
        channels_last, and are two to three times less exact than in the "published" form.
        """
        seeds = torch.arange(2, device=device())

        def draw(dtype: torch.dtype, layout: torch.memory_format) -> Noise:
            def noise(shape: tuple[int, ...], stream: int, step: int) -> Tensor:
                drawn = seeded_normal(shape, seeds, stream, step=step, dtype=self.dtype).to(dtype)
                return drawn.contiguous(memory_format=layout) if len(shape) == 4 else drawn

            return noise

        contiguous = torch.contiguous_format
        double = copy.deepcopy(self.generator).double()
        return {
            "ours": self.ours(seeds),
            "plain": self.plain(self.last, BEST, 2, draw(self.dtype, LAST)),
            "published": self.plain(self.generator, PUBLISHED, 2, draw(self.dtype, contiguous)),
            "exact": self.plain(double, PUBLISHED, 2, draw(torch.float64, contiguous)),
        }

    def check(self) -> None:
        """Asserts the error rule on the samples of two seeds."""
        found = self.outputs
        assert_error_rule(found["ours"], found["plain"], found["exact"])

    def errors(self) -> dict[str, float]:
        """Of ours, of the plain form in our layout, and of the published form."""
        exact = self.outputs["exact"]
        errors = {name: relative_error(x, exact) for name, x in self.outputs.items()}
        return {
            "error": errors["ours"],
            "error_plain": errors["plain"],
            "error_published": errors["published"],
        }

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def case(
        self,
        batch: int,
        sides: dict[str, Callable],
        check: Callable[[], None],
        what: str = "",
        **more: Any,
    ) -> Case:
        """A row for `batch` seeds: `what` of the preset in our dtype; `more` are fields of Case."""
        facts = {"facts": lambda seconds: {"images_per_second": batch / seconds}}
        return Case(
            name=f"{self.preset}{what}, {self.dtype_name}, batch {batch}",
            group=f"{self.preset}{what} {self.dtype_name} batch {batch}",
            inputs=lambda: (torch.arange(batch, device=device()),),
            sides=sides,
            check=check,
            bytes_moved=0,
            **facts | more,
        )


def compiled(generator: nn.Module, mode: str | None) -> Callable:
    """The generator under torch.compile, its weights frozen into the code."""
    torch._inductor.config.freezing = True
    return torch.compile(lambda x, t, z: generator(x, t, z), dynamic=False, mode=mode)


def _captured(draw: Callable) -> Callable:
    """`draw` replayed as a CUDA graph of its first call, which compiles."""
    replay = cache(lambda: recorded_calls(draw, [(torch.empty(0),)], 1))  # no seeds are read
    return lambda seeds: replay()()


def _case(subject: Subject, full: Subject, batch: int, everything: bool) -> Case:
    """Latents (or pixels) of `subject`; `full` is the same in float32."""
    torch._dynamo.reset()
    contiguous = torch.contiguous_format

    def side(who: Subject, generator: Callable, form: Form, layout: torch.memory_format):
        noise = who.noise(layout)
        return lambda seeds: who.plain(generator, form, batch, noise)

    sides = {
        "ours": subject.ours,
        "published": side(subject, subject.generator, PUBLISHED, contiguous),
        "plain contiguous": side(subject, subject.generator, BEST, contiguous),
        "plain channels_last": side(subject, subject.last, BEST, LAST),
        "compile": side(subject, compiled(subject.last, None), BEST, LAST),
    }
    gpu = device().type == "cuda"
    if gpu:
        sides["compile, one graph"] = _captured(sides["compile"])
        fast = compiled(subject.last, "reduce-overhead")
        sides["compile reduce-overhead"] = side(subject, fast, BEST, LAST)
    flat = torch.randn(batch, *subject.shape, device=device()).to(subject.dtype)
    example = (
        flat,
        torch.zeros(batch, dtype=torch.long, device=device()),
        torch.randn(batch, subject.z_dim, device=device()).to(subject.dtype),
    )
    for name, call in _peers.sides(subject.generator, example).items():
        sides[name] = side(subject, call, BEST, contiguous)
    targets = GPU_TARGETS if gpu else TARGETS
    if everything:
        tuned = compiled(subject.last, "max-autotune" if gpu else "max-autotune-no-cudagraphs")
        sides["compile max-autotune"] = side(subject, tuned, BEST, LAST)
    if full is not subject:
        sides["published float32"] = side(full, full.generator, PUBLISHED, contiguous)

    asked = targets.get((subject.dtype_name, batch), {})
    if subject.preset != "cifar10":
        asked = {side: ratio for side, ratio in asked.items() if side == "fastest other"}
    best_plain = "plain contiguous", "plain channels_last"
    best = {"best plain": best_plain, "fastest other": _peers.comparable(sides)}
    return subject.case(
        batch,
        sides,
        subject.check,
        targets={side: ratio for side, ratio in asked.items() if side in {*sides, *best}},
        best=best,
        as_called=gpu,
        facts=lambda seconds: _facts(subject, batch, seconds, sides["published"]),
    )


def _facts(subject: Subject, batch: int, seconds: float, published: Callable) -> dict:
    """Images a second, the roofline, where the time goes, and memory."""
    x = torch.randn(batch, *subject.shape, device=device()).to(subject.dtype)
    x = x.contiguous(memory_format=LAST)
    steps = subject.schedule.num_steps
    t = torch.arange(steps, device=device())[:, None].repeat(1, batch)
    z = torch.randn(steps, batch, subject.z_dim, device=device()).to(subject.dtype)
    seeds = torch.arange(batch, device=device())
    facts: dict = {"images_per_second": batch / seconds} | subject.errors()
    facts |= _limits.roofline(
        lambda: networks.build_generator(subject.config),
        [(1, *subject.shape), (1,), (1, subject.z_dim)],
        batch,
        subject.dtype,
        copy_bandwidth(),
    )

    def calls() -> None:  # as `sample` makes them
        for predict in subject.last.predictors(t, z):
            predict(x)

    with torch.no_grad():
        facts |= _limits.breakdown(calls, 20 if batch == 1 else 6, steps)
    facts["times_roofline"] = facts["call_seconds"] / facts["roofline_seconds"]
    facts["sampling_times_roofline"] = seconds / (steps * facts["roofline_seconds"])
    # Without the graph, which has allocated its memory before.
    network = subject.last, subject.schedule, subject.shape
    facts["peak_bytes"] = _limits.allocated(lambda: sample(*network, seeds, **subject.options))[0]
    facts["peak_bytes_published"] = _limits.allocated(lambda: published(seeds))[0]
    fresh = copy.deepcopy(subject.last)  # without what was packed
    with torch.no_grad():
        facts["packed_bytes"] = _limits.allocated(lambda: fresh(x, t[0], z[0]))[1] - x.nbytes
    return facts


def _decoded(subject: Subject, full: Subject, batch: int) -> Case:
    """Images: the latents of `_case`, and the decoder behind them."""

    def side(who: Subject):
        noise, decoder = who.noise(torch.contiguous_format), who.decoder

        def draw(seeds: Tensor) -> Tensor:
            latents = who.plain(who.generator, PUBLISHED, batch, noise)
            with torch.no_grad():
                return published_decoder(decoder, latents)

        return draw

    def check() -> None:
        latents = torch.randn(1, *subject.shape, device=device()).to(subject.dtype)
        with torch.no_grad():
            if subject.decoder.quantizer is not None:  # no position between two codes
                codes = subject.decoder.quantizer.codebook
                latents = F.embedding(latents[:, 0].sigmoid().mul(len(codes)).long(), codes)
                latents = latents.permute(0, 3, 1, 2).contiguous()
            check_decoder(subject.decoder, latents)

    sides = {"ours": subject.images, "published": side(subject)}
    if full is not subject:
        sides["published float32"] = side(full)
    return subject.case(batch, sides, check, " with decoder")


def cases_of_systems(everything: bool) -> Iterator[Case]:
    gpu = device().type == "cuda"
    for preset in PRESETS if everything else PRESETS[:1]:
        subjects = [Subject(preset, dtype) for dtype in network_dtypes()]
        full = subjects[0]
        for subject in subjects:
            for batch in (1, 16, 100) if gpu else (1, 16):
                yield _case(subject, full, batch, everything)
                # On two cores, 256 px take half a minute an image.
                if (
                    everything
                    and subject.decoder is not None
                    and (gpu or batch == 1 or preset == "cifar10")
                ):
                    yield _decoded(subject, full, batch)


def headline(summary: dict) -> str:
    found = (
        f"{sides[side]['ratio']:.2f}x in {dtype}"
        for dtype, side in (("float32", "published"), ("bfloat16", "published float32"))
        if (sides := summary.get(f"cifar10 {dtype} batch 16"))
    )
    return f"sampling cifar10, batch 16, over the published form in float32: {', '.join(found)}"
