"""The losses of the GAN (equation numbers: Trinh and Hamagami 2024, the LDDGAN paper)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels.trainer.config import GanTraining
from lddgan_kernels.trainer.meter import Metrics


def discriminator_loss(
    gan: GanTraining, real: Tensor, fake: Tensor, penalized: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """The discriminator's loss, a scalar: adversarial, and R1 where it is due.

    Args:
        gan: says the terms and their weights.
        real: (N, 1) logits of x_t.
        fake: (N, 1) logits of an x_t drawn from the generator's x_0.
        penalized: the x_t of `real`, which requires a gradient; None: no R1 in this step.
    """
    loss = non_saturating_discriminator(real, fake)
    metrics = {"discriminator": loss, "logit_real": real.float().mean()}
    metrics["logit_fake"] = fake.float().mean()
    if penalized is not None:
        metrics["r1"] = gradient_penalty(real, penalized)
        loss = loss + 0.5 * gan.r1_gamma * metrics["r1"]
    return loss, _detached(metrics)


def generator_loss(
    gan: GanTraining, fake: Tensor, x0: Tensor, predicted: Tensor, t: Tensor, progress: Tensor
) -> tuple[Tensor, Metrics]:
    """The generator's loss, a scalar: L_adv + lambda L_rec (equation 8).

    Args:
        gan: says the terms and their weights.
        fake: (N, 1) logits of an x_t drawn from `predicted`.
        x0: (N, C, H, W), the data.
        predicted: (N, C, H, W), the generator's x_0.
        t: (N,), the steps.
        progress: of training, 0..1, 0-dim: a tensor, as a step may be replayed as a CUDA graph.
    """
    loss = non_saturating_generator(fake)
    reconstruction = reconstruction_loss(x0, predicted, t, gan.squared_from)
    metrics = {"generator": loss, "reconstruction": reconstruction}
    if gan.reconstruction != "none":
        weight = weighted_learning(progress, gan.delta) if gan.reconstruction == "weighted" else 1.0
        loss = loss + gan.reconstruction_weight * weight * reconstruction
    return loss, _detached(metrics)


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """A scalar: mean softplus(-real) + mean softplus(fake), of logits."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """A scalar: mean softplus(-fake), of the discriminator's logits."""
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


def reconstruction_loss(
    x0: Tensor, predicted: Tensor, t: Tensor, squared_from: int | None = None
) -> Tensor:
    """Mean absolute difference (equation 7), for images of t >= squared_from squared; a scalar.

    Of the x_0 that one x_t may come from, the absolute difference draws the prediction to the
    median, which leaves minorities out, the squared one to the mean, where each has its share. In
    little noise there is one such x_0, and the absolute difference is the sharper of the two.
    """
    difference = (predicted.float() - x0.float()).abs()
    if squared_from is not None:
        much_noise = (t >= squared_from).view(-1, *[1] * (x0.dim() - 1))
        difference = torch.where(much_noise, difference.square(), difference)
    return difference.mean()


def weighted_learning(progress: Tensor, delta: float = 6.0) -> Tensor:
    """The weight of the reconstruction loss at `progress` of training, 0..1.

    lambda = 1 / (1 + exp(phi)), phi = -delta + 2 delta progress: it falls from 0.9975 to 0.0025, so
    that the reconstruction leads at first and the adversary in the end. (Equation 9 as printed
    lacks the 2 and would end at 0.5, against its own figure.)
    """
    return torch.sigmoid(delta - 2.0 * delta * progress)


def _detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}
