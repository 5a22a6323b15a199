"""Adam as all stages use it, and its learning rate."""

import math

from torch import nn
from torch.optim import Adam, Optimizer

from lddgan_kernels.trainer import distributed


def adam(module: nn.Module, lr: float) -> Optimizer:
    """Adam (0.5, 0.9); its step takes the mean of the processes' gradients."""
    fused = next(module.parameters()).device.type in ("cpu", "cuda")
    optimizer = Adam(module.parameters(), lr=lr, betas=(0.5, 0.9), fused=fused)
    distributed.average_gradients(optimizer)
    return optimizer


def learning_rate(base: float, schedule: str, progress: float) -> float:
    """The rate at `progress` of training, 0..1: "constant", or "cosine", which ends at zero."""
    return base * 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else base


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
