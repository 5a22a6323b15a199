"""The vector quantiser (van den Oord et al. 2017, "Neural discrete representation learning")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.ops import nearest_code


class VectorQuantizer(nn.Module):
    """Replaces each position's vector by its nearest of `codebook_size` learned ones.

    Args:
        codebook_size: K, the number of codes.
        dim: D, the channels of a code.
        beta: weight of the commitment term.
    """

    def __init__(self, codebook_size: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim))
        nn.init.uniform_(self.codebook, -1.0 / codebook_size, 1.0 / codebook_size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(quantised, indices (N, H, W)) of z (N, D, H, W), with a straight-through gradient."""
        return nearest_code(z, self.codebook)

    def loss(self, z: Tensor, indices: Tensor) -> Tensor:
        """Codebook and commitment loss, a scalar (their equation 3).

        mean |sg(z) - e|^2 + beta * mean |z - sg(e)|^2, e the codes at `indices` (N, H, W). The
        published LDDGAN code, for old checkpoints' sake, has beta on the first term instead.
        """
        codes = F.embedding(indices, self.codebook).permute(0, 3, 1, 2)
        z = z.to(codes.dtype)
        return F.mse_loss(codes, z.detach()) + self.beta * F.mse_loss(z, codes.detach())

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        """Sets the codes to vectors of `z` (N, D, H, W), drawn at random.

        The usual start is far smaller than an encoder's outputs, so that few codes ever win a
        position; drawn from the data, all take part from the first step.
        """
        vectors = z.to(self.codebook.dtype).permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        size = self.codebook.shape[0]
        order = torch.randperm(vectors.shape[0], device=z.device)
        repeats = -(-size // vectors.shape[0])
        chosen = vectors[order.repeat(repeats)[:size]]
        # Repeated vectors must differ, or all but the lowest index would never be chosen.
        self.codebook.copy_(chosen + 1e-2 * vectors.std() * torch.randn_like(chosen))
