"""Every op against its reference on inputs that hypothesis invents, gradients included.

Shapes with zeros and ones, strides of slices, both layouts, all dtypes, values far from zero. A few
cases an op by default; LDDGAN_CASES=2000 for as many.
"""

import os

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lddgan_kernels import ops
from lddgan_kernels._checks import FLOAT_DTYPES
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.testing import relative_error, unit_roundoff

CASES = int(os.environ.get("LDDGAN_CASES", "20"))
DTYPES = st.sampled_from([d for d in FLOAT_DTYPES if d != torch.float64])
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 33])
SCHEDULE = Schedule(4)
quick = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=CASES < 1000,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@st.composite
def tensors(draw, shape, dtype, values="normal"):
    """A tensor in some layout: dense, channels_last, a part of a larger one, or transposed."""
    layout = draw(st.sampled_from(["contiguous", "channels_last", "steps", "offset", "transposed"]))
    shape = tuple(shape)
    if layout == "steps":
        larger = [2 * n for n in shape]
        x = _fill(draw, larger, values)[tuple(slice(0, None, 2) for _ in shape)]
    elif layout == "offset":
        x = _fill(draw, [n + 1 for n in shape], values)[tuple(slice(1, None) for _ in shape)]
    elif layout == "transposed" and len(shape) >= 2:
        x = _fill(draw, (*shape[:-2], shape[-1], shape[-2]), values).transpose(-1, -2)
    else:
        x = _fill(draw, shape, values)
    strides = x.stride()
    x = x.to(dtype)
    if layout == "channels_last" and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    elif x.stride() != strides and x.numel() > 1:
        x = torch.empty_strided(shape, strides, dtype=dtype).copy_(x)
    return x


def _fill(draw, shape, values):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "normal", "far", "small", "constant"]))
    if values == "normal":
        if kind == "far":
            x = x * 0.1 + 50
        elif kind == "small":
            x = x * 1e-3
        elif kind == "constant":
            x = torch.full_like(x, 0.75)
    return x


@st.composite
def images(draw, dtype=None, channels=SIZES, least=0, even=False):
    dtype = draw(DTYPES) if dtype is None else dtype
    n, c = draw(st.sampled_from([0, 1, 2, 3, 4])), draw(channels)
    h, w = (draw(SIZES.filter(lambda size: size >= least)) for _ in range(2))
    if even:
        h, w = 2 * (h // 2), 2 * (w // 2)
    if draw(st.integers(0, 19)) == 0:  # many samples, few channels: sums of one value a sample
        n, h, w = 64, min(h, 10), min(w, 10 if even else 9)
        c = min(c, 1) if channels is SIZES else c
    return draw(tensors((n, c, h, w), dtype))


def agree(call, inputs, first=1):
    """call(*inputs, backend=) by the default backend and by the reference, under the error rule.

    Args:
        first: of how many inputs the gradients are compared.
    """
    (ours,) = _run(call, inputs, first, None)
    times = 8 if first else 1
    plain = _run(call, inputs, first, "reference", times)
    exact = _run(call, [_wide(x) for x in inputs], first, "reference", times)
    for i, (a, *more) in enumerate(zip(ours, *plain, *exact, strict=True)):
        what = "output" if i == 0 else f"gradient {i - 1}"
        check(a, more[:times], more[times:], what, inputs[0].dtype)


def check(ours, plain, exact, what, image=torch.float32):
    """The error rule, for tensors of few elements, such as gradients that are sums of all.

    Such a sum may be near zero by chance, and so may be the plain composition's error. So there are
    several of them, for gradients that arrive, the first of which ours is to be compared with: an
    error is over the largest of them, and the plain composition's is the largest, at least two
    roundoffs. A float32 gradient of a 16-bit image is held to the image's roundoff.
    """
    assert (ours.shape, ours.dtype) == (plain[0].shape, plain[0].dtype)
    sizes = [x.abs().max().item() for x in exact if x.numel()]

    def error(x, y):
        size = sizes and y.abs().max().item()
        return relative_error(x, y) * (size / max(sizes) if size else 1.0)

    floor = 2 * max(unit_roundoff(ours.dtype), unit_roundoff(image))
    plains = max(floor, *map(error, plain, exact))
    assert error(ours, exact[0]) <= 2 * plains + unit_roundoff(ours.dtype), what


def _wide(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _run(call, inputs, first, backend, times=1):
    """[output, gradients of the first inputs...] for each of so many incoming gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs[:first]]
    out = call(*leaves, *inputs[first:], backend=backend)
    if not leaves:
        return [[out]]
    results = []
    for seed in range(times):
        generator = torch.Generator().manual_seed(seed)
        incoming = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        # bfloat16 in all three, so that the gradient that arrives is the same number.
        incoming = incoming.bfloat16().to(out.dtype)
        grads = torch.autograd.grad(out, leaves, incoming, retain_graph=seed < times - 1)
        results.append([out.detach(), *grads])
    return results


def uneven(x):
    """x and noise, in place: of what is all alike, a norm's gradient is made of roundoffs."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.add_(noise.to(x.dtype))


def of_many(x, groups):
    """Whether a group has so many values that its norm's gradient is no difference of roundoffs:
    one value, or two, become the same whatever they are."""
    return x[:1].numel() >= 16 * groups


def rows(draw, x, channels, one=True):
    """scale, shift or bias of x: (N, C) or (C,), of its dtype or float32."""
    dtype = draw(st.sampled_from([x.dtype, torch.float32]))
    shape = (channels,) if one and draw(st.booleans()) else (x.shape[0], channels)
    return draw(tensors(shape, dtype, "plain"))


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
