import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels import use_backend
from lddgan_kernels.ops import packed_conv2d
from lddgan_kernels.ops.packed_conv2d import pack_conv2d, packs
from lddgan_kernels.testing import assert_error_rule

CL = torch.channels_last
ONEDNN = torch.backends.mkldnn.is_available()
pytestmark = pytest.mark.skipif(not ONEDNN, reason="PyTorch lacks oneDNN")


def tensors(n, c, d, side, kernel, dtype, layout=CL):
    x = torch.randn(n, c, *side).to(dtype).to(memory_format=layout)
    weight = (torch.randn(d, c, kernel, kernel) / (kernel * c**0.5)).to(dtype)
    residual = torch.randn(n, d, *side).to(dtype).to(memory_format=layout)
    return x, weight, torch.randn(d).to(dtype), residual


def plain(x, weight, bias, residual):
    out = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    return out if residual is None else out + residual


@pytest.mark.parametrize("backend", ["reference", "cpu", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize(
    "shape", [(1, 32, 48, (4, 4), 1), (2, 17, 5, (7, 3), 3), (3, 64, 64, (5, 9), 3)]
)
def test_equals_conv2d(shape, layout, dtype, backend):
    x, weight, bias, residual = tensors(*shape, dtype, layout)
    packed = pack_conv2d(weight.to(memory_format=layout))
    for given_bias in (None, bias):
        for given, overwrite in ((None, False), (residual, False), (residual.clone(), True)):
            options = {"residual": given, "overwrite": overwrite, "backend": backend}
            exact = [t if t is None else t.double() for t in (x, weight, given_bias, given)]
            # In channels_last, where PyTorch runs oneDNN as well; its order of sums is oneDNN's.
            theirs = plain(x.to(memory_format=CL), weight, given_bias, given)
            kept = None if given is None or overwrite else given.clone()
            out = packed_conv2d(x, packed, given_bias, **options)
            assert out.is_contiguous(memory_format=CL)
            assert_error_rule(out, theirs, plain(*exact))
            assert kept is None or torch.equal(given, kept)


def test_a_slice_of_a_weight():
    x, weight, bias, _ = tensors(2, 16, 8, (5, 5), 3, torch.float32)
    wide = torch.randn(8, 40, 3, 3)
    wide[:, 10:26] = weight
    out = packed_conv2d(x, pack_conv2d(wide[:, 10:26]), bias)
    torch.testing.assert_close(out, plain(x, weight, bias, None))


def test_packs_only_where_it_may():
    x, weight, *_ = tensors(1, 32, 32, (4, 4), 3, torch.float32)
    assert not packs(x, weight)  # gradients are on
    with torch.no_grad():
        assert packs(x, weight)
        assert not packs(x.contiguous(), weight)
        assert not packs(x.double(), weight.double())
        assert not packs(x, weight.bfloat16())
        assert not packs(x[:0], weight)
        assert packs(x[:, :1].contiguous(), weight[:, :1])  # one channel has every layout
        with use_backend("reference"):
            assert not packs(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not packs(x, weight)


def test_bad_arguments():
    x, weight, bias, residual = tensors(1, 32, 32, (4, 4), 3, torch.float32)
    packed = pack_conv2d(weight)
    for wrong, message in (
        (lambda: packed_conv2d(x, weight), "packed_conv2d: packed must be what pack_conv2d"),
        (lambda: packed_conv2d(x[:, :16], packed), "packed_conv2d: x must be of 32 channels"),
        (lambda: packed_conv2d(x.bfloat16(), packed), "packed_conv2d: x must be torch.float32"),
        (
            lambda: packed_conv2d(x, packed, residual=residual[..., :2]),
            "packed_conv2d: residual must be of shape",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(RuntimeError, match="packed_conv2d: backend 'triton' unavailable"):
        packed_conv2d(x, packed, bias, backend="triton")
