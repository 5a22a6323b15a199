"""Inception Score (Salimans et al. 2016) of any network with classes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail


class InceptionScore(NamedTuple):
    """Over the splits; from 1 to the number of classes, more is better."""

    mean: float
    deviation: float


def inception_score(logits: Tensor, splits: int = 10) -> InceptionScore:
    """exp of the mean KL divergence of each sample's classes from those of all, of (N, K) logits.

    The samples are cut into `splits` parts in their order, each scored with its own average.
    float64, on the logits' device.
    """
    check_tensor("inception_score", "logits", logits)
    if logits.ndim != 2 or len(logits) < splits or splits < 1:
        raise fail("inception_score", "logits", f"(N, K), N >= {splits}", tuple(logits.shape))
    if not logits.isfinite().all():
        raise fail("inception_score", "logits", "finite", "inf or NaN")
    found = []
    for i in range(splits):
        part = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits].detach()
        log_p = part.double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - math.log(len(part))
        found.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    values = torch.stack(found)
    return InceptionScore(values.mean().item(), values.std(correction=0).item())
