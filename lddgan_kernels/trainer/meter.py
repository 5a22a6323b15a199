"""Losses summed where they are computed, read every so often: no wait for the device in between."""

import torch
from torch import Tensor

from lddgan_kernels.trainer import distributed

# What a training step shows of itself: 0-dim tensors by name. Each comes to the log, the report and
# TensorBoard under that name.
Metrics = dict[str, Tensor]


class NotFinite(RuntimeError):
    """A loss became NaN or infinite."""


class Meter:
    """Means of scalar tensors over steps.

    A step may bring other names than the last (a penalty that is due every tenth).
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], tuple[Tensor, Tensor, list[int]]] = {}

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the 0-dim tensors of one step, all on one device, without reading them."""
        values = torch.stack([value.detach().float() for value in metrics.values()])
        names = tuple(metrics)
        if names not in self._groups:
            never = torch.full_like(values, -1.0, dtype=torch.int64)
            self._groups[names] = (torch.zeros_like(values), never, [0])
        total, first_bad, count = self._groups[names]
        total += values
        now = torch.where(values.isfinite(), -1, step)
        torch.where(first_bad < 0, now, first_bad, out=first_bad)
        count[0] += 1

    def read(self, stage: str) -> dict[str, float]:
        """The means since the last reading, averaged over all processes.

        Raises:
            NotFinite: a value was not finite; the message names stage, step and loss.
        """
        bad: list[tuple[int, str]] = []
        sums: dict[str, tuple[float, int]] = {}
        for names, (total, first_bad, (count,)) in self._groups.items():
            distributed.average(total)
            for name, value, step in zip(names, total.tolist(), first_bad.tolist(), strict=True):
                if step >= 0:
                    bad.append((step, name))
                before, counted = sums.get(name, (0.0, 0))
                sums[name] = (before + value, counted + count)
        self._groups.clear()
        means = {name: value / count for name, (value, count) in sums.items()}
        if bad:
            step = min(bad)[0]
            losses = ", ".join(sorted({name for found, name in bad if found == step}))
            raise NotFinite(f"{stage}: {losses} is not finite at step {step}")
        for name, value in means.items():
            if value != value or abs(value) == float("inf"):
                raise NotFinite(f"{stage}: {name} is not finite on another process")
        return means
