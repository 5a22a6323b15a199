"""Inputs that hypothesis invents, and what is compared of them: for test_properties.py."""

import os

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from lddgan_kernels._checks import FLOAT_DTYPES
from lddgan_kernels.testing import relative_error, unit_roundoff

CASES = int(os.environ.get("LDDGAN_CASES", "20"))
DTYPES = st.sampled_from([d for d in FLOAT_DTYPES if d != torch.float64])
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 33])
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
