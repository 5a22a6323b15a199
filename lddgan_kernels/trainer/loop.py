"""The one loop: steps, log lines, pictures, checkpoints, and an orderly stop."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.checkpoint import Checkpoint
from lddgan_kernels.trainer.log import RunLog, progress_bar
from lddgan_kernels.trainer.meter import Meter, NotFinite
from lddgan_kernels.trainer.stage import Batches, Stage
from lddgan_kernels.trainer.stop import Interrupted, StopRequest

MESSAGE_EVERY = 8  # steps


def run_stage(
    stage: Stage,
    checkpoint: Checkpoint,
    log: RunLog,
    stop: StopRequest,
    picture: Callable[[int], None],
    score: Callable[[int], None] | None = None,
) -> None:
    """Trains a stage to its end, from its checkpoint on where there is one.

    Args:
        picture: draws what can be seen after so many steps; called in all processes.
        score: likewise, scores it; every `log.score_every` steps.

    Raises:
        NotFinite: a loss or weight is NaN or infinite; the last good checkpoint stays.
        Interrupted: a stop was asked for; the checkpoint is written.
    """
    start = checkpoint.restore(stage)
    log_config = stage.config.log
    meter = Meter()
    batches = _endless(stage.batches, start)
    began, counted = time.perf_counter(), start
    several = distributed.world_size() > 1
    with progress_bar(stage.name, start, stage.steps) as bar:
        for index in range(start, stage.steps):
            metrics = stage.step(index, *next(batches))
            meter.add(index, metrics)
            done = index + 1
            bar.update()
            due = done % log_config.every == 0 or done == stage.steps
            stopping = stop.asked if not several else False
            # With several processes a flag is a message, but launchers wait seconds only.
            if several and (due or done % MESSAGE_EVERY == 0):
                stopping = distributed.any_process(stop.asked, stage.device)
            save = stopping or done % log_config.checkpoint_every == 0 or done == stage.steps
            if due or save:
                try:
                    means = meter.read(stage.name)
                    if save:
                        _check_weights(stage, index)
                except NotFinite as error:
                    raise NotFinite(f"{error}; {checkpoint.last_good()}") from None
                now = time.perf_counter()
                speed = stage.batch_size * (done - counted) / (now - began)
                began, counted = now, done
                log.step(stage.name, done, stage.steps, means, speed)
            paused = time.perf_counter()
            last = done == stage.steps
            # First: the picture's report shows the score.
            if score is not None and (done % log_config.score_every == 0 or last):
                score(done)
            if done % log_config.sample_every == 0 or last:
                picture(done)
            if save:
                checkpoint.save(stage, done, log.seconds(), log.size())
            began += time.perf_counter() - paused  # images a second are those of the training
            if stopping and done < stage.steps:
                raise Interrupted(f"stopped at step {done} of {stage.steps} of stage {stage.name}")


def _endless(batches: Batches, start: int) -> Iterator[tuple[Tensor, ...]]:
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
