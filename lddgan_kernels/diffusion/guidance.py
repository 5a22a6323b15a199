"""Classifier-free guidance (Ho & Salimans 2022, "Classifier-free diffusion guidance")."""

import torch
from torch import Tensor

# A label that stands for no class.
NO_LABEL = -1


def guide(labelled: Tensor, unlabelled: Tensor, strength: float) -> Tensor:
    """(1 + w) labelled - w unlabelled, w = `strength` (their equation 6): w = 0 is no guidance.

    Args:
        labelled: what a network predicts for a class; of any shape.
        unlabelled: what it predicts without, of the same shape.
    """
    return torch.lerp(unlabelled, labelled, 1.0 + strength)


def twice(labels: Tensor) -> Tensor:
    """(2N,): the labels (N,), then as often none, so that one call predicts both."""
    return torch.cat([labels, torch.full_like(labels, NO_LABEL)])
