"""A judge of handwritten digits: are samples readable, varied, and not copies?"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._checks import check_tensor, fail
from lddgan_kernels.data.digits import load_digits
from lddgan_kernels.metrics.frechet import frechet_distance

CONFIDENT = 0.9
STEPS = 800
BATCH = 128
LEARNING_RATE = 1e-2
REFERENCES = 2000


class DigitScores(NamedTuple):
    """What a judge found; shares and accuracy are fractions of 1."""

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
    read_as_asked: list[float] | None = None
    """Where classes were asked for: of the samples of each, those that are read as it."""


class DigitJudge:
    """A small convolutional classifier of the embedded digits, trained in about 5 seconds.

    It learns on the training split, enlarged to the samples' size and averaged down to 8x8 as the
    samples are, and is tested on the held-out one. For scale it also sees 50:50 blends of two
    different held-out digits and uniform noise. Runs on the CPU and gives the same figures every
    time.

    Args:
        resolution: of the samples, 8 or more.
    """

    def __init__(self, resolution: int) -> None:
        if resolution < 8:
            raise fail("DigitJudge", "resolution", "at least 8", resolution)
        train, test = (load_digits(split, resolution) for split in ("train", "test"))
        self._train, self._test, self._labels = (
            _small(train.images),
            _small(test.images),
            test.labels,
        )
        self._judge = _train(self._train, train.labels)
        self._real = self._features(self._train)

    @torch.no_grad()
    def scores(self, samples: Tensor, asked: Tensor | None = None) -> DigitScores:
        """Of (N, 1 or 3, R, R) samples, uint8 or floating in [-1, 1].

        `asked` (N,) are the digits that they are samples of.
        """
        x, judge = _checked(samples), self._judge
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randint(0, len(self._test), (2, 2 * REFERENCES), generator=generator)
        different = self._labels[first] != self._labels[second]
        blends = ((self._test[first] + self._test[second]) / 2)[different][:REFERENCES]
        noise = torch.rand(REFERENCES, 1, 8, 8, generator=generator)
        copies = _nearest(x, self._train) / _nearest(self._test, self._train)
        read = judge(x).argmax(1)
        correct = judge(self._test).argmax(1) == self._labels
        return DigitScores(
            share_confident=_confident(judge, x),
            share_confident_real=_confident(judge, self._test),
            share_confident_blends=_confident(judge, blends),
            share_confident_noise=_confident(judge, noise),
            digit_shares=(read.bincount(minlength=10) / len(x)).tolist(),
            nearest_distance_ratio=copies.item(),
            accuracy=correct.float().mean().item(),
            read_as_asked=None if asked is None else _shares(read == asked.cpu(), asked.cpu()),
        )

    def frechet_distance(self, samples: Tensor) -> float:
        """Of the judge's 64 features of samples and of the training split."""
        return frechet_distance(self.features(samples), self._real)

    def features(self, samples: Tensor) -> Tensor:
        """(N, 64) of samples as for `scores`."""
        return self._features(_checked(samples))

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        """What its last layer reads (N, 64)."""
        return self._judge[:-1](x)


def score_digits(samples: Tensor, asked: Tensor | None = None) -> DigitScores:
    """`DigitJudge.scores` of (N, C, R, R) samples, C = 1 or 3, R >= 8, by a judge of their size."""
    _checked(samples)
    return DigitJudge(samples.shape[-1]).scores(samples, asked)


def _checked(samples: Tensor) -> Tensor:
    """The samples as the judge sees them."""
    check_tensor("score_digits", "samples", samples)
    if samples.ndim != 4 or samples.shape[1] not in (1, 3) or min(samples.shape[2:]) < 8:
        raise fail("score_digits", "samples", "(N, 1 or 3, R, R), R >= 8", tuple(samples.shape))
    if len(samples) == 0:
        raise fail("score_digits", "samples", "at least one", "none")
    if not samples.isfinite().all():
        raise fail("score_digits", "samples", "finite", "inf or NaN")
    return _small(samples)


def _small(images: Tensor) -> Tensor:
    """uint8 or [-1, 1] images -> (N, 1, 8, 8) float32 in [0, 1], on the CPU."""
    x = images.detach().cpu()
    x = x.float() / 255 if x.dtype == torch.uint8 else (x.float() + 1) / 2
    return F.interpolate(x.mean(1, keepdim=True), (8, 8), mode="area")


def _train(images: Tensor, labels: Tensor) -> nn.Sequential:
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


def _shares(met: Tensor, asked: Tensor) -> list[float]:
    """The share of what is met of each digit that was asked for."""
    size = int(asked.max()) + 1
    met_of, asked_of = (x.bincount(minlength=size) for x in (asked[met], asked))
    shares: list[float] = (met_of / asked_of.clamp(min=1)).tolist()
    return shares


def _confident(judge: nn.Module, x: Tensor) -> float:
    return (judge(x).softmax(1).amax(1) > CONFIDENT).float().mean().item()


def _nearest(x: Tensor, train: Tensor) -> Tensor:
    """The median distance of x's images to the nearest training image."""
    return torch.cdist(x.flatten(1), train.flatten(1)).amin(1).median()
