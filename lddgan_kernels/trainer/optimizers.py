"""Adam as all stages use it, and its learning rate."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lddgan_kernels.trainer import distributed


def adam(module: nn.Module, lr: float, betas: tuple[float, float] = (0.5, 0.9)) -> Optimizer:
    """Adam, by default as GANs have it; its step takes the mean of the processes' gradients."""
    device = next(module.parameters()).device
    # On a GPU the rate is a tensor there, which a CUDA graph of the step reads anew.
    rate: float | Tensor = torch.tensor(lr, device=device) if device.type == "cuda" else lr
    fused = device.type in ("cpu", "cuda")
    optimizer = Adam(module.parameters(), lr=rate, betas=betas, fused=fused)
    distributed.average_gradients(optimizer)
    return optimizer


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Moments and counts of a `state_dict()`; the options stay as they are on this device."""
    options = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": options})


@contextmanager
def capturing(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """While a CUDA graph is captured: says so to the optimizers."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def learning_rate(base: float, schedule: str, progress: float) -> float:
    """The rate at `progress` of training, 0..1: "constant", or "cosine", which ends at zero."""
    return base * 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else base


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
