import sys

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from lddgan_kernels.ops import ada_group_norm, downsample2d, norm_resample, upsample2d
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import NATIVE_DEVICES, backends_of, device_of

module = sys.modules["lddgan_kernels.ops.norm_resample"]
BACKENDS = backends_of(module)
KERNELS = [backend for backend in BACKENDS if backend != "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
DIRECTIONS = ("up", "down")
# N, C, H, W, groups, channels of a shortcut of its own: odd maps, groups of 3 and of 4 channels
SHAPES = [(3, 12, 6, 4, 4, 0), (2, 40, 5, 7, 10, 0), (2, 64, 4, 6, 16, 24), (1, 8, 7, 6, 2, 5)]


def plain(x, scale, shift, num_groups, direction, skip=None, activation="silu", **_):
    """The textbook composition, the filter by depthwise convolution."""
    h = torch.group_norm(x.contiguous(), num_groups, eps=1e-6)
    h = h * scale[..., None, None].to(x.dtype) + shift[..., None, None].to(x.dtype)
    h = F.silu(h) if activation else h

    def resample(image):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
        weight = taps.outer(taps).expand(image.shape[1], 1, 4, 4)
        options = {"stride": 2, "padding": 1, "groups": image.shape[1]}
        if direction == "up":
            return F.conv_transpose2d(image, 4 * weight, **options)
        return F.conv2d(image, weight, **options)

    return resample(h), resample(x if skip is None else skip)


def inputs(shape, dtype, layout, device, affine=False, rows_dtype=None):
    n, c, h, w, _, skip = shape
    rows = (c,) if affine else (n, c)
    tensors = {
        "x": torch.randn(n, c, h, w).to(dtype),
        "scale": torch.randn(rows).to(rows_dtype or dtype),
        "shift": torch.randn(rows).to(rows_dtype or dtype),
    }
    if skip:
        tensors["skip"] = torch.randn(n, skip, h, w).to(dtype)
    return {
        name: (t.to(memory_format=layout) if t.ndim == 4 else t).to(device)
        for name, t in tensors.items()
    }


def with_gradients(fn, tensors, grads, *args, dtype=None, **options):
    """[outputs, gradient of each tensor], computed in `dtype`."""
    leaves = {
        name: (t if dtype is None else t.to(dtype)).detach().requires_grad_()
        for name, t in tensors.items()
    }
    out = fn(leaves["x"], leaves["scale"], leaves["shift"], *args,
             **{"skip": leaves.get("skip"), **options})  # fmt: skip
    given = [g.to(o.dtype) for g, o in zip(grads, out, strict=True)]
    return [*out, *torch.autograd.grad(out, list(leaves.values()), given)]


def check(backend, tensors, groups, direction, layout=torch.contiguous_format, **options):
    x, n = tensors["x"], tensors["x"].shape[0]
    sizes = [2 * s if direction == "up" else s // 2 for s in x.shape[2:]]
    skip = tensors.get("skip", x).shape[1]
    grads = [
        torch.randn(n, c, *sizes).to(x.dtype).to(x.device, memory_format=layout)
        for c in (x.shape[1], skip)
    ]
    given = tensors, grads, groups, direction
    ours = with_gradients(norm_resample, *given, backend=backend, **options)
    theirs = with_gradients(plain, *given, **options)
    exact = with_gradients(plain, *given, dtype=torch.float64, **options)
    names = ("h", "s", *tensors)
    for name, *results in zip(names, ours, theirs, exact, strict=True):
        assert_error_rule(*results, f"{name}, {direction}")
    with torch.no_grad():
        alone = norm_resample(
            x, tensors["scale"], tensors["shift"], groups, direction,
            skip=tensors.get("skip"), backend=backend, **options,
        )  # fmt: skip
    # Without a gradient it may be fused where it is not with one.
    for name, *results in zip(("h", "s"), alone, theirs, exact, strict=False):
        assert_error_rule(*results, f"{name}, {direction}, without gradient")
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_gradients(backend, shape, direction, layout, dtype):
    tensors = inputs(shape, dtype, layout, device_of(backend))
    h, s, grad_x, *_ = check(backend, tensors, shape[4], direction, layout)
    for image in (h, s):
        assert image.is_contiguous(memory_format=layout)
    assert backend == "reference" or grad_x.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_options(backend, direction):
    device, last = device_of(backend), torch.channels_last
    # Channels that no pack divides; no activation; gradients in the other layout.
    tensors = inputs(SHAPES[3], torch.float32, last, device)
    check(backend, tensors, 2, direction, activation=None)
    # Affine rows; float32 rows for a bfloat16 image; rows that are slices; a shortcut of the other
    # layout.
    shape = (2, 24, 6, 9, 6, 16)
    check(backend, inputs(shape, torch.float32, last, device, affine=True), 6, direction)
    tensors = inputs(shape, torch.bfloat16, last, device, rows_dtype=torch.float32)
    tensors["scale"] = torch.randn(2, 96, device=device)[:, 24:72:2]
    tensors["skip"] = tensors["skip"].contiguous()
    ours = check(backend, tensors, 6, direction)
    assert [t.dtype for t in ours[3:5]] == [torch.float32] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_views(backend, layout):
    for direction in DIRECTIONS:
        tensors = inputs((2, 24, 6, 9, 6, 16), torch.float32, layout, device_of(backend))
        check(backend, tensors, 6, direction)
        tensors["x"] = torch.randn(2, 48, 12, 9, device=tensors["x"].device)[:, ::2, ::2]
        check(backend, tensors, 6, direction)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_zero(backend, layout):
    tensors = inputs((2, 32, 8, 6, 8, 16), torch.float32, layout, device_of(backend))
    tensors["x"] = 10000 + 0.1 * tensors["x"]
    for direction in DIRECTIONS:
        check(backend, tensors, 8, direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend, direction):
    x = torch.randn(0, 8, 4, 6, device=device_of(backend), requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    rows = torch.randn(8, device=x.device)
    sizes = (8, 12) if direction == "up" else (2, 3)
    h, s = norm_resample(x, rows, rows, 2, direction, backend=backend)
    assert h.shape == s.shape == (0, 8, *sizes)
    (h.sum() + s.sum()).backward()


# Whole samples a thread; threads that share a sample; outputs written past the caches.
@pytest.mark.parametrize("shape", [(4, 48, 9, 8), (1, 80, 33, 31), (1, 128, 129, 128)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_threads_share_the_work(direction, shape):
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    skip = torch.randn_like(x)[:, :32].contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, *shape[:2])
    resample = upsample2d if direction == "up" else downsample2d
    h = resample(ada_group_norm(x, scale, shift, 16, backend="cpu"))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = norm_resample(x, scale, shift, 16, direction, skip=skip, backend="cpu")
            torch.testing.assert_close(found, (h, resample(skip)), rtol=0, atol=2e-6)
    finally:
        torch.set_num_threads(threads)


def test_gradient_in_double_precision():
    for direction in DIRECTIONS:
        shape = (2, 4, 3, 4, 2, 3)
        tensors = inputs(shape, torch.float64, torch.contiguous_format, "cpu")
        leaves = [t.requires_grad_() for t in tensors.values()]

        def run(x, scale, shift, skip, direction=direction):
            return norm_resample(x, scale, shift, 2, direction, skip=skip)

        assert gradcheck(run, leaves)


@pytest.mark.parametrize("backend", KERNELS)
def test_no_gradient_of_the_gradient(backend):
    x = torch.randn(2, 4, 4, 4, device=device_of(backend), requires_grad=True)
    rows = torch.randn(4, device=x.device)
    h, _ = norm_resample(x, rows, rows, 2, "down", backend=backend)
    (grad,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice|differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_registration(device):
    t = inputs((2, 8, 4, 6, 2, 3), torch.float32, torch.channels_last, device)
    tests = ("test_schema", "test_faketensor")
    moments = None
    if device == "cuda":
        given = t["x"], 2, [1, 2]
        torch.library.opcheck(torch.ops.lddgan.group_moments.default, given, test_utils=tests)
        moments = torch.ops.lddgan.group_moments(*given)
    # Going up has no operator on CPUs.
    for up, skip in ((False, None), (False, t["skip"]), *[(True, t["skip"])] * (device == "cuda")):
        given = (t["x"], skip, t["scale"], t["shift"], 2, 1e-6, True, up, moments)
        torch.library.opcheck(torch.ops.lddgan.norm_resample.default, given, test_utils=tests)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_as_one_graph(layout):
    tensors = inputs((2, 8, 4, 6, 2, 3), torch.float32, layout, "cpu")
    compiled = torch.compile(norm_resample, fullgraph=True)
    grads = torch.randn(2, 8, 2, 3), torch.randn(2, 3, 2, 3)
    found, expected = (
        with_gradients(fn, tensors, grads, 2, "down") for fn in (compiled, norm_resample)
    )
    torch.testing.assert_close(found, expected)


def test_bad_input():
    x, rows = torch.randn(2, 12, 4, 5), torch.randn(2, 12)

    def raises(message, *args, error=ValueError, **options):
        with pytest.raises(error, match="norm_resample: " + message):
            norm_resample(*args, **options)

    raises("x must be a 4-D tensor.*got shape \\(2, 12\\)", rows, rows, rows, 3, "up")
    raises("num_groups must be a divisor of the 12 channels, got 5", x, rows, rows, 5, "up")
    raises("direction must be 'up' or 'down', got 'left'", x, rows, rows, 3, "left")
    raises("x must be at least 2x2", x[:, :, :1], rows, rows, 3, "down")
    raises("activation must be", x, rows, rows, 3, "up", activation="relu")
    raises("scale must be of shape \\(2, 12\\) or \\(12,\\)", x, rows[:1], rows, 3, "up")
    raises("shift must be torch.float32.*got torch.int64", x, rows, rows.long(), 3, "up")
    raises("skip must be of shape \\(2, D, 4, 5\\)", x, rows, rows, 3, "up", skip=x[:, :, :3])
    raises("skip must be torch.float32", x, rows, rows, 3, "up", skip=x.double())
    moments = torch.zeros(2, 4, 1, 2)
    raises("moments must be float32 of shape \\(2, 3, P, 2\\)", (x, moments), rows, rows, 3, "up")
    raises("scale must be a torch.Tensor", x, None, rows, 3, "up", error=TypeError)
    raises("backend 'cuda' unavailable", x, rows, rows, 3, "up", backend="cuda",
           error=RuntimeError)  # fmt: skip
    raises("backend must be one of", x, rows, rows, 3, "up", backend="metal")
    raises("backend 'cpu' unavailable: dtype torch.float64", x.double(), rows.double(),
           rows.double(), 3, "up", backend="cpu", error=RuntimeError)  # fmt: skip
