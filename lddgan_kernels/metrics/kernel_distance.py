"""Kernel distance of two sets of features (KID with Inception's; Binkowski et al. 2018)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020


class KernelDistance(NamedTuple):
    """Over the subsets; it may be slightly below zero where the sets are alike."""

    mean: float
    deviation: float


def kernel_distance(
    fake: Tensor,
    real: Tensor,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> KernelDistance:
    """The unbiased squared maximum mean discrepancy of (M, D) and (N, D) features.

    Kernel (x.y / D + 1)^3, averaged over `subsets` pairs of random subsets of `subset_size` rows
    (at most the smaller set's number). Unlike the Frechet distance it has no bias at small numbers.
    The subsets are those that torch-fidelity draws with this seed. In float64, on the features'
    device.
    """
    for arg, x in (("fake", fake), ("real", real)):
        check_tensor("kernel_distance", arg, x)
        if x.ndim != 2 or len(x) < 2:
            raise fail("kernel_distance", arg, "(N, D) with N >= 2", tuple(x.shape))
        if not x.detach().double().square().sum(1).isfinite().all():
            raise fail("kernel_distance", arg, "finite, also squared", "inf, NaN or an overflow")
    if fake.shape[1] != real.shape[1]:
        raise fail(
            "kernel_distance", "real", f"of {fake.shape[1]} features like fake", tuple(real.shape)
        )
    if subsets < 1 or subset_size < 2:
        given = (subsets, subset_size)
        raise fail("kernel_distance", "subsets and subset_size", "at least 1 and 2", given)
    size = min(subset_size, len(fake), len(real))
    if size == len(fake) == len(real):  # each subset is the whole set
        subsets = 1
    random = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        chosen = [
            x[torch.from_numpy(random.choice(len(x), size, replace=False)).to(x.device)]
            for x in (fake.detach(), real.detach())
        ]
        found.append(_discrepancy(*(x.double() for x in chosen)))
    values = torch.stack(found)
    return KernelDistance(values.mean().item(), values.std(correction=0).item())


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    size = len(x)
    within = sum(k.sum() - k.diagonal().sum() for k in (_kernel(x, x), _kernel(y, y)))
    return within / (size * (size - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow(3)
