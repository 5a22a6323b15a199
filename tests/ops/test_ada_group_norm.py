import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd import gradcheck

from lddgan_kernels.ops import ada_group_norm
from lddgan_kernels.ops._norm_plan import NormPlan
from lddgan_kernels.testing import assert_error_rule, relative_error
from tests.conftest import NATIVE_DEVICES, backends_of, device_of, shared_path

module = sys.modules["lddgan_kernels.ops.ada_group_norm"]
BACKENDS = backends_of(module)
GPU_BACKENDS = [backend for backend in BACKENDS if backend in ("cuda", "triton")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# N, C1, C2, H, W, groups; 12 channels a group, groups across x and x2, odd and one-pixel maps
SHAPES = [
    (2, 12, 0, 7, 5, 3),
    (2, 384, 0, 4, 4, 32),
    (3, 20, 28, 5, 6, 4),
    (16, 40, 0, 1, 1, 4),
    (1, 32, 0, 40, 33, 8),
]


def plain(x, scale, shift, num_groups, eps=1e-6, activation="silu", x2=None, bias=None):
    """The textbook composition; robust where PyTorch's channels_last kernel is not."""
    if bias is not None:
        x = x + bias[:, :, None, None].to(x.dtype)
    if x2 is not None:
        x = torch.cat([x, x2], 1)
    y = torch.group_norm(x.contiguous(), num_groups, eps=eps)
    y = y * scale[..., None, None].to(x.dtype) + shift[..., None, None].to(x.dtype)
    return torch.nn.functional.silu(y) if activation else y


def inputs(shape, dtype, layout, device, affine=False, rows_dtype=None):
    n, c1, c2, h, w, _ = shape
    rows = (c1 + c2,) if affine else (n, c1 + c2)
    rows_dtype = rows_dtype or dtype
    tensors = {
        "x": (torch.randn(n, c1, h, w, dtype=dtype)).to(memory_format=layout),
        "scale": torch.randn(rows).to(rows_dtype),
        "shift": torch.randn(rows).to(rows_dtype),
        "bias": torch.randn(n, c1).to(rows_dtype),
    }
    if c2:
        tensors["x2"] = torch.randn(n, c2, h, w, dtype=dtype).to(memory_format=layout)
    return {name: t.to(device) for name, t in tensors.items()}


def with_gradients(fn, tensors, grad_out, groups, dtype=None, **options):
    """[output, gradient of each tensor], computed in `dtype`."""
    leaves = {
        name: (t if dtype is None else t.to(dtype)).detach().requires_grad_()
        for name, t in tensors.items()
    }
    out = fn(num_groups=groups, **leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out.to(out.dtype))
    return [out, *grads]


def check(backend, tensors, groups, grad_layout=torch.contiguous_format, **options):
    x = tensors["x"]
    channels = tensors["scale"].shape[-1]
    grad_out = torch.randn(x.shape[0], channels, *x.shape[2:], device=x.device).to(x.dtype)
    grad_out = grad_out.to(memory_format=grad_layout)
    ours = with_gradients(ada_group_norm, tensors, grad_out, groups, backend=backend, **options)
    theirs = with_gradients(plain, tensors, grad_out, groups, **options)
    exact = with_gradients(plain, tensors, grad_out, groups, torch.float64, **options)
    for name, *results in zip(("output", *tensors), ours, theirs, exact, strict=True):
        assert_error_rule(*results, f"{name} of {groups} groups")
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradients(backend, shape, layout, dtype):
    tensors = inputs(shape, dtype, layout, device_of(backend))
    out, grad_x, *_ = check(backend, tensors, shape[-1], layout)
    assert out.is_contiguous(memory_format=layout)
    assert backend == "reference" or grad_x.is_contiguous(memory_format=layout)


# One piece of several chunks, a last piece that is short, empty pieces; whole groups on chip.
@pytest.mark.parametrize(
    ("kind", "groups", "parts", "height"),
    [("split", 1, 1, 41), ("split", 2, 4, 9), ("split", 1, 16, 9), ("onchip", 2, 8, 9)],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_every_way_to_cut(backend, layout, kind, groups, parts, height, monkeypatch):
    plan = NormPlan(kind, groups, parts, 1)
    monkeypatch.setattr(module, "gpu_plans", lambda *_: (plan, plan))
    shape = (2, 12, 4, height, 13, 2)
    check(backend, inputs(shape, torch.bfloat16, layout, device_of(backend)), 2)


# Blocks of all threads, whose packs are copied past the registers; a group in chunks of channels.
@pytest.mark.parametrize(("kind", "channels", "size"), [("onchip", 64, 16), ("split", 2056, 3)])
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_large_blocks_and_wide_groups(backend, layout, dtype, kind, channels, size, monkeypatch):
    plan = NormPlan(kind, 1, 1, 1)
    monkeypatch.setattr(module, "gpu_plans", lambda *_: (plan, plan))
    shape = (1, channels, 0, size, size, 1)
    check(backend, inputs(shape, dtype, layout, device_of(backend)), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 44, 36, 57, 61, 8), (2, 160, 0, 40, 40, 32)])
@pytest.mark.parametrize("backend", ["cpu"])
def test_samples_past_the_cache(backend, shape, layout, dtype):
    """The same on one thread and on two, which share the pixels of a single sample."""
    tensors = inputs(shape, dtype, layout, "cpu")
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            found.append(check(backend, tensors, shape[-1], layout))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_options(backend, layout):
    device, other = device_of(backend), LAYOUTS[layout == LAYOUTS[0]]
    shape = (3, 24, 24, 5, 7, 6)
    # Without an activation, with affine rows, and with a gradient in the other layout.
    check(backend, inputs(shape, torch.float32, layout, device), 6, other, activation=None)
    check(backend, inputs(shape, torch.float32, layout, device, affine=True), 6, other)
    # float32 rows for a bfloat16 image.
    tensors = inputs(shape, torch.bfloat16, layout, device, rows_dtype=torch.float32)
    ours = check(backend, tensors, 6)
    assert [t.dtype for t in ours[2:5]] == [torch.float32] * 3
    # x2 in the other layout; the output is in x's.
    tensors = inputs(shape, torch.float32, layout, device)
    tensors["x2"] = tensors["x2"].to(memory_format=other)
    out = check(backend, tensors, 6)[0]
    assert out.is_contiguous(memory_format=layout)
    # Neither bias nor x2.
    tensors = inputs((*shape[:2], 0, *shape[3:]), torch.float32, layout, device)
    del tensors["bias"]
    check(backend, tensors, 6, other)
    # Each alone needs a gradient.
    for name in tensors:
        leaf = tensors[name].clone().requires_grad_()
        out = ada_group_norm(num_groups=6, **tensors | {name: leaf}, backend=backend)
        assert torch.autograd.grad(out.sum(), leaf)[0].shape == leaf.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_views(backend):
    device = device_of(backend)
    bank = torch.randn(4, 100, device=device)
    scale, shift, bias = bank[:, 3:15], bank[:, 40:52], bank[:, 88:]
    assert not scale.is_contiguous()
    x = torch.randn(4, 24, 7, 10, device=device)[:, ::2, 1:, ::2]
    check(backend, {"x": x, "scale": scale, "shift": shift, "bias": bias}, 3)
    check(backend, {"x": x, "scale": bank.t()[:12].t(), "shift": bank[:, ::8][:, :12]}, 3)
    check(backend, {"x": x, "scale": bank[:1, :12].expand(4, 12), "shift": shift}, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_data_far_from_zero(backend, layout):
    device = device_of(backend)
    scale, shift = torch.randn(2, 2, 32, device=device)
    for mean, deviation, size, most in ((1e4, 0.1, 16, 2e-2), (300, 1, 64, 1e-5)):
        x = (torch.randn(2, 32, size, size, device=device) * deviation + mean).to(
            memory_format=layout
        )
        out = ada_group_norm(x, scale, shift, 8, activation=None, backend=backend)
        exact = plain(x.double(), scale.double(), shift.double(), 8, activation=None)
        theirs = plain(x, scale, shift, 8, activation=None)
        assert_error_rule(out, theirs, exact)
        assert relative_error(out, exact) < most
    # One outlying pixel must not spoil the others' variance, wherever it lies.
    for where in (0, 777):
        x = torch.randn(1, 32, 32 * 32, device=device)
        x[..., where] = 1e4
        x = x.view(1, 32, 32, 32).to(memory_format=layout)
        out = ada_group_norm(x, scale[:1], shift[:1], 8, backend=backend)
        exact = plain(x.double(), scale[:1].double(), shift[:1].double(), 8)
        assert relative_error(out, exact) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_groups_and_empty_batches(backend, layout):
    device = device_of(backend)
    scale, shift = torch.randn(2, 2, 12, device=device)
    x = torch.full((2, 12, 5, 6), 3.25, device=device).to(memory_format=layout)
    out = ada_group_norm(x, scale, shift, 3, activation=None, backend=backend)
    torch.testing.assert_close(out, shift[:, :, None, None].expand_as(out), rtol=0, atol=1e-6)

    empty = x[:0].requires_grad_()
    affine = scale[0].clone().requires_grad_()
    out = ada_group_norm(empty, affine, shift[:0], 3, backend=backend)
    assert out.shape == (0, 12, 5, 6)
    grad_x, grad_scale = torch.autograd.grad(out.sum(), (empty, affine))
    assert grad_x.shape == empty.shape
    assert torch.equal(grad_scale, torch.zeros_like(affine))


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_repeats_bit_for_bit(backend):
    shape = (3, 64, 64, 16, 16, 32)
    for layout in LAYOUTS:
        tensors = inputs(shape, torch.bfloat16, layout, device_of(backend), affine=True)
        grad_out = torch.randn(3, 128, 16, 16, device=tensors["x"].device)
        first, second = (
            with_gradients(ada_group_norm, tensors, grad_out, 32, backend=backend) for _ in range(2)
        )
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend):
    golden = {
        name.removeprefix("adagn."): t.to(device_of(backend))
        for name, t in load_file(shared_path("golden/ops.safetensors")).items()
        if name.startswith("adagn.")
    }
    for layout in LAYOUTS:
        tensors = {
            "x": golden["x"].to(memory_format=layout),
            "scale": golden["gamma"],
            "shift": golden["beta"],
        }
        results = with_gradients(ada_group_norm, tensors, golden["grad_y"], 8, backend=backend)
        names = ("y_silu", "grad_x", "grad_gamma", "grad_beta")
        for name, result in zip(names, results, strict=True):
            assert relative_error(result, golden[name].double()) < 1e-5, name


def test_gradient_in_double_precision():
    shape = (2, 6, 2, 3, 2, 4)
    tensors = inputs(shape, torch.float64, torch.contiguous_format, "cpu")
    leaves = [t.requires_grad_() for t in tensors.values()]

    def run(x, scale, shift, bias, x2):
        return ada_group_norm(x, scale, shift, 4, bias=bias, x2=x2)

    assert gradcheck(run, leaves)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_no_gradient_of_the_gradient(backend):
    x = torch.randn(2, 4, 3, 3, device=device_of(backend), requires_grad=True)
    rows = torch.randn(4, device=x.device)
    out = ada_group_norm(x, rows, rows, 2, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again|differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("device", NATIVE_DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_registration(layout, device):
    t = inputs((2, 4, 8, 3, 5, 3), torch.float32, layout, device)
    t["scale"] = t["scale"][0]
    order = ("x", "x2", "bias", "scale", "shift")
    ops = torch.ops.lddgan
    plan = [] if device == "cpu" else [0, 1, 1, 0, 1, 1]
    torch.library.opcheck(
        ops.ada_group_norm.default,
        (*(t[name].requires_grad_() for name in order), 3, 1e-6, True, plan),
    )
    x, x2, bias, scale, shift = (t[name].detach() for name in order)
    for more in ((None, None, scale[:4], shift[:, :4]), (x2, bias, scale, shift)):
        forward = (x, *more, 2, 1e-6, True, plan)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(ops.ada_group_norm_forward.default, forward, test_utils=tests)
        out, statistics = ops.ada_group_norm_forward(*forward)
        backward = (torch.ones_like(out), x, *more, statistics, 2, True, plan)
        torch.library.opcheck(ops.ada_group_norm_backward.default, backward, test_utils=tests)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_as_one_graph(layout):
    tensors = inputs((2, 8, 4, 3, 5, 3), torch.float32, layout, "cpu")
    grad_out = torch.randn(2, 12, 3, 5)
    compiled = torch.compile(ada_group_norm, fullgraph=True)
    results = with_gradients(compiled, tensors, grad_out, 3)
    eager = with_gradients(ada_group_norm, tensors, grad_out, 3)
    for ours, theirs in zip(results, eager, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_backend_named_is_cpu(layout):
    shape = (3, 24, 0, 5, 7, 6)
    grad_out = torch.randn(3, 24, 5, 7)
    for rows, options in (
        ({}, {}),
        ({"affine": True}, {"activation": None}),
        ({"rows_dtype": torch.float32}, {"eps": 0.1}),
    ):
        tensors = inputs(shape, torch.bfloat16, layout, "cpu", **rows)
        for without in ((), ("bias",)):
            given = {name: t for name, t in tensors.items() if name not in without}
            named, unnamed = (
                with_gradients(ada_group_norm, given, grad_out, 6, backend=backend, **options)
                for backend in ("cpu", None)
            )
            assert all(map(torch.equal, named, unnamed))


def test_bad_input():
    x, rows = torch.randn(2, 12, 4, 5), torch.randn(2, 12)

    def raises(message, *args, error=ValueError, **options):
        with pytest.raises(error, match="ada_group_norm: " + message):
            ada_group_norm(*args, **options)

    raises("x must be .*\\(N, C, H, W\\).*got shape \\(12,\\)", rows[0], rows, rows, 3)
    raises("x must be a torch.Tensor, got float", 1.0, rows, rows, 3, error=TypeError)
    raises("num_groups must be a divisor of the 12 channels, got 5", x, rows, rows, 5)
    raises("num_groups must be a divisor of the 12 channels, got 0", x, rows, rows, 0)
    raises("scale must be of shape \\(2, 12\\) or \\(12,\\), got", x, rows[:, :6], rows, 3)
    raises("shift must be of shape \\(2, 12\\) or \\(12,\\), got", x, rows, rows[:1], 3)
    raises("scale must be torch.float32 or", x, rows.double(), rows, 3)
    raises("scale must be .* on cpu like x, got .* on meta", x, rows.to("meta"), rows, 3)
    raises("bias must be of shape \\(2, 12\\), got", x, rows, rows, 3, bias=rows[0])
    wide = torch.randn(24)
    raises("x2 must be of shape \\(2, C2, 4, 5\\)", x, wide, wide, 3, x2=x.mT)
    raises("x2 must be torch.float32 on cpu like x", x, wide, wide, 3, x2=x.bfloat16())
    raises("activation must be 'silu', 'gelu', 'relu' or None", x, rows, rows, 3, activation="elu")
    raises("scale must be a torch.Tensor, got float", x, 1.0, rows, 3, error=TypeError)
    raises("backend must be one of", x, rows, rows, 3, backend="metal")
    exact = x.double(), rows.double(), rows.double()
    raises(".*float64 runs on the reference", *exact, 3, backend="cpu", error=RuntimeError)
    raises("backend 'cuda' unavailable", x, rows, rows, 3, backend="cuda", error=RuntimeError)
