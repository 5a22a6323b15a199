import sys

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels._checks import memory_format
from lddgan_kernels.ops import downsample2d, upfirdn2d, upsample2d
from lddgan_kernels.testing import assert_error_rule, relative_error
from tests.conftest import NATIVE_DEVICES, backends_of, device_of, shared_path

module = sys.modules["lddgan_kernels.ops.upfirdn2d"]
BACKENDS = backends_of(module)
NATIVE = [b for b in BACKENDS if b != "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
STYLEGAN = [0.125, 0.375, 0.375, 0.125]
UNEVEN = [0.1, 0.5, -0.3, 0.7]  # no symmetry hides a reversed filter
NON_SEPARABLE = [[0.1, 0.5, -0.2], [0.3, -0.7, 0.2]]

# (taps, up, down, pad)
CASES = {
    "up2": (UNEVEN, 2, 1, (2, 1)),
    "down2": (UNEVEN, 1, 2, (1, 1)),
    "up2_odd_pad": (UNEVEN, 2, 1, (1, 2, 2, 3)),
    "up2_wide_pad": (UNEVEN, 2, 1, (6, 5, 4, 7)),
    "down2_wide_pad": (UNEVEN, 1, 2, (5, 4, 3, 6)),
    "crop": (UNEVEN, 2, 1, (-2, 1, 4, -1)),
    "down2_crop": (UNEVEN, 1, 2, (-1, 5, 4, -1)),
    "filter": (UNEVEN, 1, 1, (2, 1)),
    "long_taps": ([0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05], 2, 1, (3, 3)),
    "fraction": (UNEVEN, 3, 2, (4, 3)),
    "one_tap": ([2.0], 1, 2, (0, 1)),
    "two_dimensional": (NON_SEPARABLE, 2, 3, (2, 1, 3, 2)),
}
# Many channels where the maps are tiny: of a handful of outputs the plain composition may get every
# one right by luck, which says nothing about the error.
SHAPES = [(8, 3, 5, 7), (8, 40, 1, 1), (64, 1, 2, 2), (2, 16, 8, 8), (2, 4, 16, 16), (3, 20, 4, 4)]
SHAPES += [(1, 40, 3, 6), (1, 2, 6, 70), (0, 3, 4, 4)]


def direct(x, taps, up, down, pad):
    """The definition, by a loop over the taps, in x's dtype."""
    left, right, top, bottom = pad if len(pad) == 4 else (*pad, *pad)
    taps = taps.outer(taps) if taps.ndim == 1 else taps
    n, c, h, w = x.shape
    stuffed = x.new_zeros(n, c, h * up, w * up)
    stuffed[:, :, ::up, ::up] = x
    stuffed = F.pad(stuffed, (left, right, top, bottom))
    taps_h, taps_w = taps.shape
    height, width = stuffed.shape[2] - taps_h + 1, stuffed.shape[3] - taps_w + 1
    out = 0
    for i in range(taps_h):
        for j in range(taps_w):
            out = out + taps[-1 - i, -1 - j] * stuffed[:, :, i : i + height, j : j + width]
    return out[:, :, ::down, ::down]


def depthwise(x, taps, up, down, pad):
    """The plain PyTorch composition: zero-stuffing and a depthwise convolution."""
    left, right, top, bottom = pad if len(pad) == 4 else (*pad, *pad)
    taps = (taps.outer(taps) if taps.ndim == 1 else taps).flip(0, 1).to(x.dtype)
    stuffed = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    stuffed[:, :, ::up, ::up] = x
    stuffed = F.pad(stuffed, (left, right, top, bottom))
    weight = taps.expand(x.shape[1], 1, *taps.shape)
    return F.conv2d(stuffed, weight, stride=down, groups=x.shape[1])


def gradient(fn, x, grad):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(fn(x), x, grad.to(x.dtype))[0]


def fits(shape, case):
    taps, up, _, pad = case
    left, right, top, bottom = pad if len(pad) == 4 else (*pad, *pad)
    taps_h, taps_w = (len(taps), len(taps[0])) if isinstance(taps[0], list) else [len(taps)] * 2
    return shape[2] * up + top + bottom >= taps_h and shape[3] * up + left + right >= taps_w


def check(backend, shape, layout, dtype, case):
    taps, *geometry = case
    device = device_of(backend)
    taps = torch.tensor(taps, device=device)
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
    out = upfirdn2d(x, taps, *geometry, backend=backend)
    exact = direct(x.detach().double(), taps.double(), *geometry)
    assert out.shape == exact.shape
    assert out.numel() == 0 or out.is_contiguous(memory_format=memory_format(x))
    assert_error_rule(out, depthwise(x.detach(), taps, *geometry), exact)
    for grad_layout in LAYOUTS:
        grad = torch.randn_like(out).to(memory_format=grad_layout)
        (ours,) = torch.autograd.grad(out, x, grad, retain_graph=True)
        assert_error_rule(
            ours,
            gradient(lambda v: depthwise(v, taps, *geometry), x, grad),
            gradient(lambda v: direct(v, taps.double(), *geometry), x.double(), grad),
            "gradient",
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_geometry(backend, name, layout):
    for shape in SHAPES[:: 2 if backend == "triton" else 1]:  # the interpreter is slow
        if fits(shape, CASES[name]):
            check(backend, shape, layout, torch.float32, CASES[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["up2", "down2", "fraction"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, name, layout, dtype):
    for shape in [(2, 8, 8, 8), (1, 20, 5, 7), (1, 3, 4, 40)]:
        check(backend, shape, layout, dtype, CASES[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend):
    from safetensors.torch import load_file

    device = device_of(backend)
    golden = {k: v.to(device) for k, v in load_file(shared_path("golden/ops.safetensors")).items()}
    for name, op in (("up", upsample2d), ("down", downsample2d)):
        x = golden["fir.x"].requires_grad_()
        out = op(x, backend=backend)
        assert relative_error(out, golden[f"fir.{name}"]) < 1e-5
        (grad,) = torch.autograd.grad(out, x, golden[f"fir.grad_{name}"])
        assert relative_error(grad, golden[f"fir.grad_x_{name}"]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_shortcuts(backend):
    """Sizes, also odd ones, and the gain: a constant stays the same constant inside."""
    device = device_of(backend)
    x = torch.full((2, 3, 7, 9), 10000.0, device=device)
    doubled, halved = upsample2d(x, backend=backend), downsample2d(x, backend=backend)
    assert doubled.shape == (2, 3, 14, 18)
    assert halved.shape == (2, 3, 3, 4)
    for out in (doubled, halved):
        inside = out[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, 10000.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views(backend):
    device = device_of(backend)
    x = torch.randn(4, 6, 9, 12, device=device)[:, ::2, 1:, ::3]
    taps = torch.tensor([0.1, 9, 0.5, 9, -0.3, 9, 0.7, 9], device=device)[::2]
    ours = upfirdn2d(x, taps, 2, 1, (2, 1), backend=backend)
    exact = direct(x.double(), taps.double(), 2, 1, (2, 1))
    assert_error_rule(ours, depthwise(x, taps, 2, 1, (2, 1)), exact)


@pytest.mark.parametrize("name", ["up2", "down2_crop", "fraction", "two_dimensional"])
def test_gradients_of_any_order(name):
    taps, *geometry = CASES[name]
    taps = torch.tensor(taps, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: upfirdn2d(v, taps, *geometry), x)
    assert gradgradcheck(lambda v: upfirdn2d(v, taps, *geometry), x)


@pytest.mark.parametrize("name", ["up2", "down2", "fraction", "two_dimensional"])
@pytest.mark.parametrize("backend", NATIVE)
def test_second_order_of_kernels(backend, name):
    """The gradient of a gradient penalty, against the reference's."""
    taps, *geometry = CASES[name]
    device = device_of(backend)
    x, taps = torch.randn(2, 4, 6, 7, device=device), torch.tensor(taps, device=device)

    def penalty_gradient(chosen, value):
        value = value.clone().requires_grad_()
        out = upfirdn2d(value, taps, *geometry, backend=chosen)
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
    x = torch.randn(2, 4, 5, 6, device=device).to(memory_format=layout)
    taps = torch.tensor(UNEVEN, device=x.device)
    op = torch.ops.lddgan.upfirdn2d.default
    torch.library.opcheck(op, (x, taps, 2, 1, (2, 1, 2, 1), False))
    torch.library.opcheck(op, (x, taps.outer(taps), 1, 2, (1, 1, 0, 2), True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    def f(x):
        return downsample2d(upsample2d(x) ** 2)

    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    out = torch.compile(f, fullgraph=True, dynamic=dynamic)(x)
    torch.testing.assert_close(out, f(x))
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (out, f(x))]
    torch.testing.assert_close(*grads)


def test_bad_input():
    x, taps = torch.randn(1, 2, 4, 4), torch.tensor(STYLEGAN)
    for arguments, message in [
        ((x[0], taps), r"x must be a 4-D tensor"),
        ((x, taps[None, None]), r"taps must be of shape \(K,\) or \(Kh, Kw\), got \(1, 1, 4\)"),
        ((x, taps[:0]), r"taps must be of shape"),
        ((x, taps.to("meta")), r"taps must be on cpu like x, got meta"),
        ((x, taps.clone().requires_grad_()), r"taps must be without gradient"),
        ((x, taps, 0), r"up must be an int of at least 1, got 0"),
        ((x, taps, 1, 1.5), r"down must be an int of at least 1, got 1.5"),
        ((x, taps, 1, 1, (1, 2, 3)), r"pad must be 2 or 4 ints, got \(1, 2, 3\)"),
        ((x, taps, 1, 1, (-1, 0)), r"x must be large enough for the taps, got"),
    ]:
        with pytest.raises(ValueError, match=f"upfirdn2d: {message}"):
            upfirdn2d(*arguments)
    with pytest.raises(ValueError, match="upfirdn2d: x must be large enough"):
        downsample2d(torch.randn(1, 1, 1, 1))
    with pytest.raises(TypeError, match="upfirdn2d: x must be a torch.Tensor, got list"):
        upsample2d([1.0])
    with pytest.raises(RuntimeError, match="upfirdn2d: backend 'cpu' unavailable: dtype"):
        upsample2d(x.double(), backend="cpu")
