"""From the step t to the bias of every block of a network."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn import init
from lddgan_kernels.nn.cached import Cached
from lddgan_kernels.nn.linear import Linear
from lddgan_kernels.nn.module_state import is_hooked
from lddgan_kernels.nn.tracing import is_traced

# All steps that a schedule may have.
STEPS = 8


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the step: (N, width) float32 from t (N,), sines first (Vaswani et al. 2017).

    Frequencies fall from 1 to 1/10000, both included, as in DDPM.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponents * -(math.log(10000.0) / (half - 1)))
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(embedding, (0, 1)) if width % 2 else embedding


class TimeEmbedding(nn.Module):
    """t (N,) -> (N, hidden): sinusoids, then two linear layers, each activated."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.width = width
        self.activation = activation
        self.linear0 = Linear(width, hidden)
        self.linear1 = Linear(hidden, hidden)

    def forward(self, t: Tensor) -> Tensor:
        h = timestep_embedding(t, self.width).to(self.linear0.bias.dtype)
        return self.activation(self.linear1(self.activation(self.linear0(h))))


class TimeBank(nn.Module):
    """All biases that the time embedding controls in a network: one matrix product.

    A block adds its bias after a convolution, whose own bias is therefore kept here as well
    (`conv_bias`) and added to the bank's, so that the convolution runs without.

    Args:
        width: of the time embedding.
        sizes: channels of each block's bias, in the order of execution.
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.weight = nn.Parameter(torch.empty(sum(sizes), width))
        self.bias = nn.Parameter(torch.empty(sum(sizes)))
        self.conv_bias = nn.Parameter(torch.empty(sum(sizes)))
        self._total_bias: Cached[Tensor] = Cached()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights by `init.variance_scaling_` block by block, biases of 0."""
        for rows in self.weight.split(self.sizes):
            init.variance_scaling_(rows)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.conv_bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """The biases of all blocks side by side, (N, sum of `sizes`)."""
        total = self._total_bias(torch.add, self.bias, self.conv_bias)
        return F.linear(embedding, self.weight, total)


class TimeBiases:
    """t (N,) -> bank(embedding(t)); without gradients on a CPU the rows of a table of all steps.

    Not a module: it owns no weights.
    """

    def __init__(self, embedding: TimeEmbedding, bank: TimeBank) -> None:
        self.embedding = embedding
        self.bank = bank
        self._table: Cached[Tensor] = Cached()

    def __call__(self, t: Tensor) -> Tensor:
        if self._suits(t):
            weights = itertools.chain(self.embedding.parameters(), self.bank.parameters())
            table = self._table(self._all_steps, *weights)
            try:
                return table.index_select(0, t)
            except IndexError:
                pass  # no step of a schedule
        rows: Tensor = self.bank(self.embedding(t))
        return rows

    def _suits(self, t: Tensor) -> bool:
        return (
            type(t) is Tensor  # no fake
            and t.is_cpu
            and not t.is_floating_point()  # between steps, of which there may be a thousand
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not is_traced()
            and not is_hooked(self.embedding)
            and not is_hooked(self.bank)
        )

    def _all_steps(self, *_: Tensor) -> Tensor:
        rows: Tensor = self.bank(self.embedding(torch.arange(STEPS)))
        return rows
