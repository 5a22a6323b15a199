"""A judge of handwritten digits: are samples readable, varied, and not copies?"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._checks import check_tensor, fail
from lddgan_kernels.data.digits import load_digits

CONFIDENT = 0.9
STEPS = 800
BATCH = 128
LEARNING_RATE = 1e-2
REFERENCES = 2000


class DigitScores(NamedTuple):
    """What `score_digits` found; shares and accuracy are fractions of 1."""

    share_confident: float
    """Samples classified with p > 0.9; the next three say how much that means."""
    share_confident_real: float
    share_confident_blends: float
    share_confident_noise: float
    digit_shares: list[float]
    """Of the samples, by the digit they are read as, 0 to 9."""
    nearest_distance_ratio: float
    """Median distance of a sample to the nearest training image over that of held-out digits."""
    accuracy: float
    """The judge's, on held-out digits."""


def score_digits(samples: Tensor) -> DigitScores:
    """Judges (N, C, R, R) samples of the embedded digits, C = 1 or 3, R >= 8; about 5 seconds.

    samples: uint8, or floating in [-1, 1].

    A small convolutional classifier is trained on the training split, enlarged to R and averaged
    down to 8x8 as the samples are, and tested on the held-out one. For scale it also sees 50:50
    blends of two different held-out digits and uniform noise. Runs on the CPU and gives the same
    figures every time.
    """
    check_tensor("score_digits", "samples", samples)
    if samples.ndim != 4 or samples.shape[1] not in (1, 3) or min(samples.shape[2:]) < 8:
        raise fail("score_digits", "samples", "(N, 1 or 3, R, R), R >= 8", tuple(samples.shape))
    if len(samples) == 0:
        raise fail("score_digits", "samples", "at least one", "none")
    if not samples.isfinite().all():
        raise fail("score_digits", "samples", "finite", "inf or NaN")
    train, test = (load_digits(split, samples.shape[-1]) for split in ("train", "test"))
    x_train, x_test, x = (_small(images) for images in (train.images, test.images, samples))
    judge = _train(x_train, train.labels)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, len(x_test), (2, 2 * REFERENCES), generator=generator)
    different = test.labels[first] != test.labels[second]
    blends = ((x_test[first] + x_test[second]) / 2)[different][:REFERENCES]
    noise = torch.rand(REFERENCES, 1, 8, 8, generator=generator)
    with torch.no_grad():
        read = judge(x).argmax(1)
        correct = judge(x_test).argmax(1) == test.labels
        return DigitScores(
            share_confident=_confident(judge, x),
            share_confident_real=_confident(judge, x_test),
            share_confident_blends=_confident(judge, blends),
            share_confident_noise=_confident(judge, noise),
            digit_shares=(read.bincount(minlength=10) / len(x)).tolist(),
            nearest_distance_ratio=(_nearest(x, x_train) / _nearest(x_test, x_train)).item(),
            accuracy=correct.float().mean().item(),
        )


def _small(images: Tensor) -> Tensor:
    """uint8 or [-1, 1] images -> (N, 1, 8, 8) float32 in [0, 1], on the CPU."""
    x = images.detach().cpu()
    x = x.float() / 255 if x.dtype == torch.uint8 else (x.float() + 1) / 2
    return F.interpolate(x.mean(1, keepdim=True), (8, 8), mode="area")


def _train(images: Tensor, labels: Tensor) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
    optimizer = torch.optim.Adam(judge.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(0, len(labels), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(judge(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        decay.step()
    return judge.eval()


def _confident(judge: nn.Module, x: Tensor) -> float:
    return (judge(x).softmax(1).amax(1) > CONFIDENT).float().mean().item()


def _nearest(x: Tensor, train: Tensor) -> Tensor:
    """The median distance of x's images to the nearest training image."""
    return torch.cdist(x.flatten(1), train.flatten(1)).amin(1).median()
