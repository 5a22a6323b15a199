"""The residual sum against eager and torch.compile, at the generator's feature-map shapes."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, form_name, fresh_compile, with_gradient
from lddgan_kernels.ops import ada_group_norm, residual_scale, residual_scale_moments
from lddgan_kernels.testing import assert_error_rule

SHAPES = (
    (1, 128, 16, 16),
    (16, 128, 16, 16),
    (64, 128, 16, 16),
    (16, 256, 8, 8),
    (16, 128, 64, 64),
)
GROUPS = 32
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def plain(x, h, bias=None):
    return (x + h) / 2**0.5 if bias is None else (x + (h + bias[:, None, None])) / 2**0.5


def ours(x, h, bias=None):
    return residual_scale(x, h, bias=bias)


def with_norm(x, h, scale, shift):
    out, moments = residual_scale_moments(x, h, GROUPS)
    return ada_group_norm((out, moments), scale, shift, GROUPS), out


def apart(x, h, scale, shift):
    out = residual_scale(x, h)
    return ada_group_norm(out, scale, shift, GROUPS), out


def plain_with_norm(x, h, scale, shift):
    out = plain(x, h)
    y = torch.nn.functional.group_norm(out, GROUPS, eps=1e-6)
    y = y * scale[:, :, None, None] + shift[:, :, None, None]
    return torch.nn.functional.silu(y), out


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for backward in (False, True):
                yield _case(shape, dtype, CONTIGUOUS, False, backward)
                yield _case(shape, dtype, CHANNELS_LAST, True, backward)
            if device().type == "cuda":  # on the CPU both are the same two kernels
                for layout in (CONTIGUOUS, CHANNELS_LAST):
                    yield _case_with_norm(shape, dtype, layout)


def _case(shape, dtype, layout, biased, backward) -> Case:
    addends = 2 + biased

    def inputs():
        shapes = [shape] * 2 + [shape[1:2]] * biased + [shape] * backward
        made = [torch.randn(s, device=device(), dtype=dtype) for s in shapes]
        return tuple(t.to(memory_format=layout) if t.ndim == 4 else t for t in made)

    def check():
        given = inputs()[:addends]
        assert_error_rule(ours(*given), plain(*given), plain(*(t.double() for t in given)))

    wrap = (lambda fn: with_gradient(fn, range(addends))) if backward else (lambda fn: fn)
    compiled = fresh_compile(plain)
    size = torch.Size(shape).numel() * dtype.itemsize
    name = str(dtype).removeprefix("torch.") + " channels_last with bias" * biased
    direction = "forward+backward" if backward else "forward"
    return Case(
        name=f"{'x'.join(map(str, shape))} {name} {direction}",
        group=f"{name} {direction}",
        inputs=inputs,
        sides={"ours": wrap(ours), "eager": wrap(plain), "compile": wrap(compiled)},
        check=check,
        bytes_moved=size * (5 if backward else 3),
    )


def _case_with_norm(shape, dtype, layout) -> Case:
    """The sum whose moments the next norm takes, beside the two apart."""

    def inputs():
        images = [torch.randn(shape, device=device(), dtype=dtype) for _ in range(2)]
        rows = torch.randn(2, *shape[:2], device=device(), dtype=dtype)
        return *(t.to(memory_format=layout) for t in images), *rows

    def check():
        given = inputs()
        exact = plain_with_norm(*(t.double() for t in given))
        for side in (with_norm, apart):
            for a, b, c in zip(side(*given), plain_with_norm(*given), exact, strict=True):
                assert_error_rule(a, b, c)

    name = f"{form_name(dtype, layout)} with the next norm"
    return Case(
        name=f"{'x'.join(map(str, shape))} {name}",
        group=name,
        inputs=inputs,
        sides={
            "ours": with_norm,
            "apart": apart,
            "eager": plain_with_norm,
            "compile": fresh_compile(plain_with_norm),
        },
        check=check,
        bytes_moved=torch.Size(shape).numel() * dtype.itemsize * 5,
    )
