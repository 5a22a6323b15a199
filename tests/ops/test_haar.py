import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels._checks import memory_format
from lddgan_kernels.ops import haar_dwt2d, haar_idwt2d
from lddgan_kernels.testing import assert_error_rule, relative_error
from tests.conftest import NATIVE_DEVICES, backends_of, device_of, shared_path

module = sys.modules["lddgan_kernels.ops.haar"]
BACKENDS = backends_of(module)
NATIVE = [b for b in BACKENDS if b != "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Of the image; sub-bands narrower than a vector, as wide, wider, and of no round width.
SHAPES = [(2, 3, 2, 2), (1, 5, 6, 10), (2, 8, 8, 4), (3, 4, 4, 16), (1, 2, 6, 70), (0, 4, 4, 4)]
SHAPES += [(2, 16, 8, 8), (2, 20, 4, 6)]


def matrix_dwt(x, scale):
    """The definition: every 2x2 block times the orthonormal 4x4 matrix, in float64."""
    n, c, h, w = x.shape
    blocks = x.double().unfold(2, 2, 2).unfold(3, 2, 2).reshape(n, c, h // 2, w // 2, 4)
    basis = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    basis = torch.tensor(basis, dtype=torch.float64, device=x.device) * (scale / 2)
    return torch.einsum("nchwi,si->nschw", blocks, basis).reshape(n, 4 * c, h // 2, w // 2)


def plain_dwt(x, scale):
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return torch.cat((a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d), 1) * (scale / 2)


def plain_idwt(y, scale):
    ll, lh, hl, hh = (y * (scale / 2)).chunk(4, 1)
    n, c, h, w = ll.shape
    rows = [ll + lh + hl + hh, ll - lh + hl - hh, ll + lh - hl - hh, ll - lh - hl + hh]
    blocks = torch.stack(rows, -1).reshape(n, c, h, w, 2, 2)
    return blocks.transpose(3, 4).reshape(n, c, 2 * h, 2 * w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradient(backend, shape, layout, dtype):
    device, scale = device_of(backend), 0.7
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
    y = haar_dwt2d(x, scale, backend=backend)
    exact = matrix_dwt(x, scale)
    assert y.shape == exact.shape
    assert y.numel() == 0 or y.is_contiguous(memory_format=memory_format(x))
    assert_error_rule(y, plain_dwt(x, scale), exact, "dwt")
    grad_y = torch.randn_like(y)
    exact_inverse = module.haar_idwt2d_reference(grad_y.double(), scale)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    assert_error_rule(grad_x, plain_idwt(grad_y, scale), exact_inverse, "gradient of dwt")

    bands = grad_y.detach().requires_grad_()
    image = haar_idwt2d(bands, scale, backend=backend)
    assert image.numel() == 0 or image.is_contiguous(memory_format=memory_format(bands))
    assert_error_rule(image, plain_idwt(bands, scale), exact_inverse, "idwt")
    (grad,) = torch.autograd.grad(image, bands, x.detach())
    assert_error_rule(grad, plain_dwt(x, scale), exact, "gradient of idwt")


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend):
    from safetensors.torch import load_file

    device = device_of(backend)
    golden = {k: v.to(device) for k, v in load_file(shared_path("golden/ops.safetensors")).items()}
    bands = torch.cat([golden[f"dwt.{name}"] for name in ("ll", "lh", "hl", "hh")], dim=1)
    assert relative_error(haar_dwt2d(golden["dwt.x"], backend=backend), bands) < 1e-5
    assert relative_error(haar_idwt2d(bands, backend=backend), golden["idwt.y"]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_trip_and_orthogonality(backend):
    x = torch.randn(2, 3, 12, 40, device=device_of(backend)) * 100 + 10000
    y = haar_dwt2d(x, 0.5, backend=backend)
    torch.testing.assert_close(haar_idwt2d(y, 2.0, backend=backend), x)
    norm = haar_dwt2d(x, backend=backend).double().norm()
    torch.testing.assert_close(norm, x.double().norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_gradients_of_the_other_layout(backend):
    device = device_of(backend)
    x = torch.randn(4, 6, 9, 12, device=device)[:, ::2, 1:, ::3].requires_grad_()
    y = haar_dwt2d(x, backend=backend)
    assert_error_rule(y, plain_dwt(x, 1), matrix_dwt(x, 1))
    for layout in LAYOUTS:
        z = torch.randn(2, 4, 6, 8, device=device).to(memory_format=layout).requires_grad_()
        out = haar_dwt2d(z, backend=backend)
        for grad_layout in LAYOUTS:
            grad = torch.randn_like(out).to(memory_format=grad_layout)
            (ours,) = torch.autograd.grad(out, z, grad, retain_graph=True)
            exact = module.haar_idwt2d_reference(grad.double())
            assert_error_rule(ours, plain_idwt(grad, 1), exact, "gradient")


def test_gradients_of_any_order():
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    for op, value in ((haar_dwt2d, x), (haar_idwt2d, y)):
        assert gradcheck(lambda v, op=op: op(v, 0.5), value)
        assert gradgradcheck(lambda v, op=op: op(v, 0.5), value)


@pytest.mark.parametrize("backend", NATIVE)
def test_second_order_of_kernels(backend):
    """A gradient penalty through both transforms, against the reference's."""
    device = device_of(backend)
    x = torch.randn(2, 4, 4, 6, device=device)

    def penalty_gradient(chosen, value):
        value = value.clone().requires_grad_()
        y = haar_dwt2d(value, 0.5, backend=chosen)
        out = haar_idwt2d(y * y, 0.5, backend=chosen)
        (grad,) = torch.autograd.grad((out**3).sum(), value, create_graph=True)
        (second,) = torch.autograd.grad((grad**2).sum(), value)
        return second

    assert_error_rule(
        penalty_gradient(backend, x),
        penalty_gradient("reference", x),
        penalty_gradient("reference", x.double()),
    )


@pytest.mark.parametrize("device", NATIVE_DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_registration(device, layout):
    x = torch.randn(2, 4, 4, 6, device=device).to(memory_format=layout)
    torch.library.opcheck(torch.ops.lddgan.haar_dwt2d.default, (x, 0.5))
    torch.library.opcheck(torch.ops.lddgan.haar_idwt2d.default, (x, 0.5))


def test_compiles_as_one_graph():
    def f(x):
        return haar_idwt2d(haar_dwt2d(x, 0.5) * 2, 2.0)

    x = torch.randn(2, 3, 4, 6, requires_grad=True)
    out = torch.compile(f, fullgraph=True)(x)
    torch.testing.assert_close(out, 2 * x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, torch.full_like(x, 2))


def test_bad_input():
    with pytest.raises(ValueError, match=r"haar_dwt2d: x must be of even height and width, got"):
        haar_dwt2d(torch.randn(1, 2, 5, 4))
    with pytest.raises(ValueError, match=r"haar_dwt2d: x must be of even height and width, got"):
        haar_dwt2d(torch.randn(1, 2, 4, 5))
    with pytest.raises(ValueError, match=r"haar_dwt2d: x must be a 4-D tensor"):
        haar_dwt2d(torch.randn(2, 4, 4))
    with pytest.raises(ValueError, match=r"haar_idwt2d: y must be of 4C channels, got .*6"):
        haar_idwt2d(torch.randn(1, 6, 4, 4))
    with pytest.raises(ValueError, match="haar_idwt2d: y must be float32"):
        haar_idwt2d(torch.zeros(1, 4, 2, 2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="haar_dwt2d: backend 'cpu' unavailable: dtype"):
        haar_dwt2d(torch.randn(1, 1, 2, 2).double(), backend="cpu")
