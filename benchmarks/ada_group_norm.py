"""AdaGN + SiLU against eager group_norm, mul, add, silu and against torch.compile of those."""

from collections.abc import Iterator

import torch

from benchmarks._harness import Case, device, fresh_compile, with_gradient
from lddgan_kernels import _extension
from lddgan_kernels.ops import ada_group_norm
from lddgan_kernels.testing import assert_error_rule

GROUPS = 32
BATCHES = (1, 16, 64)
MAPS = ((128, 16), (256, 8), (128, 64))  # channels, height = width
LARGE_MAPS = ((256, 32), (512, 16))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# The ratios over eager that were asked for: forward, forward+backward.
TARGETS = {
    ("float32", "contiguous"): (5, 4),
    ("float32", "channels_last"): (6, 5),
    ("bfloat16", "contiguous"): (5, 4.5),
    ("bfloat16", "channels_last"): (12, 10),
}
if _extension.build_info().get("cpu_isa") == "avx2":
    TARGETS = {
        ("float32", "contiguous"): (4.5, 4),
        ("float32", "channels_last"): (5, 4.5),
        ("bfloat16", "contiguous"): (4.5, 4),
        ("bfloat16", "channels_last"): (9, 8),
    }


def plain(x, scale, shift):
    y = torch.nn.functional.group_norm(x, GROUPS, eps=1e-6)
    y = torch.add(torch.mul(y, scale[:, :, None, None]), shift[:, :, None, None])
    return torch.nn.functional.silu(y)


def ours(x, scale, shift):
    return ada_group_norm(x, scale, shift, GROUPS)


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in LAYOUTS:
            for backward in (False, True):
                for batch in BATCHES:
                    for channels, size in MAPS:
                        yield _case(batch, channels, size, dtype, layout, backward)
                for batch in BATCHES:
                    for channels, size in LARGE_MAPS:
                        yield _case(batch, channels, size, dtype, layout, backward)


def _case(batch, channels, size, dtype, layout, backward) -> Case:
    shape = (batch, channels, size, size)

    def inputs():
        x = torch.randn(shape, device=device(), dtype=dtype)
        rows = torch.randn(2, batch, channels, device=device(), dtype=dtype)
        grads = (torch.randn_like(x),) if backward else ()
        x, *grads = (t.to(memory_format=LAYOUTS[layout]) for t in (x, *grads))
        return x, rows[0] + 1, rows[1], *grads

    def check():
        x, scale, shift = inputs()[:3]
        exact = plain(x.double(), scale.double(), shift.double())
        assert_error_rule(ours(x, scale, shift), plain(x, scale, shift), exact)

    wrap = (lambda fn: with_gradient(fn, (0, 1, 2))) if backward else (lambda fn: fn)
    name = str(dtype).removeprefix("torch.")
    direction = "forward+backward" if backward else "forward"
    large = (channels, size) in LARGE_MAPS
    target = 4 if large else TARGETS[name, layout][backward]
    targets = {} if large and layout == "contiguous" else {"eager": target}
    return Case(
        name=f"{'x'.join(map(str, shape))} {name} {layout} {direction}",
        group=f"{name} {layout}{' large maps' if large else ''} {direction}",
        inputs=inputs,
        sides={"ours": wrap(ours), "eager": wrap(plain), "compile": wrap(fresh_compile(plain))},
        check=check,
        # x in, out; backward x and grad_out in, grad_x out.
        bytes_moved=torch.Size(shape).numel() * dtype.itemsize * (5 if backward else 2),
        targets=targets if large else targets | {"compile": 3},
    )
