import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lddgan_kernels.nn import GroupNormAct
from lddgan_kernels.testing import assert_error_rule


def plain(norm, x, scale=None, shift=None, bias=None):
    """ADM's scale-shift norm, and DDPM's time bias before it."""

    def spread(rows):
        return rows.reshape(*rows.shape, *[1] * (x.ndim - 2)).to(x.dtype)

    h = x if bias is None else x + spread(bias)
    h = F.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)
    h = h if scale is None else h * (1 + spread(scale))
    h = h if shift is None else h + spread(shift)
    return h if norm.activation is None else getattr(F, norm.activation)(h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", None])
@pytest.mark.parametrize("affine", [True, False])
def test_all_that_follows(affine, activation, dtype):
    norm = GroupNormAct(4, 32, affine=affine, activation=activation).to(dtype)
    for p in norm.parameters():
        nn.init.normal_(p)
    rows = torch.randn(3, 2, 32, dtype=dtype).unbind()
    scale, shift, bias = rows
    for size in ((2, 32), (2, 32, 9), (2, 32, 5, 7)):
        x = torch.randn(size, dtype=dtype)
        for args in ({}, {"scale": scale, "shift": shift}, {"scale": scale}, {"shift": shift},
                     {"bias": bias}, {"scale": scale, "shift": shift, "bias": bias}):  # fmt: skip
            exact = {name: value.double() for name, value in args.items()}
            with torch.no_grad():
                ours, theirs = norm(x, **args), plain(norm, x, **args)
                norm.double()
                reference = plain(norm, x.double(), **exact)
                norm.to(dtype)
            assert_error_rule(ours, theirs, reference, f"{size} with {list(args)}")


def test_it_takes_the_place_of_pytorchs():
    theirs, ours = nn.GroupNorm(4, 32, 1e-3), GroupNormAct(4, 32, 1e-3, activation=None)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert isinstance(ours, nn.GroupNorm)
    assert nn.Sequential(ours).state_dict().keys() == nn.Sequential(theirs).state_dict().keys()
