import sys

import pytest
import torch

from lddgan_kernels.ops import nearest_code
from tests.conftest import backends_of, device_of

module = sys.modules["lddgan_kernels.ops.nearest_code"]
BACKENDS = backends_of(module)
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((2, 3, 5, 7), (1, 4, 16, 16), (3, 1, 2, 2), (0, 3, 4, 4), (2, 8, 3, 3), (1, 37, 4, 5))


def exact_distances(z, codebook):
    """Squared distances in float64, (N, H, W, K)."""
    z = z.double().permute(0, 2, 3, 1)
    return (z[..., None, :] - codebook.double()).square().sum(-1)


def assert_nearest(indices, z, codebook):
    """Each index is the float64 search's, or another's whose float64 distance is the same."""
    distances = exact_distances(z, codebook)
    chosen = distances.gather(-1, indices[..., None])[..., 0]
    assert (chosen <= distances.amin(-1) * (1 + 1e-14)).all()


@pytest.mark.parametrize("codes", [1, 5, 16, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradient(backend, shape, layout, dtype, codes):
    device = device_of(backend)
    z = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
    codebook = torch.randn(codes, shape[1], device=device, dtype=dtype, requires_grad=True)
    quantised, indices = nearest_code(z, codebook, backend=backend)
    assert indices.dtype == torch.int64
    assert indices.shape == (shape[0], *shape[2:])
    assert quantised.dtype == dtype
    assert quantised.is_contiguous(memory_format=layout)
    assert_nearest(indices, z.detach(), codebook.detach())
    assert torch.equal(quantised.permute(0, 2, 3, 1), codebook[indices])
    g = torch.randn_like(quantised)
    quantised.backward(g)
    assert torch.equal(z.grad, g)
    assert codebook.grad is None
    assert not indices.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_index(backend):
    device = device_of(backend)
    codebook = torch.randint(-2, 3, (200, 3), device=device).float()  # at most 125 differ
    z = torch.randint(-4, 5, (2, 3, 9, 9), device=device).float() / 2
    distances = exact_distances(z, codebook)
    expected = (distances == distances.min(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(nearest_code(z, codebook, backend=backend)[1], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_digits_that_float32_loses(backend):
    # |z|^2 + |e|^2 - 2 z.e in float32 gets nearly all of these wrong.
    device = device_of(backend)
    z, codebook = torch.randn(1, 3, 16, 16, device=device), torch.randn(512, 3, device=device)
    z, codebook = 1000 + 0.01 * z, 1000 + 0.01 * codebook
    assert_nearest(nearest_code(z, codebook, backend=backend)[1], z, codebook)
    # A codebook as it is initialised: tiny beside the vectors.
    z, codebook = torch.randn(1, 4, 8, 8, device=device), torch.rand(512, 4, device=device) / 512
    assert_nearest(nearest_code(z, codebook, backend=backend)[1], z, codebook)
    # Each code twice, the copies one unit in the last place apart.
    codebook = torch.randn(256, 3, device=device)
    codebook = torch.cat([codebook, torch.nextafter(codebook, 2 * codebook)])
    z = torch.randn(1, 3, 16, 16, device=device)
    assert_nearest(nearest_code(z, codebook, backend=backend)[1], z, codebook)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_float32_codebook_and_not_finite(backend):
    device = device_of(backend)
    z = torch.randn(4, 6, 8, 10, device=device).bfloat16()[:, ::2, 1:, ::2]
    codebook = torch.randn(40, 6, device=device)[:, ::2]
    quantised, indices = nearest_code(z, codebook, backend=backend)
    assert_nearest(indices, z, codebook)
    assert torch.equal(quantised.permute(0, 2, 3, 1), codebook[indices].bfloat16())
    z = torch.randn(1, 3, 2, 2, device=device)
    z[0, 1, 0, 0], z[0, 2, 1, 1] = float("nan"), float("inf")
    quantised, indices = nearest_code(z, codebook, backend=backend)
    assert indices[0, 0, 0] == 0
    assert indices[0, 1, 1] == 0
    assert quantised.isfinite().all()


@pytest.mark.parametrize("backend", NATIVE)
def test_registration(backend):
    for layout in (torch.contiguous_format, torch.channels_last):
        z = torch.randn(2, 3, 4, 5, device=device_of(backend)).to(memory_format=layout)
        codebook = torch.randn(9, 3, device=device_of(backend))
        torch.library.opcheck(torch.ops.lddgan.nearest_code.default, (z, codebook))


def test_compiles_as_one_graph():
    z, codebook = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(9, 3)
    quantised, indices = torch.compile(nearest_code, fullgraph=True)(z, codebook)
    expected = nearest_code(z, codebook)
    assert torch.equal(quantised, expected[0])
    assert torch.equal(indices, expected[1])
    quantised.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_bad_input():
    z, codebook = torch.randn(2, 3, 4, 5), torch.randn(9, 3)
    with pytest.raises(ValueError, match=r"nearest_code: codebook must be .*3\), got \(9, 4\)"):
        nearest_code(z, torch.randn(9, 4))
    with pytest.raises(ValueError, match=r"nearest_code: codebook must be .*got \(0, 3\)"):
        nearest_code(z, codebook[:0])
    with pytest.raises(ValueError, match=r"nearest_code: codebook .* got torch.float64"):
        nearest_code(z, codebook.double())
    with pytest.raises(ValueError, match=r"nearest_code: z must be a 4-D tensor"):
        nearest_code(z[0], codebook)
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        nearest_code(z, codebook, backend="cuda")
