"""Generators and discriminators of classes."""

import pytest
import torch

from lddgan_kernels.interop import to_published
from lddgan_kernels.models import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    ViTConfig,
    ViTGenerator,
    WaveletGenerator,
)
from lddgan_kernels.nn import ClassEmbedding

UNET = {"base_channels": 8, "channel_multipliers": (1, 1), "num_blocks": 1, "z_dim": 4}
VIT = {"width": 16, "depth": 3, "num_heads": 2, "mlp_width": 24, "z_dim": 4}
KINDS = [(Generator, GeneratorConfig, UNET), (WaveletGenerator, GeneratorConfig, UNET)]
KINDS += [(ViTGenerator, ViTConfig, VIT)]
N = 3


def generators(kind, structure, options):
    """One of 5 classes, and one without that has the same weights otherwise."""
    torch.manual_seed(0)
    modules = [kind(structure(2, 8, classes=k, **options)).eval() for k in (5, 0)]
    state = modules[0].state_dict()
    for value in state.values():
        value += 0.1 * torch.randn_like(value)
    rest = {name: value for name, value in state.items() if name != "mapping.classes.weight"}
    assert len(rest) == len(state) - 1
    modules[1].load_state_dict(rest)
    return modules


def inputs():
    return torch.randn(N, 2, 8, 8), torch.tensor([0, 1, 1]), torch.randn(N, 4)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "structure", "options"), KINDS)
def test_each_sample_has_its_class(kind, structure, options):
    labelled, plain = generators(kind, structure, options)
    given = inputs()
    labels = torch.tensor([4, 0, -1])
    image = labelled(*given, labels)
    for i in range(N):
        one = labelled(*(x[i : i + 1] for x in given), labels[i : i + 1])
        torch.testing.assert_close(image[i : i + 1], one, rtol=1e-4, atol=1e-5)
    none = labelled(*given)
    torch.testing.assert_close(none[2], image[2])
    assert not none[:2].allclose(image[:2], atol=1e-3)
    labelled.mapping.classes.weight.zero_()
    torch.testing.assert_close(labelled(*given, labels), plain(*given))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "structure", "options"), KINDS)
def test_predictors_take_labels(kind, structure, options):
    generator, _ = generators(kind, structure, options)
    x, _, _ = inputs()
    t, z = torch.arange(2)[:, None].repeat(1, N), torch.randn(2, N, 4)
    labels = torch.tensor([1, -1, 3])
    for i, predict in enumerate(generator.predictors(t, z, labels)):
        torch.testing.assert_close(predict(x), generator(x, t[i], z[i], labels))


def test_the_discriminator_projects_its_features_on_the_class():
    torch.manual_seed(0)
    config = {"kind": "large", "base_channels": 4, "time_embedding": 8}
    plain = Discriminator(DiscriminatorConfig(2, **config))
    classes = Discriminator(DiscriminatorConfig(2, classes=5, **config))
    assert not classes.projection.weight.any()  # it starts as one without classes
    classes.load_state_dict(plain.state_dict() | {"projection.weight": torch.randn(6, 32)})
    x, y = torch.randn(2, 4, 2, 16, 16)
    t, labels = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 4, -1, 2])
    seen = []
    classes.out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    logit = classes(x, t, y, labels)
    rows = classes.projection.weight[[1, 5, 0, 3]]
    expected = plain(x, t, y)[:, 0] + (seen[0] * rows).sum(1)
    torch.testing.assert_close(logit[:, 0], expected)
    logit.sum().backward()
    moved = classes.projection.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, True, False, True, False, True]


def test_labels_that_do_not_fit_are_named():
    (labelled, plain), given = generators(*KINDS[0]), inputs()
    with pytest.raises(ValueError, match="Generator: labels must be None where there are no"):
        plain(*given, torch.zeros(N, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Generator: labels must be of shape \(3,\), got \(2,\)"):
        labelled(*given, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Generator: labels must be int64, got torch.float32"):
        labelled(*given, torch.zeros(N))
    with pytest.raises(IndexError):
        labelled(*given, torch.full((N,), 5))
    with pytest.raises(ValueError, match="to_published: classes must be 0, got 5"):
        to_published(labelled)


def test_no_class_is_the_first_row():
    embedding = ClassEmbedding(3, 2, 1.0)
    rows = embedding(torch.tensor([-1, 0, -1, 2]))
    assert torch.equal(rows, embedding.weight[[0, 1, 0, 3]])
    assert torch.equal(embedding(None), embedding.weight[:1])
