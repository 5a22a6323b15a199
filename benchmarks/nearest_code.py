"""The nearest of 8,192 codes against the published formula and its faster forms.

`published` is |z|^2 + |e|^2 - 2 z.e and argmin over the matrix of all distances; `compile` that
through torch.compile; `cdist` and `addmm` are the best other ways that PyTorch has. `ours` is
checked to be exact: the index of a search in float64.
"""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, fresh_compile
from lddgan_kernels.ops import nearest_code

CODES = 8192
# 25,600 vectors of the depths of the published latents, and of the presets' sizes.
SHAPES = ((25, 3, 32, 32), (25, 4, 32, 32), (1, 3, 64, 64), (16, 3, 64, 64))


def published(z, codebook):
    return _quantise(
        z,
        codebook,
        lambda v: v.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * v @ codebook.T,
    )


def cdist(z, codebook):
    return _quantise(z, codebook, lambda v: torch.cdist(v, codebook))


def addmm(z, codebook):
    return _quantise(
        z,
        codebook,
        lambda v: torch.addmm(codebook.square().sum(1), v, codebook.T, alpha=-2),
    )


def _quantise(z, codebook, distances):
    n, d, h, w = z.shape
    indices = distances(z.permute(0, 2, 3, 1).reshape(-1, d)).argmin(1).view(n, h, w)
    return codebook[indices].permute(0, 3, 1, 2), indices


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        yield _case(shape)


def _case(shape) -> Case:
    def inputs():
        z = torch.randn(shape, device=device())
        return z, torch.randn(CODES, shape[1], device=device())

    def check():
        z, codebook = inputs()
        quantised, indices = nearest_code(z[:1], codebook)
        vectors = z[:1].permute(0, 2, 3, 1).double()
        exact = (vectors[..., None, :] - codebook.double()).square().sum(-1).argmin(-1)
        assert torch.equal(indices, exact)
        assert torch.equal(quantised.permute(0, 2, 3, 1), codebook[indices])

    vectors = shape[0] * shape[2] * shape[3]
    return Case(
        name=f"{'x'.join(map(str, shape))} float32, {CODES} codes",
        group=f"float32 depth {shape[1]}",
        inputs=inputs,
        sides={
            "ours": nearest_code,
            "published": published,
            "cdist": cdist,
            "addmm": addmm,
            "compile": fresh_compile(published),
        },
        check=check,
        bytes_moved=vectors * (8 * shape[1] + 8) + CODES * shape[1] * 4,
        flops=vectors * CODES * 2 * shape[1],
        targets={"published": 30.0, "cdist": 15.0, "addmm": 15.0, "compile": 15.0},
    )
