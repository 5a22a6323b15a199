"""Under autocast an op meets tensors of several dtypes: the widest counts, as in PyTorch's sums."""

import pytest
import torch

from lddgan_kernels import ops
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.testing import assert_error_rule

X, NARROW, ROWS = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4).bfloat16(), torch.randn(2, 8)
T = torch.tensor([0, 1])


@pytest.mark.parametrize("backend", [None, "reference"])
def test_rows_of_a_linear_layer_beside_float32(backend):
    linear = torch.nn.Linear(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        scale, shift = linear(torch.randn(2, 4)).chunk(2, 1)
        assert scale.dtype == torch.bfloat16
        out = ops.ada_group_norm(X, scale, shift, 2, bias=scale, backend=backend)
        down, _ = ops.norm_resample(X, scale, shift, 2, "down", backend=backend)
    assert out.dtype == down.dtype == torch.float32
    exact = ops.ada_group_norm(
        X.double(), scale.double(), shift.double(), 2, bias=scale.double(), backend="reference"
    )
    plain = ops.ada_group_norm(X, scale.float(), shift.float(), 2, bias=scale.float())
    assert_error_rule(out, plain, exact)
    (gradient,) = torch.autograd.grad(out.sum(), linear.weight)
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("swap", [False, True])
def test_images_of_two_dtypes(backend, swap):
    pair = (NARROW, X) if swap else (X, NARROW)
    wide = [x.float() for x in pair]
    scale = torch.randn(2, 16)
    schedule, noise = Schedule(2), torch.randn(2, 8, 4, 4).bfloat16()
    calls = {
        "norm": lambda x, h: ops.ada_group_norm(x, scale, scale, 4, x2=h, backend=backend),
        "sum": lambda x, h: ops.residual_scale(x, h, backend=backend),
        "moments": lambda x, h: ops.residual_scale_moments(x, h, 4, backend=backend)[0],
        "posterior": lambda x, h: ops.posterior_sample(
            x, h, T, schedule, noise=noise.to(x.dtype), backend=backend
        ),
    }
    for name, call in calls.items():
        with torch.autocast("cpu", torch.bfloat16):
            out = call(*pair)
        assert out.dtype == torch.float32, name
        torch.testing.assert_close(out, call(*wide), msg=name)
        with pytest.raises(ValueError, match="must be torch.* like x"):
            call(*pair)


def test_the_message_names_each_dtype_once():
    with pytest.raises(ValueError, match="scale must be") as error:
        ops.ada_group_norm(X, ROWS.double(), ROWS, 2)
    assert str(error.value).count("torch.float32") == 1
    with pytest.raises(ValueError, match=r"torch.bfloat16 or torch.float32 on cpu like x, got"):
        ops.ada_group_norm(NARROW, ROWS.half(), ROWS, 2)


def test_sums_of_filters_stay_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.upsample2d(X, backend="reference")
    assert_error_rule(out, ops.upsample2d(X), ops.upsample2d(X.double()))
