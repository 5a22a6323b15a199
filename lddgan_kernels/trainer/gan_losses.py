"""The losses of the GAN (equation numbers: Trinh and Hamagami 2024, the LDDGAN paper)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating loss, a scalar: mean softplus(-real) + mean softplus(fake), of logits."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss, a scalar: mean softplus(-fake), of the discriminator's logits."""
    return F.softplus(-fake.float()).mean()


def gradient_penalty(real: Tensor, x_t: Tensor) -> Tensor:
    """R1, a scalar: mean over the batch of the squared norm of d real / d x_t.

    Times gamma / 2 it joins the discriminator's loss (Mescheder et al. 2018, "Which training
    methods for GANs do actually converge?", equation 9). Differentiable.

    Args:
        real: (N, 1) logits of x_t.
        x_t: (N, C, H, W), requires a gradient.
    """
    (gradient,) = torch.autograd.grad(real.float().sum(), x_t, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean()


def reconstruction_loss(x0: Tensor, predicted: Tensor) -> Tensor:
    """Mean absolute difference, a scalar (equation 7)."""
    return F.l1_loss(predicted.float(), x0.float())


def reconstruction_weight(progress: float, delta: float = 6.0) -> float:
    """Weighted Learning: the weight of the reconstruction loss at `progress` of training, 0..1.

    lambda = 1 / (1 + exp(phi)), phi = -delta + 2 delta progress: it falls from 0.9975 to 0.0025, so
    that the reconstruction leads at first and the adversary in the end. (Equation 9 as printed
    lacks the 2 and would end at 0.5, against its own figure.)
    """
    return 1.0 / (1.0 + math.exp(-delta + 2.0 * delta * progress))
