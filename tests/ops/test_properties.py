"""Every op against its reference on inputs that hypothesis invents, gradients included.

Shapes with zeros and ones, strides of slices, both layouts, all dtypes, values far from zero. A few
cases an op by default; LDDGAN_CASES=2000 for as many.
"""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lddgan_kernels import ops
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.ops.packed_conv2d import pack_conv2d, packed_conv2d
from tests.ops.invented import (
    DTYPES,
    SIZES,
    agree,
    check,
    images,
    of_many,
    quick,
    rows,
    tensors,
    uneven,
)

SCHEDULE = Schedule(4)


@quick
@given(st.data())
def test_ada_group_norm(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    channels = st.sampled_from([groups * k for k in (1, 2, 3, 8, 17)])
    x = uneven(data.draw(images(channels=channels, least=1)))
    c = x.shape[1]
    x2 = bias = None
    if data.draw(st.booleans()):
        x2 = uneven(data.draw(tensors((x.shape[0], groups, *x.shape[2:]), x.dtype)))
        c += groups
    if x.shape[1] > groups and data.draw(st.booleans()):  # a lone channel's has the gradient zero
        bias = rows(data.draw, x, x.shape[1], one=False)
    scale, shift = rows(data.draw, x, c), rows(data.draw, x, c)
    given_ = [t for t in (x2, bias) if t is not None]
    activation = data.draw(st.sampled_from(["silu", None]))

    def call(x, scale, shift, *more, backend):
        more = list(more)
        return ops.ada_group_norm(
            x, scale, shift, groups, activation=activation, backend=backend,
            x2=more.pop(0) if x2 is not None else None, bias=more.pop(0) if more else None,
        )  # fmt: skip

    agree(call, [x, scale, shift, *given_], 3 + len(given_) if of_many(x, groups) else 0)


@quick
@given(st.data())
def test_forms_of_ada_group_norm(data):
    """Of one to five dimensions, other activations, rows that are missing or added to 1."""
    groups = data.draw(st.sampled_from([1, 2, 4]))
    channels = groups * data.draw(st.sampled_from([2, 3, 8, 17]))
    n, dtype = data.draw(st.sampled_from([0, 1, 2, 3])), data.draw(DTYPES)
    space = [data.draw(SIZES.filter(bool)) for _ in range(data.draw(st.integers(0, 3)))]
    if len(space) == 3:
        space = [min(size, 5) for size in space]
    x = uneven(data.draw(tensors((n, channels, *space), dtype)))
    given_ = {}
    for name in ("scale", "shift"):
        if data.draw(st.booleans()):
            given_[name] = rows(data.draw, x, channels)
    if data.draw(st.booleans()):
        given_["bias"] = rows(data.draw, x, channels, one=False)
    activation = data.draw(st.sampled_from(["silu", "gelu", "relu", None]))
    one_plus = data.draw(st.booleans())

    def call(x, *more, backend):
        options = dict.fromkeys(("scale", "shift")) | dict(zip(given_, more, strict=True))
        return ops.ada_group_norm(
            x, num_groups=groups, activation=activation, one_plus_scale=one_plus, backend=backend,
            **options,
        )  # fmt: skip

    # Which side of relu's bend a value lies on that is zero but for roundoff is chance.
    smooth = activation != "relu" and of_many(x, groups)
    agree(call, [x, *given_.values()], 1 + len(given_) if smooth else 0)


@quick
@given(st.data())
def test_norm_resample(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    channels = st.sampled_from([groups * k for k in (1, 2, 8, 17)])
    direction = data.draw(st.sampled_from(["up", "down"]))
    x = uneven(data.draw(images(channels=channels, least=2)))
    scale, shift = (rows(data.draw, x, x.shape[1]) for _ in range(2))

    def call(x, scale, shift, backend):
        return torch.cat(ops.norm_resample(x, scale, shift, groups, direction, backend=backend), 1)

    agree(call, [x, scale, shift], 3 if of_many(x, groups) else 0)


@quick
@given(st.data())
def test_bias_act(data):
    x = data.draw(images())
    if data.draw(st.booleans()):
        x = x[:, :, 0, 0] if min(x.shape[2:]) else data.draw(tensors((3, 5), x.dtype))
    bias = data.draw(tensors(x.shape[1:2], data.draw(st.sampled_from([x.dtype, torch.float32]))))
    activation = data.draw(st.sampled_from(["silu", "leaky_relu"]))
    agree(lambda x, b, backend: ops.bias_act(x, b, activation, backend=backend), [x, bias], 2)


@quick
@given(st.data())
def test_upfirdn2d(data):
    x = data.draw(images(least=1))
    up, down = (data.draw(st.integers(1, 3)) for _ in range(2))
    shape = data.draw(st.sampled_from([(1,), (4,), (5,), (2, 3), (1, 4)]))
    taps = data.draw(tensors(shape, torch.float32, "plain"))
    pad = tuple(data.draw(st.integers(0, 4)) for _ in range(data.draw(st.sampled_from([2, 4]))))
    sides = pad * 2 if len(pad) == 2 else pad
    if x.shape[2] * up + sides[2] + sides[3] < shape[0] or (
        x.shape[3] * up + sides[0] + sides[1] < shape[-1]
    ):
        return
    agree(lambda x, backend: ops.upfirdn2d(x, taps, up, down, pad, backend=backend), [x])


@quick
@given(st.data())
def test_padding_of_an_empty_image(data):
    """Zeros around nothing."""
    n, c, h, w = data.draw(
        st.sampled_from([(2, 3, 0, 4), (2, 3, 0, 0), (0, 3, 4, 4), (2, 0, 4, 4)])
    )
    taps = torch.tensor([1.0, 2.0])
    agree(
        lambda x, backend: ops.upfirdn2d(x, taps, 2, 1, (3, 2), backend=backend),
        [data.draw(tensors((n, c, h, w), torch.float32))],
    )


@quick
@given(st.data())
def test_resampling_by_two(data):
    x = data.draw(images(least=2))
    agree(lambda x, backend: ops.upsample2d(x, backend=backend), [x])
    agree(lambda x, backend: ops.downsample2d(x, backend=backend), [x])


@quick
@given(st.data())
def test_haar(data):
    x, scale = data.draw(images(even=True)), data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    agree(lambda x, backend: ops.haar_dwt2d(x, scale, backend=backend), [x])
    y = data.draw(images(channels=st.sampled_from([0, 4, 12, 20])))
    agree(lambda y, backend: ops.haar_idwt2d(y, scale, backend=backend), [y])


@quick
@given(st.data())
def test_steps_of_diffusion(data):
    x = data.draw(images())
    x_next, noise, noise2 = (data.draw(tensors(x.shape, x.dtype)) for _ in range(3))
    t = torch.tensor([data.draw(st.integers(0, 3)) for _ in range(x.shape[0])], dtype=torch.int64)
    agree(
        lambda a, b, n, backend: ops.posterior_sample(a, b, t, SCHEDULE, noise=n, backend=backend),
        [x, x_next, noise],
        2,
    )
    for i in range(2):
        agree(
            lambda a, n, m, backend: ops.diffuse_pair(
                a, t, SCHEDULE, noise=(n, m), backend=backend
            )[i],  # noqa: B023
            [x, noise, noise2],
            0,
        )


@quick
@given(st.data())
def test_noise(data):
    shape = tuple(data.draw(SIZES) for _ in range(data.draw(st.integers(1, 4))))
    seeds = [data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(shape[0])]
    seeds = torch.tensor(seeds, dtype=torch.int64)
    stream, step = (data.draw(st.sampled_from([0, 1, 2**32 - 1])) for _ in range(2))
    ours = ops.seeded_normal(shape, seeds, stream, step=step)
    exact = ops.seeded_normal(
        shape, seeds, stream, step=step, dtype=torch.float64, backend="reference"
    )
    torch.testing.assert_close(ours.double(), exact, atol=2e-6, rtol=0)


@quick
@given(st.data())
def test_residual_scale(data):
    x = data.draw(images())
    h, h2 = (data.draw(tensors(x.shape, x.dtype)) for _ in range(2))
    bias = data.draw(tensors(x.shape[1:2], x.dtype))
    factor = data.draw(st.sampled_from([0.5**0.5, 1.0, -2.0]))

    def call(x, h, h2, bias, backend):
        return ops.residual_scale(x, h, h2=h2, bias=bias, factor=factor, backend=backend)

    agree(call, [x, h, h2, bias], 4)
    agree(lambda x, h, backend: ops.residual_scale(x, h, backend=backend), [x, h], 2)


@quick
@given(st.data())
def test_minibatch_stddev(data):
    x, group = data.draw(images(least=1)), data.draw(st.integers(1, 5))
    if x.shape[1] == 0:
        return
    x = uneven(x)
    agree(lambda x, backend: ops.minibatch_stddev(x, group, backend=backend), [x])


@quick
@given(st.data())
def test_pixel_norm(data):
    shape = data.draw(st.sampled_from([0, 1, 2, 9])), data.draw(SIZES.filter(lambda d: d > 0))
    z = data.draw(tensors(shape, data.draw(DTYPES)))
    # The gradient of z / |z| is zero, of which all that is left are roundoffs.
    agree(ops.pixel_norm, [z], 0 if shape[1] == 1 else 1)


@quick
@given(st.data())
def test_nearest_code(data):
    z = data.draw(images(channels=st.sampled_from([1, 2, 3, 4, 5])))
    codes = data.draw(st.sampled_from([1, 2, 7, 16, 65]))
    dtype = data.draw(st.sampled_from([z.dtype, torch.float32]))
    codebook = data.draw(tensors((codes, z.shape[1]), dtype))
    for ours, theirs in zip(
        ops.nearest_code(z, codebook), ops.nearest_code(z, codebook, backend="reference"),
        strict=True,
    ):  # fmt: skip
        assert ours.equal(theirs)
    agree(lambda z, c, backend: ops.nearest_code(z, c, backend=backend)[0], [z, codebook])


@quick
@given(st.data())
def test_conv3x3(data):
    c, d = (data.draw(st.sampled_from([1, 3, 32, 64])) for _ in range(2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    x = data.draw(images(dtype, channels=st.just(c), least=1))
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    weight = data.draw(tensors((d, c, 3, 3), dtype, "plain"))
    bias = data.draw(tensors((d,), dtype, "plain"))
    residual = data.draw(tensors((x.shape[0], d, *x.shape[2:]), dtype))
    agree(
        lambda x, w, b, r, backend: ops.conv3x3(x, w, b, residual=r, backend=backend),
        [x, weight, bias, residual],
        4,
    )


@quick
@given(st.data())
def test_packed_conv2d(data):
    """The error rule. Ours may be any of oneDNN's algorithms, so the plain ones are several too."""
    c, d = (data.draw(st.sampled_from([1, 3, 16, 32, 48, 64])) for _ in range(2))
    kernel = data.draw(st.sampled_from([1, 3, 5]))
    bfloat16 = multiplies_bfloat16(torch.device("cpu"))[0]
    dtype = data.draw(st.sampled_from([torch.float32] + [torch.bfloat16] * bfloat16))
    n = data.draw(st.sampled_from([1, 2, 3, 16]))
    h, w = (data.draw(st.sampled_from([1, 2, 3, 5, 8, 9, 17])) for _ in range(2))
    x = data.draw(tensors((n, c, h, w), dtype))
    weight = data.draw(tensors((d, c, kernel, kernel), dtype, "plain"))
    bias, residual = data.draw(tensors((d,), dtype)), data.draw(tensors((n, d, h, w), dtype))
    bias, residual = (t if data.draw(st.booleans()) else None for t in (bias, residual))
    packed = pack_conv2d(weight, (n, h, w))
    assert packed.dense().equal(weight)
    out = packed_conv2d(x, packed, bias, residual=residual)

    def plain(x, *others):
        weight, bias, residual = (None if t is None else t.to(x.dtype) for t in others)
        out = F.conv2d(x, weight, bias, padding=kernel // 2)
        return out if residual is None else out + residual

    def term_by_term():
        columns = F.unfold(x.float(), kernel, padding=kernel // 2)
        total = torch.zeros(n, d, h * w)
        for i, row in enumerate(weight.float().flatten(1).T):
            total += row[:, None] * columns[:, None, i]
        total = total.view(n, d, h, w)
        total = total if bias is None else total + bias[:, None, None]
        return (total if residual is None else total + residual).to(dtype)

    layouts = torch.contiguous_format, torch.channels_last
    theirs = [plain(x.contiguous(memory_format=m), weight, bias, residual) for m in layouts]
    exact = plain(x.double(), weight, bias, residual)
    check(out, [*theirs, term_by_term()], [exact] * 3, "output", dtype)


SPECIAL = (float("inf"), -float("inf"), float("nan"), 1e30, -1e30, 3e37, -3e37, 1e-40, 0.0, -0.0)


@quick
@given(st.data())
def test_special_values(data):
    """What is not finite stays so, where PyTorch's own is; what does not meet it stays right."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    place = data.draw(st.integers(0, x.numel() - 1))
    x.view(-1)[place] = data.draw(st.sampled_from(SPECIAL))
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    ones, bias, even = torch.ones(8), torch.zeros(8), torch.ones(2, 8, 6, 6, dtype=dtype)
    calls = {
        "bias_act silu": lambda x, **k: ops.bias_act(x, bias, "silu", **k),
        "bias_act leaky": lambda x, **k: ops.bias_act(x, bias, "leaky_relu", **k),
        "residual_scale": lambda x, **k: ops.residual_scale(x, x.flip(1).contiguous(), **k),
        "haar_dwt2d": lambda x, **k: ops.haar_dwt2d(x, **k),
        "haar_idwt2d": lambda x, **k: ops.haar_idwt2d(x, **k),
        "downsample2d": lambda x, **k: ops.downsample2d(x, **k),
        "shift": lambda x, **k: ops.ada_group_norm(even, ones, x[:, :, 0, 0], 4, **k),
    }
    for name, call in calls.items():
        ours, plain = call(x), call(x, backend="reference")
        assert ours.isfinite().equal(plain.isfinite()), name
        exact = call(x.double(), backend="reference") if name != "shift" else plain.double()
        alone = plain.isfinite() & (plain.abs() < 1e20)
        check(ours[alone], [plain[alone]], [exact[alone]], name)
    norm = ops.ada_group_norm(x, ones, bias, 4)
    if not x.isfinite().all():
        assert not norm.isfinite().all()
