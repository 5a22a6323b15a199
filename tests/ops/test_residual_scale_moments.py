import sys

import pytest
import torch

from lddgan_kernels.ops import ada_group_norm, residual_scale, residual_scale_moments
from lddgan_kernels.ops._norm_plan import NormPlan, moments_plan, part_size
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import EMULATED_CUDA, NATIVE_DEVICES, backends_of, device_of

module = sys.modules["lddgan_kernels.ops.residual_scale"]
norm_module = sys.modules["lddgan_kernels.ops.ada_group_norm"]
BACKENDS = backends_of(module)
GPU_BACKENDS = [backend for backend in BACKENDS if backend in ("cuda", "triton")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# N, C, H, W, groups: whole packs; 12 channels a group on an odd map; one channel a group; one pixel
SHAPES = [(2, 32, 4, 4, 8), (2, 36, 7, 5, 3), (1, 6, 5, 7, 6), (3, 40, 1, 1, 4)]


def images(backend, shape, dtype, layout, count):
    device = device_of(backend)
    return [
        torch.randn(shape, device=device).to(dtype).to(memory_format=layout) for _ in range(count)
    ]


def cut(monkeypatch, groups, parts):
    plan = NormPlan("split", groups, parts, 1)
    monkeypatch.setattr(module, "moments_plan", lambda *_: plan)


def check_moments(moments, out, groups):
    """Each part's mean and squared deviations, against float64 of the sum as stored."""
    n, c, h, w = out.shape
    parts = moments.shape[2]
    assert moments.shape == (n, groups, parts, 2)
    assert moments.dtype == torch.float32
    assert not moments.requires_grad
    values = out.detach().double().reshape(n, groups, c // groups, h * w)
    size = part_size(h * w, parts)
    for part in range(parts):
        piece = values[..., part * size : (part + 1) * size].flatten(2)
        mean, squares = moments[:, :, part].double().unbind(-1)
        if piece.shape[-1] == 0:
            assert not moments[:, :, part].any()
            continue
        exact = piece.mean(-1)
        exact_squares = (piece - exact[..., None]).square().sum(-1)
        spread = (exact_squares / piece.shape[-1]).sqrt()
        # The mean to its own rounding and a little of the spread; the squares as if the means that
        # were merged had each been off by as much.
        off = 1.2e-7 * exact.abs() + 1e-6 * spread
        assert ((mean - exact).abs() <= off).all()
        most = piece.shape[-1] * ((spread + off).square() - spread.square()) + 1e-5 * exact_squares
        assert ((squares - exact_squares).abs() <= most + 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_sum_and_moments(backend, shape, layout, dtype):
    *size, groups = shape
    x, h, h2 = images(backend, size, dtype, layout, 3)
    wide = torch.randn(2 * size[1], device=x.device)
    for options in (
        {},
        {"h2": h2, "bias": wide[::2], "factor": 0.5},
        {"bias": wide[::2].to(dtype)},
    ):
        out, moments = residual_scale_moments(x, h, groups, backend=backend, **options)
        assert torch.equal(out, residual_scale(x, h, backend=backend, **options))
        assert out.stride() == x.stride()
        check_moments(moments, out, groups)


# Several groups a program; chunks of a program; a short last part, and parts with nothing left.
@pytest.mark.parametrize(
    ("size", "groups", "parts"),
    [((3, 5), 2, 1), ((41, 13), 1, 1), ((9, 13), 4, 4), ((9, 13), 2, 16)],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_every_way_to_cut(backend, layout, size, groups, parts, monkeypatch):
    cut(monkeypatch, groups, parts)
    for dtype, channels in ((torch.float32, 48), (torch.bfloat16, 32)):
        x, h = images(backend, (1, channels, *size), dtype, layout, 2)
        out, moments = residual_scale_moments(x, h, 4, backend=backend)
        assert moments.shape[2] == parts
        check_moments(moments, out, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_data_far_from_zero(backend, layout, monkeypatch):
    x = images(backend, (1, 16, 32, 24), torch.float32, layout, 1)[0]
    zero, rows = torch.zeros_like(x), torch.randn(2, 1, 16, device=x.device)
    far = x * 0.1 + 1e4
    outlying = x.clone()
    outlying[:, :, 0, 0] = outlying[:, :, 17, 5] = 1e4
    for parts in (1, 4):
        cut(monkeypatch, 2, parts)
        for data in (far, outlying):
            out, moments = residual_scale_moments(data, zero, 4, factor=1.0, backend=backend)
            check_moments(moments, out, 4)
            check_norm(backend, out, moments, rows, 4, activation=None)


def plain(x, scale, shift, groups, activation="silu"):
    y = torch.group_norm(x.contiguous(), groups, eps=1e-6)
    y = y * scale[..., None, None] + shift[..., None, None]
    return torch.nn.functional.silu(y) if activation else y


def check_norm(backend, x, moments, rows, groups, **options):
    """The norm and its gradients with given moments, by the error rule."""
    g = torch.randn_like(x)
    results = []

    def ours(x, *args, **options):
        return ada_group_norm((x, moments), *args, backend=backend, **options)

    for fn, dtype in ((ours, x.dtype), (plain, x.dtype), (plain, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *rows)]
        out = fn(*leaves, groups, **options)
        results.append([out, *torch.autograd.grad(out, leaves, g.to(dtype))])
    for each in zip(*results, strict=True):
        assert_error_rule(*each)
    return results[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_with_moments(backend, shape, layout, dtype):
    *size, groups = shape
    x, h = images(backend, size, dtype, layout, 2)
    rows = torch.randn(2, *size[:2], device=x.device).to(dtype)
    out, moments = residual_scale_moments(x, h, groups, backend=backend)
    assert (moments is None) == (backend in ("reference", "cpu"))
    y, *_ = check_norm(backend, out, moments, rows, groups)
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_the_norm_believes_its_moments(backend, layout, monkeypatch):
    """It takes no statistics of its own, merges parts of any number and skips the empty ones."""
    x = images(backend, (2, 24, 9, 5), torch.float32, layout, 1)[0]
    rows = torch.randn(2, 2, 24, device=x.device)
    for parts in (1, 2, 3, 11):
        cut(monkeypatch, 2, parts)
        _, moments = residual_scale_moments(x, 3 * x + 5, 4, factor=1.0, backend=backend)
        strided = torch.stack([moments, moments], -1)[..., 0]
        ours = ada_group_norm((x, strided), *rows, 4, backend=backend)
        values = (4 * x.double() + 5).reshape(2, 4, -1)
        mean, std = values.mean(-1), (values.var(-1, correction=0) + 1e-6).sqrt()
        y = (x.double().reshape(2, 4, -1) - mean[..., None]) / std[..., None]
        y = y.reshape(x.shape) * rows[0, ..., None, None] + rows[1, ..., None, None]
        torch.testing.assert_close(ours.double(), torch.nn.functional.silu(y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_any_order(backend):
    x, h, h2 = (torch.randn(2, 4, 3, 5, device=device_of(backend)) for _ in range(3))
    bias, results = torch.randn(4, device=x.device), []
    for fn in (
        lambda x, h, h2, bias: residual_scale_moments(
            x, h, 2, h2=h2, bias=bias, factor=0.3, backend=backend
        )[0],
        lambda x, h, h2, bias: (x + h + h2 + bias[:, None, None]) * 0.3,
    ):
        inputs = [t.detach().requires_grad_() for t in (x, h, h2, bias)]
        grads = torch.autograd.grad(fn(*inputs).sin().sum(), inputs, create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_empty_batches(backend):
    x = torch.randn(4, 8, 8, 10, device=device_of(backend))[:, ::2, 1:, ::2]
    h = torch.randn(4, 4, 7, 5, device=x.device).to(memory_format=torch.channels_last)
    out, moments = residual_scale_moments(x, h, 2, backend=backend)
    assert_error_rule(out, (x + h) / 2**0.5, (x.double() + h.double()) / 2**0.5)
    if moments is not None:
        check_moments(moments, out, 2)
    rows = torch.randn(4, device=x.device)
    for empty in (x[:0], x[:, :, :0]):
        out, moments = residual_scale_moments(empty, empty, 2, backend=backend)
        assert out.shape == empty.shape
        assert moments is None or not moments.any()
        y = ada_group_norm((out, moments), rows, rows, 2, backend=backend)
        assert y.shape == empty.shape


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_repeats_bit_for_bit(backend):
    for layout in LAYOUTS:
        x, h = images(backend, (2, 24, 16, 15), torch.bfloat16, layout, 2)
        first, second = (residual_scale_moments(x, h, 2, backend=backend) for _ in range(2))
        assert all(map(torch.equal, first, second))


def test_how_moments_are_cut():
    device = norm_module.device_size(torch.device("cpu"))
    # Enough programs for the device as they are; one sample's large maps; maps of a few pixels.
    many = moments_plan((100, 4, 32, 256), 2, True, device)
    assert (many.groups, many.parts) == (8, 1)
    few = moments_plan((1, 4, 32, 64 * 64), 2, False, device)
    assert few.parts > 1
    assert moments_plan((1, 4, 32, 9), 4, False, device).parts == 1


def block(x, h, scale, shift, backend=None):
    summed = residual_scale_moments(x, h, 4, backend=backend)
    return ada_group_norm(summed, scale, shift, 4, backend=backend)


@pytest.mark.parametrize("backend", [b for b in GPU_BACKENDS if b == "cuda"])
def test_registration(backend):
    """On the emulated operator too, whose fakes are the real one's."""
    operators, tests = torch.ops.lddgan, ("test_schema", "test_faketensor")
    fakes = {
        "residual_scale_moments": module._fake_moments,
        "ada_group_norm": norm_module._fake,
        "ada_group_norm_forward": norm_module._fake_forward,
        "ada_group_norm_backward": norm_module._fake_backward,
    }
    if EMULATED_CUDA:
        for name, fake in fakes.items():
            torch.library.register_fake(f"lddgan_emulated::{name}", fake)
    for layout in LAYOUTS:
        x, h = images(backend, (2, 8, 3, 5), torch.float32, layout, 2)
        for h2, bias in ((None, None), (h, h[0, :, 0, 0])):
            torch.library.opcheck(
                operators.residual_scale_moments.default,
                (x, h, h2, bias, 0.5, 4, [2, 3]),
                test_utils=tests,
            )
        _, moments = operators.residual_scale_moments(x, h, None, None, 0.5, 4, [2, 3])
        rows = torch.randn(2, 2, 8, device=x.device)
        given = (x, None, None, *rows, 4, 1e-6, True, [0, 2, 3, 1, 1, 1], moments)
        for name in ("ada_group_norm", "ada_group_norm_forward"):
            operator = getattr(operators, name).default
            torch.library.opcheck(operator, given, test_utils=tests)
        results = []
        for fn in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
            leaves = [t.detach().requires_grad_() for t in (x, h, *rows)]
            out = fn(*leaves, backend=backend)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_compiles_as_one_graph(device):
    x, h = (torch.randn(2, 8, 3, 5, device=device, requires_grad=True) for _ in range(2))
    rows = torch.randn(2, 2, 8, device=device)
    out = torch.compile(block, fullgraph=True)(x, h, *rows)
    torch.testing.assert_close(out, block(x, h, *rows))
    out.sum().backward()
    assert x.grad is not None


def test_cpu_leaves_moments_to_the_norm():
    x, h = torch.randn(2, 2, 8, 3, 5)
    rows = torch.randn(2, 2, 8)
    for backend in ("reference", "cpu", None):
        out, moments = residual_scale_moments(x, h, 4, backend=backend)
        assert moments is None
        assert torch.equal(out, residual_scale(x, h, backend=backend))
        wrong = torch.randn(2, 4, 1, 2)
        assert torch.equal(
            ada_group_norm((out, wrong), *rows, 4, backend=backend),
            ada_group_norm(out, *rows, 4, backend=backend),
        )


def test_bad_input():
    x, rows = torch.randn(2, 12, 4, 5), torch.randn(2, 12)
    good = torch.zeros(2, 3, 1, 2)
    with pytest.raises(ValueError, match="residual_scale_moments: h must be of shape"):
        residual_scale_moments(x, x[:1], 3)
    with pytest.raises(ValueError, match="residual_scale_moments: num_groups must be a divisor"):
        residual_scale_moments(x, x, 5)
    with pytest.raises(ValueError, match=r"residual_scale_moments: x must be of shape \(N, C"):
        residual_scale_moments(x[0], x[0], 3)
    with pytest.raises(ValueError, match="residual_scale_moments: bias must be of shape"):
        residual_scale_moments(x, x, 3, bias=torch.randn(3))
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        residual_scale_moments(x, x, 3, backend="cuda")

    def raises(message, moments, error=ValueError, **options):
        with pytest.raises(error, match="ada_group_norm: " + message):
            ada_group_norm((x, moments), rows, rows, 3, **options)

    for shape in ((2, 3, 2), (2, 4, 1, 2), (1, 3, 1, 2), (2, 3, 1, 3), (2, 3, 0, 2)):
        raises(r"moments must be of shape \(2, 3, parts, 2\), got", torch.zeros(shape))
    raises("moments must be torch.float32 on cpu, got torch.float64 on cpu", good.double())
    raises("moments must be torch.float32 on cpu, got torch.float32 on meta", good.to("meta"))
    raises("moments must be a torch.Tensor, got float", 1.0, error=TypeError)
    raises("bias must be None where moments", good, bias=rows)
    wide = torch.randn(2, 24)
    with pytest.raises(ValueError, match="ada_group_norm: x2 must be None where moments"):
        ada_group_norm((x, good), wide, wide, 3, x2=x)
