import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels import _extension, use_backend
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.ops import packed_conv2d
from lddgan_kernels.ops.packed_conv2d import (
    MOST_FORMS,
    PackedForms,
    in_large_pages,
    pack_conv2d,
    packs,
)
from lddgan_kernels.testing import (
    INSTRUCTION_SETS,
    assert_error_rule,
    instruction_sets,
    relative_error,
)

CL = torch.channels_last
ONEDNN = torch.backends.mkldnn.is_available()
pytestmark = pytest.mark.skipif(not ONEDNN, reason="PyTorch lacks oneDNN")
BFLOAT16, WHY = multiplies_bfloat16(torch.device("cpu"))
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not BFLOAT16, reason=WHY)),
]


def tensors(n, c, d, side, kernel, dtype, layout=CL):
    x = torch.randn(n, c, *side).to(dtype).to(memory_format=layout)
    weight = (torch.randn(d, c, kernel, kernel) / (kernel * c**0.5)).to(dtype)
    residual = torch.randn(n, d, *side).to(dtype).to(memory_format=layout)
    return x, weight, torch.randn(d).to(dtype), residual


def size(x):
    return x.shape[0], x.shape[2], x.shape[3]


def plain(x, weight, bias, residual):
    out = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    return out if residual is None else out + residual


def assert_as_exact_as_onednn(out, *given):
    """The error rule where the convolution is oneDNN's own.

    Which of its algorithms runs, and so in which order it sums, depends on layout, packing and
    size; each is plain PyTorch's for some input. The one of the greatest error sets the rule.
    """
    exact = plain(*(None if t is None else t.double() for t in given))
    x, *others = given
    theirs = [plain(x.contiguous(memory_format=m), *others) for m in (torch.contiguous_format, CL)]
    assert_error_rule(out, max(theirs, key=lambda t: relative_error(t, exact)), exact)


@pytest.mark.parametrize("backend", ["reference", "cpu", None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 32, 48, (4, 4), 1),
        (2, 17, 5, (7, 3), 3),
        (3, 64, 64, (5, 9), 3),
        (1, 48, 64, (9, 5), 1),  # our kernel's in float32, as are these
        (2, 144, 32, (3, 5), 3),
        (1, 16, 96, (1, 17), 3),
        (3, 32, 1024, (1, 1), 1),
    ],
)
def test_equals_conv2d(shape, layout, dtype, backend):
    x, weight, bias, residual = tensors(*shape, dtype, layout)
    packed = pack_conv2d(weight.to(memory_format=layout), size(x))
    for given_bias in (None, bias):
        for given, overwrite in ((None, False), (residual, False), (residual.clone(), True)):
            options = {"residual": given, "overwrite": overwrite, "backend": backend}
            kept = None if given is None else given.clone()
            out = packed_conv2d(x, packed, given_bias, **options)
            assert out.is_contiguous(memory_format=CL)
            assert_as_exact_as_onednn(out, x, weight, given_bias, kept)
            assert kept is None or overwrite or torch.equal(given, kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "shape", [(1, 512, 32, (4, 4), 3), (1, 256, 64, (8, 8), 3), (4, 512, 32, (1, 1), 1)]
)
def test_long_sums(shape, seed):
    """Ours; at batch 1 plain PyTorch runs another algorithm than oneDNN, and a more exact one."""
    torch.manual_seed(seed)
    given = tensors(*shape, torch.float32)
    x, weight, bias, residual = given
    out = packed_conv2d(x, pack_conv2d(weight, size(x)), bias, residual=residual)
    assert_error_rule(out, plain(*given), plain(*(t.double() for t in given)))


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_any_number_of_threads_gives_the_same(threads):
    x, weight, bias, residual = tensors(1, 160, 96, (5, 4), 3, torch.float32)
    packed = pack_conv2d(weight, size(x))
    wanted = packed_conv2d(x, packed, bias, residual=residual)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(packed_conv2d(x, packed, bias, residual=residual), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")
def test_registration():
    x, _, bias, residual = tensors(2, 32, 64, (3, 3), 3, torch.float32)
    packed = torch.randn(2, 9 * 32, 32)
    for extras in ((bias, residual), (None, None)):
        torch.library.opcheck(torch.ops.lddgan.packed_conv2d.default, (x, packed, 3, *extras))


def test_a_slice_of_a_weight():
    x, weight, bias, _ = tensors(2, 16, 8, (5, 5), 3, torch.float32)
    wide = torch.randn(8, 40, 3, 3)
    wide[:, 10:26] = weight
    out = packed_conv2d(x, pack_conv2d(wide[:, 10:26], size(x)), bias)
    torch.testing.assert_close(out, plain(x, weight, bias, None))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strided_bias(dtype):
    x, weight, _, _ = tensors(2, 16, 8, (5, 5), 3, dtype)
    bias = torch.randn(8, 2).to(dtype)[:, 1]
    out = packed_conv2d(x, pack_conv2d(weight, size(x)), bias)
    assert_as_exact_as_onednn(out, x, weight, bias, None)


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
        assert packs(x[:, :, 0, 0].contiguous()[..., None, None], weight)  # and so has one pixel
        with use_backend("reference"):
            assert not packs(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not packs(x, weight)


def test_bad_arguments():
    x, weight, bias, residual = tensors(1, 32, 32, (4, 4), 3, torch.float32)
    packed = pack_conv2d(weight, size(x))
    for wrong, message in (
        (lambda: packed_conv2d(x, weight), "packed_conv2d: packed must be what pack_conv2d"),
        (lambda: packed_conv2d(x[:, :16], packed), "packed_conv2d: x must be of 32 channels"),
        (lambda: packed_conv2d(x.bfloat16(), packed), "packed_conv2d: x must be torch.float32"),
        (
            lambda: packed_conv2d(x[:, :, :2], packed),
            r"packed must be made for inputs of \(N, H, W\) \(1, 2, 4\), got \(1, 4, 4\)",
        ),
        (lambda: pack_conv2d(weight[..., :2], (1, 4, 4)), "pack_conv2d: weight must be of shape"),
        (lambda: pack_conv2d(weight.double(), (1, 4, 4)), "pack_conv2d: weight must be float32"),
        (lambda: pack_conv2d(weight, (0, 4, 4)), "pack_conv2d: size must be"),
        (lambda: packed_conv2d(x, packed, bias[:5]), "packed_conv2d: bias must be of shape"),
        (lambda: packed_conv2d(x, packed, bias.double()), "packed_conv2d: bias must be of shape"),
        (
            lambda: packed_conv2d(x, packed, residual=residual[..., :2]),
            "packed_conv2d: residual must be of shape",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(RuntimeError, match="packed_conv2d: backend 'triton' unavailable"):
        packed_conv2d(x, packed, bias, backend="triton")


def test_forms_are_shared_and_bounded():
    weight = torch.randn(64, 64, 3, 3)
    forms = PackedForms(lambda: weight)
    x = torch.randn(16, 64, 24, 24).to(memory_format=CL)
    for n in (1, 2, 16):
        for side in range(1, 25):
            part = x[:n, :, :side, :side].contiguous(memory_format=CL)
            packed = forms(part)
            assert packed.size == (n, side, side)
            assert forms(part) is packed
            if side % 8 == 0:
                assert_as_exact_as_onednn(packed_conv2d(part, packed), part, weight, None, None)
            assert len({id(p.weight) for p in forms._sizes.values()}) <= MOST_FORMS


@pytest.mark.skipif(BFLOAT16, reason="the processor multiplies bfloat16")
def test_bfloat16_that_is_emulated_is_refused():
    x, weight, *_ = tensors(1, 32, 32, (4, 4), 3, torch.bfloat16)
    with torch.no_grad():
        assert not packs(x, weight)
    with pytest.raises(RuntimeError, match="pack_conv2d: bfloat16 weights cannot be packed: "):
        pack_conv2d(weight, size(x))


# What the networks have: every width and kernel, odd maps, one channel.
NETWORKS_CONVOLUTIONS = """
import torch
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.ops.packed_conv2d import PackedForms, packed_conv2d, packs

dtypes = [torch.float32] + [torch.bfloat16] * multiplies_bfloat16(torch.device("cpu"))[0]
shapes = (4, 128, 3), (128, 128, 3), (384, 256, 1), (256, 3, 3), (1, 32, 3), (48, 64, 3)
for dtype in dtypes:
    for c, d, k in shapes:
        forms = PackedForms(lambda: torch.ones(d, c, k, k, dtype=dtype))
        for n in (1, 3, 16):
            for side in (4, 7, 16):
                x = torch.ones(n, c, side, side, dtype=dtype).to(memory_format=torch.channels_last)
                r = torch.ones(n, d, side, side, dtype=dtype).to(memory_format=torch.channels_last)
                with torch.no_grad():
                    assert packs(x, torch.empty(0, dtype=dtype))
                packed, bias = forms(x), torch.ones(d, dtype=dtype)
                print("calls", flush=True)
                packed_conv2d(x, packed, bias)
                packed_conv2d(x, packed, bias, residual=r)
                packed_conv2d(x, packed, bias, residual=r, overwrite=True)
                print("packs", flush=True)
"""


@pytest.mark.parametrize("isa", instruction_sets())
def test_no_call_reorders_a_weight(isa):
    settings = {**INSTRUCTION_SETS[isa], "ONEDNN_VERBOSE": "1"}
    command = [sys.executable, "-c", NETWORKS_CONVOLUTIONS]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    called = convolutions = 0
    for line in done.stdout.splitlines():
        if line in ("calls", "packs"):
            called = line == "calls"
        elif called and ",exec,cpu," in line:
            assert ",exec,cpu,reorder," not in line
            convolutions += 1
    assert convolutions >= 102  # the others are our kernel's


@pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")
@pytest.mark.parametrize("count", [1, 1000, (1 << 19) - 1, 1 << 19, (3 << 19) + 5])
def test_a_copy_in_large_pages_is_equal_and_apart(count):
    x = torch.randn(count, 2)[:, 0]
    copy = in_large_pages(x)
    assert copy.is_contiguous()
    assert torch.equal(copy, x)
    x.zero_()
    assert copy.count_nonzero() > 0.9 * count
