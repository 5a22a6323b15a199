"""All scores of generated against real features, by name."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lddgan_kernels._checks import fail
from lddgan_kernels.metrics.features import FeatureNetwork
from lddgan_kernels.metrics.frechet import frechet_bias, frechet_distance
from lddgan_kernels.metrics.inception_score import inception_score
from lddgan_kernels.metrics.kernel_distance import kernel_distance
from lddgan_kernels.metrics.neighbours import neighbour_scores

DENSITY_K = 5
SPLITS = 10


@dataclass(frozen=True)
class Meaning:
    """A score for a person."""

    title: str
    better: str
    """"lower" or "higher"."""
    text: str


MEANINGS = {
    "frechet_distance": Meaning(
        "Frechet distance",
        "lower",
        "How far apart the Gaussians fitted to the features of generated and real images are "
        "(FID where the network is Inception). 0 for equal sets; too large for small ones.",
    ),
    "kernel_distance": Meaning(
        "Kernel distance",
        "lower",
        "The same question without a Gaussian and without a bias at small numbers (KID where the "
        "network is Inception). About 0 for equal sets, slightly negative too.",
    ),
    "precision": Meaning(
        "Precision", "higher", "Share of generated images that lie among real ones: quality."
    ),
    "recall": Meaning(
        "Recall", "higher", "Share of real images that lie among generated ones: diversity."
    ),
    "density": Meaning(
        "Density",
        "higher",
        "How many real neighbourhoods a generated image lies in, over what is expected: quality "
        "that outliers do not flatter. About 1 for equal sets.",
    ),
    "coverage": Meaning(
        "Coverage",
        "higher",
        "Share of real images with a generated one in their neighbourhood: diversity that outliers "
        "do not flatter.",
    ),
    "inception_score": Meaning(
        "Inception Score",
        "higher",
        "How surely each image is of one class, and how evenly all classes occur. From 1 to the "
        "number of classes; says nothing of the real images.",
    ),
}


def score(
    real: Tensor | tuple[Tensor, Tensor],
    fake: Tensor | tuple[Tensor, Tensor],
    network: FeatureNetwork | None = None,
    *,
    k: int = 3,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The scores of `fake` (M, D) features, by their names in MEANINGS.

    real, fake: features (N, D); or statistics (mu, sigma), of which there is the Frechet distance
        alone.
    network: where it has classes, the Inception Score comes too (from 10 samples on).
    k: of precision and recall.
    device: where neighbours and kernels are computed.

    Small sets have what they are large enough for: neighbours need more than 5 of each. With fewer
    samples than features there is `frechet_bias`, about what the Frechet distance is too large by.
    """
    found = {"frechet_distance": frechet_distance(real, fake)}
    if isinstance(fake, tuple):
        return found
    least = len(fake) if isinstance(real, tuple) else min(len(real), len(fake))
    if 4 <= least < fake.shape[1]:
        found["frechet_bias"] = frechet_bias(fake, real)
    if not isinstance(real, tuple):
        a, b = real.to(device), fake.to(device)
        found["kernel_distance"], found["kernel_distance_deviation"] = kernel_distance(b, a)
        if least > max(k, DENSITY_K):
            found |= neighbour_scores(a, b, k, DENSITY_K)._asdict()
    logits = None if network is None else network.logits(fake.to(device))
    if logits is not None and len(fake) >= SPLITS:
        mean, deviation = inception_score(logits, SPLITS)
        found |= {"inception_score": mean, "inception_score_deviation": deviation}
    return found


def scores_by_class(
    real: Tensor,
    real_labels: Tensor,
    fake: Tensor,
    fake_labels: Tensor,
    device: torch.device | str = "cpu",
) -> dict[int, dict[str, float]]:
    """What small sets can tell, for each class with more than 5 images in both: kernel distance,
    density and coverage, and how many there are of each.

    real, fake: features (N, D) and (M, D), labels (N,) and (M,) int64.
    device: where neighbours and kernels are computed.
    """
    for arg, x, labels in (("real", real, real_labels), ("fake", fake, fake_labels)):
        if labels.shape != x.shape[:1]:
            expected = f"({len(x)},), one for each of {arg}"
            raise fail("scores_by_class", f"{arg}_labels", expected, tuple(labels.shape))
    found: dict[int, dict[str, float]] = {}
    for label in real_labels.unique().tolist():
        a, b = (x[labels == label] for x, labels in ((real, real_labels), (fake, fake_labels)))
        if min(len(a), len(b)) > DENSITY_K:
            a, b = a.to(device), b.to(device)
            near = neighbour_scores(a, b, density_k=DENSITY_K)
            found[label] = {
                "kernel_distance": kernel_distance(b, a).mean,
                "density": near.density,
                "coverage": near.coverage,
                "real": len(a),
                "fake": len(b),
            }
    return found
