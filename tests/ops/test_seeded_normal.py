import sys

import pytest
import torch

from lddgan_kernels.ops import seeded_normal
from lddgan_kernels.ops._philox import draw_seeds, normal_reference, philox4x32
from tests.conftest import NATIVE_DEVICES, backends_of, device_of

module = sys.modules["lddgan_kernels.ops.seeded_normal"]
BACKENDS = backends_of(module)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Shapes with every remainder of elements by 4 and by the vectors' widths, and rows cut in the
# middle of a counter where channels_last reads them.
SHAPES = ((4, 16, 16), (3, 5, 7), (4, 33, 3), (12, 4, 6), (1, 1, 1), (3, 40, 41), (5,), (100,))
SEEDS = (0, 1, -1, 2**31, 2**32, 2**32 + 1, -(2**63), 2**63 - 1, -123456789012)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_meets_its_known_answers(counter, key, words):
    """The vectors that Random123 publishes for philox4x32 with 10 rounds."""

    def tensors(text):
        return tuple(torch.tensor([int(word, 16)]) for word in text.split())

    assert philox4x32(tensors(counter), tensors(key)) == tensors(words)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_float64(backend, shape):
    seeds = torch.tensor(SEEDS, device=device_of(backend))
    out = seeded_normal((len(seeds), *shape), seeds, 3, step=11, backend=backend)
    exact = normal_reference((len(seeds), *shape), seeds, 3, 11, torch.float64)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert (out.double() - exact).abs().max() < 1e-6  # two backends: 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_accurate_over_many_values(backend):
    """Worst cases of logarithm, root, sine and cosine, among a million values."""
    seeds = torch.arange(8, device=device_of(backend))
    shape = (8, 3, 64, 64) if backend == "triton" else (8, 128, 1024)
    out = seeded_normal(shape, seeds, 0, backend=backend)
    exact = normal_reference(shape, seeds, 0, 0, torch.float64)
    error = (out.double() - exact).abs()
    assert error.max() < 1e-6
    small = exact.abs() < 1e-3  # next to the zeros of sine, cosine and logarithm
    assert error[small].max() < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_dtypes_are_float32_rounded(backend, dtype):
    seeds = torch.tensor(SEEDS, device=device_of(backend))
    shape = (len(SEEDS), 3, 5, 7)
    out = seeded_normal(shape, seeds, 2, dtype=dtype, backend=backend)
    wide = seeded_normal(shape, seeds, 2, backend=backend)
    if backend in ("reference", "triton"):
        # The first rounds from float64 at once; the second's interpreter cuts bfloat16 off.
        torch.testing.assert_close(out, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    else:
        assert torch.equal(out, wide.to(dtype))


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) == 3], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_does_not_matter(backend, shape):
    seeds = torch.tensor(SEEDS, device=device_of(backend))
    args = (len(SEEDS), *shape), seeds, 5
    plain = seeded_normal(*args, step=2, backend=backend)
    out = seeded_normal(*args, step=2, memory_format=torch.channels_last, backend=backend)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_depends_on_its_seed_alone(backend):
    seeds = torch.tensor(SEEDS, device=device_of(backend))
    batch = seeded_normal((len(SEEDS), 3, 9, 9), seeds, 1, backend=backend)
    for n in range(len(SEEDS)):
        alone = seeded_normal((1, 3, 9, 9), seeds[n : n + 1], 1, backend=backend)
        assert torch.equal(alone[0], batch[n])
    mixed = seeded_normal((len(SEEDS), 3, 9, 9), seeds.flip(0), 1, backend=backend)
    assert torch.equal(mixed.flip(0), batch)
    # A strided view of seeds, and a smaller sample: the first elements of the larger one.
    half = seeded_normal((5, 243), seeds[::2], 1, backend=backend)
    assert torch.equal(half, batch[::2].reshape(5, 243))
    assert torch.equal(seeded_normal((5, 50), seeds[::2], 1, backend=backend), half[:, :50])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads):
    seeds = torch.arange(40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = seeded_normal((40, 3, 33, 35), seeds, 1)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out[7:8], seeded_normal((1, 3, 33, 35), seeds[7:8], 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_stream_and_step_all_matter(backend):
    def noise(seed, stream, step):
        seeds = torch.tensor([seed], device=device_of(backend))
        return seeded_normal((1, 1000), seeds, stream, step=step, backend=backend)[0]

    variants = [
        noise(*arguments)
        for arguments in (
            *((0, 0, 0), (1, 0, 0), (-1, 0, 0), (2**32, 0, 0), (-(2**63), 0, 0)),
            *((0, 1, 0), (0, 2**32 - 1, 0), (0, 0, 1), (0, 0, 2**31), (0, 0, 2**32 - 1)),
        )
    ]
    correlations = torch.corrcoef(torch.stack(variants)) - torch.eye(len(variants)).to(variants[0])
    assert correlations.abs().max() < 0.16  # five standard deviations


def test_distribution():
    """Moments, the largest distance of the distribution functions, tails, neighbours."""
    x = seeded_normal((1000, 1000), torch.arange(1000), 0).double().flatten()
    n = len(x)
    assert x.mean().abs() < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert (x**3).mean().abs() < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    ordered = x.sort().values
    expected = torch.special.ndtr(ordered)
    rank = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum((expected - rank / n).max(), ((rank + 1) / n - expected).max())
    assert distance < 1.95 / n**0.5  # exceeded once in a thousand by true normals
    for bound in (3.0, 4.0):
        p = 2 * torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)).item()
        assert abs((x.abs() > bound).sum().item() - n * p) < 5 * (n * p) ** 0.5
    assert 4.5 < x.abs().max() < 6.8
    for lag in (1, 2, 3, 4, 1000):
        assert (x[lag:] * x[:-lag]).mean().abs() < 5 / n**0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0,)])
def test_empty(backend, shape):
    seeds = torch.zeros(shape[0], dtype=torch.int64, device=device_of(backend))
    assert seeded_normal(shape, seeds, 0, backend=backend).shape == shape


def test_float64_runs_on_the_reference():
    seeds = torch.tensor(SEEDS)
    out = seeded_normal((len(SEEDS), 10), seeds, 0, dtype=torch.float64)
    assert out.dtype == torch.float64
    with pytest.raises(RuntimeError, match="float64 runs on the reference only"):
        seeded_normal((len(SEEDS), 10), seeds, 0, dtype=torch.float64, backend="cpu")


@pytest.mark.parametrize("device", NATIVE_DEVICES)
def test_registration(device):
    seeds = torch.arange(3, device=device)
    op = torch.ops.lddgan.seeded_normal.default
    torch.library.opcheck(op, ((3, 4, 5, 6), seeds, 1, 2, torch.bfloat16, True))
    torch.library.opcheck(op, ((3, 7), seeds, 1, 2, torch.float32, False))


def test_compiles_as_one_graph():
    def fn(seeds):
        return seeded_normal((len(seeds), 3, 8, 8), seeds, 1, step=2) * 2

    seeds = torch.tensor(SEEDS)
    assert torch.equal(torch.compile(fn, fullgraph=True)(seeds), fn(seeds))


def test_drawn_seeds():
    a = draw_seeds(1000, generator=torch.Generator().manual_seed(5))
    b = draw_seeds(1000, generator=torch.Generator().manual_seed(5))
    assert torch.equal(a, b)
    assert len(a.unique()) == 1000
    torch.manual_seed(1)
    c = draw_seeds(3)
    torch.manual_seed(1)
    assert torch.equal(c, draw_seeds(3))


def test_bad_input():
    seeds = torch.arange(3)
    for wrong, message in (
        (seeds.int(), "seeds must be int64, got torch.int32"),
        (seeds[:2], r"seeds must be of shape \(3,\), got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=f"seeded_normal: {message}"):
            seeded_normal((3, 4), wrong, 0)
    with pytest.raises(TypeError, match="seeds must be a torch.Tensor, got int"):
        seeded_normal((3, 4), 3, 0)
    with pytest.raises(ValueError, match=r"stream must be in 0\.\.2\^32-1, got -1"):
        seeded_normal((3, 4), seeds, -1)
    with pytest.raises(ValueError, match=r"step must be in 0\.\.2\^32-1, got 4294967296"):
        seeded_normal((3, 4), seeds, 0, step=2**32)
    with pytest.raises(ValueError, match="dtype must be float32, .* got torch.int32"):
        seeded_normal((3, 4), seeds, 0, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"shape must be of 4 dimensions for channels_last"):
        seeded_normal((3, 4), seeds, 0, memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="shape must be of at least one dimension"):
        seeded_normal((), seeds, 0)
    with pytest.raises(RuntimeError, match="backend 'cuda' unavailable"):
        seeded_normal((3, 4), seeds, 0, backend="cuda")
