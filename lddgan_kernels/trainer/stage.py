"""What the loop asks of a kind of training and of its data."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, device, nn

from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.meter import Metrics


class Batches(Protocol):
    """Where training batches come from."""

    steps_per_epoch: int

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """One epoch's batches for this process, from batch `start` on; labels (N,) come second."""


class Stage(Protocol):
    """A kind of training."""

    name: str
    config: Config
    batches: Batches
    device: device
    steps: int
    batch_size: int

    @property
    def step(self) -> Callable[..., Metrics]:
        """step(index, *batch): one update with a batch of `batches`; what is to be seen of it."""

    def modules(self) -> dict[str, nn.Module]:
        """What is trained."""

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""


def step_seed(seed: int, stage: str, index: int, rank: int = 0) -> int:
    """The seed of PyTorch's generators for one step.

    A step's randomness follows from it alone, so nothing of it need be in a checkpoint. Rank 0's is
    that of what is drawn for a whole batch, by all processes alike.
    """
    start = sum(byte << 8 * (i % 4) for i, byte in enumerate(stage.encode()))
    return ((seed * 1_000_003 + start) * 2**40 + index * 2**10 + rank) % 2**63
