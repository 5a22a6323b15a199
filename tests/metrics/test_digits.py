"""The judge of digits: its own quality, and what it says of copies, blends and noise."""

import pytest
import torch

from lddgan_kernels.data import load_digits
from lddgan_kernels.metrics import DigitJudge, score_digits


def test_real_digits():
    """Held-out digits as samples, RGB in [-1, 1] at 16 px, as a sampler gives them."""
    images = load_digits("test", 16).images.expand(-1, 3, -1, -1)
    scores = score_digits(images.float() / 127.5 - 1)
    assert scores.accuracy > 0.97
    assert 0.93 < scores.share_confident_real < 0.99
    assert 0.45 < scores.share_confident_blends < 0.7
    assert 0.3 < scores.share_confident_noise < 0.55
    assert scores.share_confident == scores.share_confident_real
    assert scores.nearest_distance_ratio == pytest.approx(1.0, abs=1e-3)
    assert sum(scores.digit_shares) == pytest.approx(1)
    assert min(scores.digit_shares) > 0.08
    again = score_digits(images)
    assert again._replace(nearest_distance_ratio=1) == scores._replace(nearest_distance_ratio=1)


def test_copies_of_one_digit():
    train = load_digits("train", 16)
    sevens = train.images[train.labels == 7]
    scores = score_digits(sevens)
    assert scores.nearest_distance_ratio == 0
    assert scores.digit_shares[7] > 0.97


def test_frechet_distance_of_the_judges_features():
    test = load_digits("test", 16).images
    judge = DigitJudge(16)
    real, noise = judge.frechet_distance(test), judge.frechet_distance(torch.rand(300, 1, 16, 16))
    sevens = judge.frechet_distance(test[load_digits("test", 16).labels == 7])
    assert real < 0.1 * sevens
    assert real < 0.1 * noise


def test_bad_input():
    with pytest.raises(ValueError, match=r"samples must be \(N, 1 or 3, R, R\), R >= 8, got"):
        score_digits(torch.zeros(3, 2, 16, 16))
    with pytest.raises(ValueError, match="samples must be at least one, got none"):
        score_digits(torch.zeros(0, 1, 16, 16))
