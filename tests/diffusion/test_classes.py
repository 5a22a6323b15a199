"""Sampling of classes: labels are an input of what is captured; guidance."""

import pytest
import torch

from lddgan_kernels.diffusion import NO_LABEL, Sampler, Schedule, guide, sample
from lddgan_kernels.models import Generator, GeneratorConfig, ViTConfig, ViTGenerator
from tests.diffusion.test_sampler import graphs  # noqa: F401

SHAPE, Z_DIM = (2, 8, 8), 4
SEEDS = torch.tensor([3, -1, 9])
LABELS = torch.tensor([2, 0, 4])


def build(vit=False):
    torch.manual_seed(0)
    unet = {"base_channels": 32, "channel_multipliers": (1, 2), "num_blocks": 1}
    small = {"width": 16, "depth": 3, "num_heads": 2, "mlp_width": 24}
    same = {"z_dim": Z_DIM, "classes": 5}
    generator = (
        ViTGenerator(ViTConfig(2, 8, **small, **same))
        if vit
        else Generator(GeneratorConfig(2, 8, **unet, **same))
    )
    for parameter in generator.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return generator.eval().requires_grad_(False)


def draw(generator, **options):
    return sample(generator, Schedule(2), SHAPE, SEEDS, z_dim=Z_DIM, **options)


def sampler(generator, **options):
    return Sampler(generator, Schedule(2), SHAPE, z_dim=Z_DIM, **options)


def test_guide():
    labelled, unlabelled = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guide(labelled, unlabelled, 0.5).tolist() == [1.5, 1.0]
    assert guide(labelled, unlabelled, 0.0).equal(labelled)


def test_guidance_acts_at_each_step():
    generator = build()
    plain = lambda *given: generator(*given)  # noqa: E731
    seen = []

    def by_hand(x, t, z):
        label, none = generator(x, t, z, LABELS), generator(x, t, z, torch.full((3,), NO_LABEL))
        seen.append(t[0].item())
        return (3.0 * label - 2.0 * none).clamp(-1, 1)

    expected = draw(by_hand)
    assert seen == [1, 0]
    for one in (generator, plain):  # by its predictors, and call by call
        found = draw(one, labels=LABELS, guidance=2.0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not found.allclose(draw(one, labels=LABELS), atol=1e-3)
        assert draw(one, guidance=2.0).equal(draw(one))  # there is nothing to guide by


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("vit", [False, True])
def test_records_take_other_labels(vit, guidance):
    generator = build(vit)
    draws = sampler(generator, guidance=guidance)
    options = {"guidance": guidance}
    for labels in (LABELS, LABELS, LABELS, LABELS.flip(0), torch.full((3,), NO_LABEL)):
        expected = draw(generator, labels=labels, **options)
        torch.testing.assert_close(draws(SEEDS, labels), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(draws(SEEDS), draw(generator), rtol=1e-4, atol=1e-5)
    assert not draw(generator, labels=LABELS).allclose(draw(generator), atol=1e-3)


def test_graphs_take_other_labels(graphs):  # noqa: F811
    generator = build(vit=True)
    draws = sampler(generator, guidance=0.5)
    for labels in (LABELS, LABELS, LABELS.flip(0), None, None, LABELS):
        expected = draw(generator, labels=labels, guidance=0.5)
        torch.testing.assert_close(draws(SEEDS, labels), expected, rtol=1e-4, atol=1e-5)
    assert graphs.captured == 2


def test_labels_that_do_not_fit_are_named():
    draws = sampler(build())
    with pytest.raises(ValueError, match=r"Sampler: labels must be in 0..4, got 5"):
        draws(SEEDS, torch.tensor([0, 5, 1]))
    with pytest.raises(ValueError, match=r"Sampler: labels must be of shape \(3,\)"):
        draws(SEEDS, LABELS[:2])
