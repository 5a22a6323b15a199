"""The one loop: steps, log lines, pictures, checkpoints, and an orderly stop."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.logging import RunLog, progress_bar
from lddgan_kernels.trainer.meter import Meter, NotFinite


class Interrupted(Exception):
    """The run was asked to stop, and its checkpoint is written."""


class Batches(Protocol):
    """Where training batches come from."""

    steps_per_epoch: int

    def epoch(self, number: int, start: int) -> Iterator[Tensor]:
        """One epoch's batches for this process, from batch `start` on."""


class Stage(Protocol):
    """A kind of training."""

    name: str
    config: Config
    batches: Batches
    device: torch.device
    steps: int
    batch_size: int

    def step(self, index: int, batch: Tensor) -> dict[str, Tensor]:
        """One update; 0-dim tensors for the log."""

    def modules(self) -> dict[str, nn.Module]:
        """What is trained."""

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""


class StopRequest:
    """Ctrl-C or a termination signal, as a flag. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopRequest":
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def run_stage(
    stage: Stage,
    folder: RunFolder,
    log: RunLog,
    stop: StopRequest,
    picture: Callable[[int], None],
) -> None:
    """Trains a stage to its end, from its checkpoint on where the run folder holds one.

    Args:
        picture: draws what can be seen after so many steps; called in all processes.

    Raises:
        NotFinite: a loss or weight is NaN or infinite; the last good checkpoint stays.
        Interrupted: a stop was asked for; the checkpoint is written.
    """
    start = folder.restore(stage)
    every = stage.config.log
    meter = Meter()
    batches = _endless(stage.batches, start)
    began, counted = time.perf_counter(), start
    several = distributed.world_size() > 1
    with progress_bar(stage.name, start, stage.steps) as bar:
        for index in range(start, stage.steps):
            metrics = stage.step(index, next(batches))
            meter.add(index, metrics)
            done = index + 1
            bar.update()
            # With several processes a flag is worth a message only where they meet anyway.
            due = done % every.every == 0 or done == stage.steps
            stopping = stop.asked if not several else False
            if several and due:
                stopping = distributed.any_process(stop.asked, stage.device)
            save = stopping or done % every.checkpoint_every == 0 or done == stage.steps
            if due or save:
                try:
                    means = meter.read(stage.name)
                    if save:
                        _check_weights(stage, index)
                except NotFinite as error:
                    raise NotFinite(f"{error}; {folder.last_good()}") from None
                now = time.perf_counter()
                speed = stage.batch_size * (done - counted) / (now - began)
                began, counted = now, done
                log.step(stage.name, done, stage.steps, means, speed)
            if done % every.sample_every == 0 or done == stage.steps:
                picture(done)
            if save:
                folder.save(stage, done, log)
            if stopping and done < stage.steps:
                raise Interrupted(f"stopped at step {done} of {stage.steps} of stage {stage.name}")


def learning_rate(base: float, schedule: str, progress: float) -> float:
    """The rate at `progress` of training, 0..1: "constant", or "cosine", which ends at zero."""
    return base * 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else base


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_seed(seed: int, stage: str, index: int) -> int:
    """The seed of PyTorch's generators for one step in this process.

    A step's randomness follows from it alone, so nothing of it need be in a checkpoint.
    """
    start = sum(byte << 8 * (i % 4) for i, byte in enumerate(stage.encode()))
    return ((seed * 1_000_003 + start) * 2**40 + index * 2**10 + distributed.rank()) % 2**63


def _endless(batches: Batches, start: int) -> Iterator[Tensor]:
    epoch, offset = divmod(start, batches.steps_per_epoch)
    while True:
        yield from batches.epoch(epoch, offset)
        epoch, offset = epoch + 1, 0


@torch.no_grad()
def _check_weights(stage: Stage, index: int) -> None:
    """A last update may have spoilt weights whose losses were still fine."""
    for name, module in stage.modules().items():
        norms = torch._foreach_norm(list(module.parameters()))
        if not torch.stack(norms).isfinite().all():
            raise NotFinite(f"{stage.name}: weights of {name} are not finite at step {index}")
