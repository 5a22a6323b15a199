"""Inception Score, the scores together, and what small sets have."""

import math

import pytest
import torch
from torch import nn

from lddgan_kernels.metrics import (
    MEANINGS,
    FeatureNetwork,
    frechet_bias,
    frechet_distance,
    inception_score,
    kernel_distance,
    neighbour_scores,
    score,
    scores_by_class,
)
from lddgan_kernels.metrics.features import Preparation


def test_inception_score_of_known_sets():
    sure = torch.eye(5).repeat(20, 1) * 100
    assert inception_score(sure).mean == pytest.approx(5.0)
    assert inception_score(torch.zeros(40, 5)).mean == pytest.approx(1.0)
    one_class = torch.tensor([[100.0, 0, 0]]).repeat(30, 1)
    assert inception_score(one_class) == pytest.approx((1.0, 0.0))


def test_inception_score_against_a_loop():
    logits = torch.randn(33, 4)
    p = logits.double().softmax(1)
    scores = []
    for i in range(3):
        part = p[11 * i : 11 * i + 11]
        mean = part.mean(0)
        kl = [sum(q * math.log(q / m) for q, m in zip(row, mean, strict=True)) for row in part]
        scores.append(math.exp(sum(kl) / len(kl)))
    found = inception_score(logits, splits=3)
    assert found.mean == pytest.approx(sum(scores) / 3)
    assert found.deviation == pytest.approx(torch.tensor(scores).std(correction=0).item(), rel=1e-5)


def test_the_bias_is_what_the_distance_is_too_large_by():
    """Two samples of one distribution, whose distance should be 0."""
    a, b = torch.randn(2, 400, 16).double()
    found = frechet_distance(a, b)
    assert found - frechet_bias(a, b) == pytest.approx(0, abs=found / 2)
    exact = (torch.zeros(16).double(), torch.eye(16).double())
    assert 0 < frechet_bias(a[:60], exact) < frechet_distance(a[:60], exact)


def test_all_scores_together():
    head = torch.randn(3, 8), None
    network = FeatureNetwork(nn.Identity(), "test", 8, Preparation(None), head)
    real, fake = torch.randn(30, 8), torch.randn(25, 8)
    found = score(real, fake, network)
    assert set(MEANINGS) <= set(found)
    assert "frechet_bias" not in found
    assert found["inception_score"] == inception_score(fake @ head[0].T).mean
    assert found["frechet_distance"] == frechet_distance(real, fake)


def test_what_small_sets_have():
    real, fake = torch.randn(30, 8), torch.randn(5, 8)
    few = score(real, fake)
    assert set(few) == {
        *("frechet_distance", "frechet_bias"),
        *("kernel_distance", "kernel_distance_deviation"),
    }
    of_statistics = score((torch.zeros(8), torch.eye(8)), fake)
    assert set(of_statistics) == {"frechet_distance", "frechet_bias"}


def test_scores_by_class():
    real, fake = torch.randn(30, 8), torch.randn(25, 8)
    ours, theirs = torch.arange(25) % 3, torch.arange(30) % 3
    fake[ours == 1] += 3
    ours[ours == 2] = 7  # a class that the other set lacks
    found = scores_by_class(real, theirs, fake, ours)
    assert list(found) == [0, 1]
    a, b = real[theirs == 1], fake[ours == 1]
    near = neighbour_scores(a, b)
    assert found[1] == {
        "kernel_distance": kernel_distance(b, a).mean,
        "density": near.density,
        "coverage": near.coverage,
        "real": 10,
        "fake": 8,
    }
    assert found[1]["kernel_distance"] > found[0]["kernel_distance"]
    with pytest.raises(ValueError, match=r"fake_labels must be \(25,\), one for each of fake, got"):
        scores_by_class(real, theirs, fake, ours[1:])


def test_bad_input():
    with pytest.raises(ValueError, match=r"logits must be \(N, K\), N >= 10, got \(9, 3\)"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(ValueError, match="logits must be finite"):
        inception_score(torch.full((10, 3), float("nan")))
