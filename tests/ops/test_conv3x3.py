import sys

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lddgan_kernels._extension import build_info
from lddgan_kernels.ops import conv3x3
from lddgan_kernels.ops.conv3x3 import pack_conv3x3, uses_winograd
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import backends_of, device_of

module = sys.modules["lddgan_kernels.ops.conv3x3"]
BACKENDS = backends_of(module)
CL = torch.channels_last
native = pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")


def plain(x, weight, bias=None, residual=None):
    out = F.conv2d(x, weight, bias, padding=1)
    return out if residual is None else out + residual


def tensors(n, c, d, h, w, dtype=torch.float32, layout=CL, offset=0.0, backend="cpu"):
    x = (torch.randn(n, c, h, w) + offset).to(dtype).to(memory_format=layout)
    weight = (torch.randn(d, c, 3, 3) / (9 * c) ** 0.5).to(dtype)
    residual = torch.randn(n, d, h, w).to(dtype).to(memory_format=layout)
    made = x, weight, torch.randn(d).to(dtype), residual
    return [t.to(device_of(backend)) for t in made]


# (N, C, D, H, W): whole and odd tiles, one and many panels, both row counts, every edge.
SHAPES = [
    (4, 32, 32, 8, 8),
    (3, 48, 64, 9, 11),
    (4, 64, 96, 1, 65),
    (5, 32, 32, 64, 1),
    (16, 32, 32, 4, 4),
    (1, 128, 32, 17, 16),
    (16, 32, 64, 8, 8),
    (1, 160, 96, 16, 16),
    (1, 528, 32, 17, 33),
    (0, 32, 32, 8, 8),
]


HAVE_KERNEL = ["avx2", "avx512", "avx512bf16"] + ["neon"] * (sys.platform != "darwin")

# For Triton, in few programs: odd widths and maps, several blocks of channels, nothing.
FEW = [
    (2, 3, 5, 5, 4),
    (1, 20, 35, 3, 7),
    (1, 70, 16, 1, 9),
    (3, 32, 32, 4, 4),
    SHAPES[-1],
]
CASES = [
    (backend, shape) for backend in BACKENDS for shape in (FEW if backend == "triton" else SHAPES)
]


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("backend", "shape"), CASES)
def test_forward_and_gradient(backend, shape, extras):
    x, weight, bias, residual = tensors(*shape, backend=backend)
    inputs = (x, weight, bias, residual) if extras else (x, weight)
    if backend == "cpu" and shape[0]:
        assert uses_winograd(x, weight) == (build_info()["cpu_isa"] in HAVE_KERNEL)
    for t in inputs:
        t.requires_grad_()

    def ours(x, weight, bias=None, residual=None):
        return conv3x3(x, weight, bias, residual=residual, backend=backend)

    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    out, theirs, exact = ours(*inputs), plain(*inputs), plain(*exact_inputs)
    assert not out.numel() or out.is_contiguous(memory_format=CL)
    assert_error_rule(out, theirs, exact)
    with torch.no_grad():
        assert torch.equal(ours(*inputs), out)
    grad = torch.randn_like(out)
    grads = (
        torch.autograd.grad(out, inputs, grad),
        torch.autograd.grad(theirs, inputs, grad),
        torch.autograd.grad(exact, exact_inputs, grad.double()),
    )
    for a, b, c in zip(*grads, strict=True):
        assert_error_rule(a, b, c, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize("channels", [(32, 32), (3, 20), (32, 3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_dtypes_layouts_and_widths(backend, channels, layout, dtype):
    x, weight, bias, residual = tensors(4, *channels, 9, 8, dtype, layout, backend=backend)
    out = conv3x3(x, weight, bias, residual=residual, backend=backend)
    assert out.is_contiguous(memory_format=layout)
    exact = plain(*(t.double() for t in (x, weight, bias, residual)))
    assert_error_rule(out, plain(x, weight, bias, residual), exact)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_and_split_sums(backend, dtype, monkeypatch):
    from lddgan_kernels.triton import conv3x3 as kernel

    given = tensors(1, 40, 33, 9, 9, dtype, backend=backend)
    exact = plain(*(t.double() for t in given))
    for multiprocessors in (1, 8, 1000):  # one program's sum, two, each block's own
        monkeypatch.setattr(kernel, "MULTIPROCESSORS", multiprocessors)
        x, weight, bias, residual = given
        out = conv3x3(x, weight, bias, residual=residual, backend=backend)
        assert_error_rule(out, plain(*given), exact)


@native
def test_views_and_operands_of_the_other_layout():
    x, weight, bias, residual = tensors(3, 64, 32, 10, 12)
    exact = plain(*(t.double() for t in (x, weight, bias, residual)))
    out = conv3x3(
        x, weight.to(memory_format=CL), bias, residual=residual.contiguous(), backend="cpu"
    )
    assert_error_rule(out, plain(x, weight, bias, residual), exact)
    view = x[:, ::2, 1:, 1:]
    half = weight[:, ::2]
    exact = plain(view.double(), half.double())
    assert_error_rule(conv3x3(view, half), plain(view, half), exact)


@native
def test_data_far_from_zero():
    x, weight, _, _ = tensors(2, 64, 64, 12, 12, offset=1e4)
    exact = plain(x.double(), weight.double())
    assert_error_rule(conv3x3(x, weight, backend="cpu"), plain(x, weight), exact)


@native
def test_an_image_is_the_same_in_any_batch():
    x, weight, bias, _ = tensors(5, 32, 32, 16, 17)
    whole = conv3x3(x, weight, bias, backend="cpu")
    for i in range(5):
        assert torch.equal(conv3x3(x[i : i + 1], weight, bias, backend="cpu")[0], whole[i])


@native
@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("side", [5, 6, 48])
def test_any_number_of_threads_gives_the_same(side, threads):
    x, weight, bias, residual = tensors(2, 192, 96, side, side)
    packed = pack_conv3x3(weight)
    before = torch.get_num_threads()
    with torch.no_grad():
        wanted = conv3x3(x, weight, bias, residual=residual, packed=packed)
        assert_error_rule(
            wanted,
            plain(x, weight, bias, residual),
            plain(*(t.double() for t in (x, weight, bias, residual))),
        )
        torch.set_num_threads(threads)
        try:
            out = conv3x3(x, weight, bias, residual=residual, packed=packed)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(out, wanted)


@native
def test_packed_once():
    x, weight, bias, _ = tensors(4, 32, 64, 8, 8)
    packed = pack_conv3x3(weight)
    assert torch.equal(conv3x3(x, weight, bias, packed=packed), conv3x3(x, weight, bias))
    weight.requires_grad_()
    conv3x3(x, weight, bias, packed=packed).square().sum().backward()
    wanted = weight.detach().requires_grad_()
    plain(x, wanted, bias).square().sum().backward()
    torch.testing.assert_close(weight.grad, wanted.grad, rtol=1e-4, atol=1e-4)


@native
def test_a_weight_packed_for_another():
    x, weight, *_ = tensors(4, 32, 64, 8, 8)
    one_tap = weight.clone()
    one_tap[5, 3, 1, 1] += 1
    for other in (weight[:32], torch.randn(64, 48, 3, 3), one_tap):
        with pytest.raises(ValueError, match="conv3x3: packed must be pack_conv3x3"):
            conv3x3(x, weight, packed=pack_conv3x3(other))


def _one_tap(weight, packed):
    weight[7, 2, 2, 1] += 1


def _an_optimizer(weight, packed):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1, foreach=True).step()


def _behind_pytorch(weight, packed):
    weight.numpy()[...] *= 2


def _the_packed_one(weight, packed):
    packed[1, 5, 3, 7] += 1


@native
@pytest.mark.parametrize("write", [_one_tap, _an_optimizer, _behind_pytorch, _the_packed_one])
def test_a_weight_written_to_since(write):
    x, weight, *_ = tensors(4, 32, 64, 8, 8)
    packed = pack_conv3x3(weight)
    conv3x3(x, weight, packed=packed)
    write(weight, packed)
    for seen in (weight, weight.data, weight.clone()):
        with pytest.raises(ValueError, match="conv3x3: packed must be pack_conv3x3"):
            conv3x3(x, seen, packed=packed)
    with torch.inference_mode():  # whose tensors count no versions
        other = weight * 2
        assert torch.equal(conv3x3(x, other, packed=pack_conv3x3(other)), conv3x3(x, other))
        with pytest.raises(ValueError, match="conv3x3: packed must be pack_conv3x3"):
            conv3x3(x, other, packed=packed)


@native
def test_an_equal_weight_is_as_good():
    x, weight, *_ = tensors(4, 32, 64, 8, 8)
    weight[0, 0] = torch.nan
    packed = pack_conv3x3(weight.clone())
    wanted = conv3x3(x, weight)
    for _ in range(2):
        torch.testing.assert_close(
            conv3x3(x, weight, packed=packed), wanted, rtol=0, atol=0, equal_nan=True
        )


# (N, C, D, H, W): channels that fill no group or block, one run of tiles and many, every edge.
WEIGHTS = [
    (3, 48, 64, 9, 11),
    (2, 513, 20, 4, 5),
    (1, 33, 17, 1, 1),
    (1, 64, 32, 65, 1),
    (5, 40, 20, 33, 40),
    (0, 32, 32, 4, 4),
]


@native
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize("shape", WEIGHTS)
def test_gradient_of_the_weight(shape, layout):
    n, c, d, h, w = shape
    x, weight, _, grad = tensors(n, c, d, h, w)
    out = torch.ops.lddgan.conv3x3_weight_grad(grad, x, layout is CL)
    assert out.is_contiguous(memory_format=layout)

    def gradient(grad, x, weight):
        weight.requires_grad_()
        return torch.autograd.grad(plain(x, weight), weight, grad)[0]

    exact = gradient(*(t.double() for t in (grad, x, weight)))
    assert_error_rule(out, gradient(grad, x, weight), exact)


@native
def test_gradient_of_the_weight_comes_in_its_layout():
    x, weight, *_ = tensors(4, 32, 32, 8, 8)
    for layout in (torch.contiguous_format, CL):
        weight = weight.detach().to(memory_format=layout).requires_grad_()
        conv3x3(x, weight, backend="cpu").sum().backward()
        assert weight.grad.stride() == weight.stride()


@native
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_are_the_same_on_any_number_of_threads(threads):
    x, _, _, grad = tensors(3, 64, 48, 23, 22)
    wanted = torch.ops.lddgan.conv3x3_weight_grad(grad, x, True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(torch.ops.lddgan.conv3x3_weight_grad(grad, x, True), wanted)
    finally:
        torch.set_num_threads(before)


@native
def test_second_order_gradients_are_the_convolutions():
    x, weight, bias, _ = tensors(4, 32, 32, 8, 8)
    results = []
    for fn in (lambda *a: conv3x3(*a, backend="cpu"), plain):
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        (grad,) = torch.autograd.grad(fn(*inputs).sin().sum(), inputs[0], create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), inputs))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_reference_gradients_of_any_order():
    x, weight, bias, residual = (t.double().requires_grad_() for t in tensors(1, 2, 3, 3, 4))

    def fn(x, weight, bias, residual):
        return conv3x3(x, weight, bias, residual=residual)

    assert gradcheck(fn, (x, weight, bias, residual))
    assert gradgradcheck(fn, (x, weight, bias, residual))


@native
def test_registration():
    x, weight, bias, residual = tensors(4, 32, 32, 8, 9)
    packed = pack_conv3x3(weight)
    for extras in ((bias, residual), (None, None)):
        torch.library.opcheck(torch.ops.lddgan.conv3x3.default, (x, packed, *extras))
    weight = torch.randn(32, 64, 3, 3)
    for transposed in (False, True):
        torch.library.opcheck(torch.ops.lddgan.pack_conv3x3.default, (weight, transposed))
        gradient = torch.ops.lddgan.conv3x3_weight_grad.default
        torch.library.opcheck(gradient, (residual, x, transposed))


@native
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
def test_packing_is_the_winograd_transform(layout):
    weight = torch.randn(64, 48, 3, 3)
    transform = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    exact = torch.einsum("ai,bj,dcij->dabc", transform, transform, weight)
    exact = exact.unflatten(0, (2, 32)).permute(0, 2, 3, 4, 1).reshape(2, 16, 48, 32)
    torch.testing.assert_close(pack_conv3x3(weight.to(memory_format=layout)), exact)


def test_compiles_as_one_graph():
    x, weight, bias, residual = tensors(4, 32, 32, 8, 8)
    weight.requires_grad_()

    def fn(x, weight, bias, residual):
        return conv3x3(x, weight, bias, residual=residual)

    out = torch.compile(fn, fullgraph=True)(x, weight, bias, residual)
    torch.testing.assert_close(out, fn(x, weight, bias, residual), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert weight.grad is not None


def test_autocast_goes_to_half_precision():
    x, weight, _, _ = tensors(4, 32, 32, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(x, weight).dtype == torch.bfloat16


def test_bad_input():
    x, weight, bias, residual = tensors(4, 32, 32, 8, 8)
    with pytest.raises(ValueError, match=r"conv3x3: weight must be of shape \(D, 32, 3, 3\), got"):
        conv3x3(x, weight[:, :16])
    with pytest.raises(ValueError, match=r"conv3x3: bias must be of shape \(32,\), got \(31,\)"):
        conv3x3(x, weight, bias[1:])
    with pytest.raises(ValueError, match="conv3x3: residual must be of shape"):
        conv3x3(x, weight, residual=residual[..., 1:])
    with pytest.raises(RuntimeError, match="has no cuda kernel"):
        conv3x3(x, weight, backend="cuda")
