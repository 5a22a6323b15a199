"""How fast this machine runs the library, beside plain PyTorch: what `info --speed` prints."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from lddgan_kernels._backend import use_backend
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.ops import ada_group_norm
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.gan_stage import GanStage

_SECONDS = 3.0  # a line, about: half a minute in all
_ROUNDS = 3  # at least
_SLOWER = 0.95  # by more than what runs differ


def speed_report() -> Iterator[str]:
    """Lines of text, each as soon as it is measured; the last says where ours is slower."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield f"{'':44s}{'ours':>10s}{'plain':>10s}"
    slower = []
    for name, make in _work(device):
        work = make()
        ours, plain = _measure(work, device)
        ratio = plain / ours
        yield f"{name:44s}{ours * 1e3:7.2f} ms{plain * 1e3:7.2f} ms{ratio:7.2f}x"
        if ratio < _SLOWER:
            slower.append(name)
    if slower:
        yield f"SLOWER than plain PyTorch: {'; '.join(slower)}"
        yield "This is a bug: please report it with all of these lines"
    else:
        yield "nowhere slower than plain PyTorch"


def _work(device: torch.device) -> Iterator[tuple[str, Callable[[], Callable[[], object]]]]:
    """(name, what makes the function to time)."""
    dtypes = [torch.float32] + [torch.bfloat16] * multiplies_bfloat16(device)[0]
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        yield f"norm of 16x128x32x32, {kind}", lambda dtype=dtype: _norm(dtype, device)  # type: ignore[misc]
        for batch in (1, 16):
            yield (
                f"generator of cifar10, batch {batch}, {kind}",
                lambda batch=batch, dtype=dtype: _generator(batch, dtype, device),  # type: ignore[misc]
            )
    yield "training step of digits", lambda: _training(device)


def _norm(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = torch.randn(16, 128, 32, 32, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 16, 128, device=device).to(dtype).unbind()
    return lambda: ada_group_norm(x, scale, shift, 32)


def _generator(batch: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    config = config_file.load("cifar10")
    generator = networks.build_generator(config).eval().requires_grad_(False).to(device, dtype)
    generator = generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, *networks.latent_shape(config), device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.zeros(batch, dtype=torch.long, device=device)
    z = torch.randn(batch, config.generator.z_dim, device=device).to(dtype)

    def call() -> object:
        with torch.no_grad():
            return generator(x, t, z)

    return call


class _Latents:
    """Stands in for the latent cache: the stage asks only for its length."""

    steps_per_epoch = 1000


def _training(device: torch.device) -> Callable[[], object]:
    config = config_file.load("digits")
    gan = dataclasses.replace(config.gan, batch_size=32)
    config = dataclasses.replace(config, gan=gan)
    stage = GanStage(config, _Latents(), device)  # type: ignore[arg-type]
    batch = torch.rand(32, *networks.latent_shape(config), device=device) * 2 - 1
    return lambda: stage.step(1, batch)


def _measure(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Medians of seconds a call, ours and plain PyTorch's, interleaved."""

    def plain() -> object:
        with use_backend("reference"):
            return work()

    def seconds(function: Callable[[], object]) -> float:
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    for function in (work, plain) * 3:  # packs, records, fills caches
        function()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times[0]) < _ROUNDS:
        for function, found in zip((work, plain), times, strict=True):
            found.append(seconds(function))
    return statistics.median(times[0]), statistics.median(times[1])
