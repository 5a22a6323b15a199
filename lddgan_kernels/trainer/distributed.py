"""Several processes with one model: started by `torchrun`, one device each.

Gradients are averaged by one all-reduce right before each optimizer step, so penalties with double
backward, adaptive loss weights and gradient accumulation need no care, and the loop is the same
with one process.

A process has every world-size-th image of a batch, from that of its rank on. So its groups in
`minibatch_stddev`, which are strided too, are groups of the whole batch, and its k-th part of a
batch is its share of the whole batch's k-th part.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.optim import Optimizer

_groups = itertools.count()  # that this process has been in: each has its own part of the store


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or can't be reached."""


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """The processes' group while it lasts; yields this process's device.

    Without `torchrun` there is no group and `device` stands. Where a process ends, whatever the
    others do together next raises ProcessLost in them.
    """
    if "WORLD_SIZE" not in os.environ:
        yield torch.device(device)
        return
    own_device = torch.device(device)
    if own_device.type == "cuda":
        own_device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own_device)
    backend = "nccl" if own_device.type == "cuda" else "gloo"
    with _together():
        where = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        store, rank, world_size = _meet(*where)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"group {next(_groups)}", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world_size,
            timeout=timedelta(hours=2),  # rank 0 writes files and scores while the others wait
        )
    try:
        yield own_device
    finally:
        dist.destroy_process_group()


@functools.cache
def _meet(address: str | None, port: str | None) -> tuple[Any, int, int]:
    """The processes' common store, this one's rank, and how many there are.

    It stays, for one group after the other: who is early with the next group must neither meet the
    store of the last one, about to go, nor read in it where processes could be reached then.
    """
    return next(rendezvous("env://", timeout=timedelta(minutes=10)))


@contextmanager
def _together() -> Iterator[None]:
    """Around what all processes do at once."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ProcessLost(
            "train: another process of this run has ended or can't be reached; --resume goes on "
            f"from the last checkpoint ({reason})"
        ) from error


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own(whole: Tensor) -> Tensor:
    """This process's entries of what there is one of for each image of a whole batch."""
    return whole[rank() :: world_size()].clone() if dist.is_initialized() else whole


def gather(share: Tensor) -> Tensor:
    """The whole of which each process has its `own`, without gradients."""
    if not dist.is_initialized():
        return share
    share = share.detach().contiguous()
    shares = [torch.empty_like(share) for _ in range(world_size())]
    with _together():
        dist.all_gather(shares, share)
    return torch.stack(shares, dim=1).flatten(0, 1)


def wait() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        with _together():
            dist.barrier()


def average(tensor: Tensor) -> None:
    """Replaces a tensor by its mean over the processes."""
    if dist.is_initialized():
        with _together():
            dist.all_reduce(tensor)
        tensor /= world_size()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    with _together():
        dist.all_reduce(value)
    return value.item() > 0


@torch.no_grad()
def share(modules: Iterable[nn.Module]) -> None:
    """Gives all processes rank 0's parameters and buffers."""
    if dist.is_initialized():
        with _together():
            for module in modules:
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, 0)


def average_gradients(optimizer: Optimizer) -> None:
    """From now on `optimizer.step()` uses the mean of the processes' gradients."""
    if not dist.is_initialized():
        return

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        average(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
        )

    optimizer.register_step_pre_hook(hook)
