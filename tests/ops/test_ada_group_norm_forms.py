"""Of ada_group_norm: other activations, missing rows, 1 + scale, and inputs that are no images."""

import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels import use_backend
from lddgan_kernels.ops import ada_group_norm
from lddgan_kernels.testing import assert_error_rule
from tests.ops.test_ada_group_norm import BACKENDS, DTYPES, device_of

# Everything but N and C; dimensions after these two are what a group is normalised over.
SPACES = [(), (37,), (4, 5), (3, 4, 5)]
C, GROUPS = 48, 3
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def plain(x, scale, shift, num_groups, activation="silu", x2=None, bias=None, one_plus_scale=False):
    """As one writes it in PyTorch."""

    def spread(rows):
        return rows.reshape(*rows.shape, *[1] * (x.ndim - 2)).to(x.dtype)

    if bias is not None:
        x = x + spread(bias)
    x = x if x2 is None else torch.cat([x, x2], 1)
    y = F.group_norm(x.contiguous(), num_groups, eps=1e-6)
    if scale is not None:
        y = y * (1 + spread(scale) if one_plus_scale else spread(scale))
    if shift is not None:
        y = y + spread(shift)
    return y if activation is None else getattr(F, activation)(y)


def last(x):
    """In the layout whose channels are adjacent."""
    if x.ndim in LAST:
        return x.contiguous(memory_format=LAST[x.ndim])
    return x.mT.contiguous().mT if x.ndim == 3 else x


def check(backend, tensors, groups=GROUPS, **options):
    """Output and all gradients by the error rule; the output."""
    results, grad_out = [], None
    for fn, dtype, more in (
        (ada_group_norm, None, {"backend": backend}),
        (plain, None, {}),
        (plain, torch.float64, {}),
    ):
        leaves = {
            name: None if t is None else t.detach().to(dtype or t.dtype).requires_grad_()
            for name, t in tensors.items()
        }
        out = fn(num_groups=groups, **leaves, **options, **more)
        grad_out = torch.randn_like(out) if grad_out is None else grad_out
        given = {name: t for name, t in leaves.items() if t is not None}
        grads = torch.autograd.grad(out, list(given.values()), grad_out.to(out.dtype))
        results.append([out, *grads])
    for name, *each in zip(("output", *given), *results, strict=True):
        assert_error_rule(*each, f"{name} with {options}")
    return results[0][0]


def make(backend, dtype, space, **rows):
    size = (2, C, *space)
    x = torch.randn(size, device=device_of(backend)).to(dtype)
    tensors = {"x": x, "scale": torch.randn(2, C), "shift": torch.randn(2, C)} | rows
    return {name: None if t is None else t.to(x.device, dtype) for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "relu", None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_activations(backend, activation, dtype):
    check(backend, make(backend, dtype, (5, 7)), activation=activation)
    bias = {"bias": torch.randn(2, C), "scale": torch.randn(C), "shift": torch.randn(C)}
    check(backend, make(backend, dtype, (5, 7), **bias), activation=activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, last])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dimensions(backend, space, layout, dtype):
    tensors = make(backend, dtype, space, bias=torch.randn(2, C))
    tensors["x"] = layout(tensors["x"])
    out = check(backend, tensors)
    assert out.shape == tensors["x"].shape
    assert out.stride() == tensors["x"].stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_sources_of_any_dimensions(backend):
    for space in SPACES:
        tensors = make(backend, torch.float32, space, scale=torch.randn(C + 6), shift=None)
        tensors["x2"] = torch.randn(2, 6, *space, device=tensors["x"].device)
        check(backend, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_rows_and_one_plus_scale(backend, dtype):
    check(backend, make(backend, dtype, (5, 7), scale=None, shift=None))
    check(backend, make(backend, dtype, (5, 7), scale=None), activation=None)
    check(backend, make(backend, dtype, (5, 7), shift=None))
    check(backend, make(backend, dtype, (5, 7)), one_plus_scale=True)
    check(backend, make(backend, dtype, (3,), scale=torch.randn(C)), one_plus_scale=True)
    # Where there is no scale there is nothing to add 1 to.
    x = make(backend, dtype, (5, 7))["x"]
    both = (ada_group_norm(x, None, None, 3, one_plus_scale=one, backend=backend) for one in (0, 1))
    assert torch.equal(*both)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_scales_keep_their_digits(backend):
    """1 + 1/1000 is 1 in bfloat16."""
    scale = torch.full((12,), 1e-3, dtype=torch.bfloat16, device=device_of(backend))
    x = torch.randn(2, 12, 9, 9, device=scale.device)
    options = {"activation": None, "one_plus_scale": True, "backend": backend}
    y = ada_group_norm(x, scale, None, 3, **options) - ada_group_norm(x, None, None, 3, **options)
    torch.testing.assert_close(y.std(), x.new_tensor(1e-3), rtol=0.1, atol=0)


def compiled(x, scale, bias):
    y = ada_group_norm(x, scale, None, 3, activation="gelu", bias=bias, one_plus_scale=True)
    return ada_group_norm(y, None, None, 4, activation="relu")


@pytest.mark.parametrize("space", [(37,), (4, 5)])
def test_compile_without_graph_breaks(space):
    tensors = make("cpu", torch.float32, space, bias=torch.randn(2, C))
    given = [tensors[name].requires_grad_() for name in ("x", "scale", "bias")]
    out = torch.compile(compiled, fullgraph=True)(*given)
    expected = compiled(*given)
    torch.testing.assert_close(out, expected)
    grad_out = torch.randn_like(out)
    for ours, eager in zip(
        *(torch.autograd.grad(y, given, grad_out) for y in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, eager)


def test_the_reference_has_gradients_of_any_order():
    tensors = make("cpu", torch.float64, (3,))
    given = [t.requires_grad_() for t in tensors.values()]

    def run(x, scale, shift):
        return ada_group_norm(x, scale, shift, 3, activation="gelu", one_plus_scale=True)

    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(run, given)


def test_bad_input():
    x, rows = torch.randn(2, C, 5), torch.randn(2, C)
    with pytest.raises(ValueError, match="ada_group_norm: x2 must be of shape"):
        ada_group_norm(x, None, None, 3, x2=x[:, :, :2])
    with pytest.raises(ValueError, match="ada_group_norm: x2 must be .*of x's dimensions"):
        ada_group_norm(x, None, None, 3, x2=rows)
    with pytest.raises(ValueError, match="ada_group_norm: x must be .*got shape"):
        ada_group_norm(torch.randn(2, C, 1, 1, 1, 1), rows, rows, 3)
    with pytest.raises(TypeError, match="ada_group_norm: scale must be a torch.Tensor, got int"):
        ada_group_norm(x, 1, rows, 3, one_plus_scale=True)
