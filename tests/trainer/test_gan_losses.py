import copy
import math

import pytest
import torch
from torch import nn

from lddgan_kernels.trainer import gan_losses
from lddgan_kernels.trainer.config import GanTraining
from lddgan_kernels.trainer.ema import Ema
from lddgan_kernels.trainer.optimizers import learning_rate
from lddgan_kernels.trainer.stage import step_seed


def test_adversarial_losses():
    real, fake = torch.tensor([[0.5], [-2.0]]), torch.tensor([[1.0], [0.0]])
    expected = sum(math.log1p(math.exp(-x)) for x in (0.5, -2.0)) / 2
    expected += sum(math.log1p(math.exp(x)) for x in (1.0, 0.0)) / 2
    assert gan_losses.non_saturating_discriminator(real, fake).item() == pytest.approx(expected)
    expected = sum(math.log1p(math.exp(-x)) for x in (1.0, 0.0)) / 2
    assert gan_losses.non_saturating_generator(fake).item() == pytest.approx(expected)


def test_gradient_penalty_of_a_known_function():
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    # The gradient of weight * sum(x^2) is 2 weight x.
    logits = (weight * x.square()).sum((1, 2, 3))[:, None]
    penalty = gan_losses.gradient_penalty(logits, x)
    squares = x.detach().square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(penalty.double(), 4 * 1.5**2 * squares, rtol=1e-6, atol=0)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 8 * 1.5 * squares, rtol=1e-6, atol=0)


def test_reconstruction_loss_is_the_mean_difference():
    a, b, t = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3])
    loss = gan_losses.reconstruction_loss
    torch.testing.assert_close(loss(a, b, t), (a - b).abs().mean())
    torch.testing.assert_close(loss(a, b, t, 4), (a - b).abs().mean())
    torch.testing.assert_close(loss(a, b, t, 0), (a - b).square().mean())
    parts = (a - b)[0].abs().sum() + (a - b)[1:].square().sum()
    torch.testing.assert_close(loss(a, b, t, 2), parts / a.numel())


@pytest.mark.parametrize(("squared_from", "drawn_to"), [(None, 0.0), (5, 0.4), (6, 0.0)])
def test_minorities_count_where_the_difference_is_squared(squared_from, drawn_to):
    """Of what is 0 six times in ten and 1 otherwise, the median is 0 and the mean 0.4."""
    x0, t = torch.tensor([0.0] * 6 + [1.0] * 4), torch.full((10,), 5)
    guesses = torch.linspace(-0.5, 1.5, 21)
    losses = [
        gan_losses.reconstruction_loss(x0, guess.expand(10), t, squared_from) for guess in guesses
    ]
    assert guesses[torch.stack(losses).argmin()].item() == pytest.approx(drawn_to, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"reconstruction": "none"}, 0.0),
        ({"reconstruction": "constant"}, 1.0),
        ({"reconstruction": "constant", "squared_from": 1, "reconstruction_weight": 3.0}, 3.0),
        ({"reconstruction": "weighted", "reconstruction_weight": 3.0}, 1.5),
    ],
)
def test_the_generator_loss_weighs_and_squares_as_configured(options, weight):
    gan = GanTraining(**options)
    logits, x0, x = torch.randn(2, 1), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0, 1])
    loss, metrics = gan_losses.generator_loss(gan, logits, x0, x, t, torch.tensor(0.5))
    expected = gan_losses.reconstruction_loss(x0, x, t, gan.squared_from)
    torch.testing.assert_close(metrics["reconstruction"], expected)
    torch.testing.assert_close(loss, metrics["generator"] + weight * expected)


def test_weighted_learning_falls_from_one_to_nothing():
    def weight(progress, *delta):
        return gan_losses.weighted_learning(torch.tensor(progress), *delta).item()

    assert weight(0.0) == pytest.approx(0.9975, abs=5e-5)
    assert weight(0.5) == pytest.approx(0.5)
    assert weight(1.0) == pytest.approx(0.0025, abs=5e-5)
    weights = [weight(i / 20) for i in range(21)]
    assert weights == sorted(weights, reverse=True)
    assert weight(0.25, 2.0) == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_cosine_rate_ends_at_zero():
    assert learning_rate(0.2, "constant", 0.9) == 0.2
    rates = [learning_rate(0.2, "cosine", p) for p in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([0.2, 0.1, 0.0])


def test_step_seeds_differ():
    seeds = {step_seed(s, name, i) for s in range(3) for name in ("gan", "autoencoder")
             for i in range(100)}  # fmt: skip
    assert len(seeds) == 600


def test_ema_is_the_recursion():
    source = nn.Conv2d(2, 3, 3)
    ema = Ema(source, 0.9)
    expected = copy.deepcopy(source.weight.detach())
    for i in range(40):
        with torch.no_grad():
            source.weight.normal_()
        ema.update(i)
        decay = min(0.9, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * source.weight.detach()
    torch.testing.assert_close(ema.module.weight, expected)
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
