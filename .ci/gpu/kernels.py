"""The CUDA kernels by themselves, without pytest: `python .ci/gpu/kernels.py forms|stress|times`.

forms: every kernel, float32 and bfloat16, both layouts, with packs and without, the norms on chip,
in clusters of 2 and 8, split and with given moments, forward and backward; against the reference.
`--few` is for sanitizers, which slow a kernel some hundred times: the smallest shapes alone.
stress: thousands of launches of clusters beside a busy stream; all must give the same bits.
times: the norms at the presets' shapes, by replay of graphs on inputs that outgrow the cache.

Without a GPU the emulated kernels run, where they are built; what takes a GPU's clock does not.
"""

import sys
import time

import torch

from benchmarks import _harness
from lddgan_kernels import ops
from lddgan_kernels.ops._norm_plan import (
    NormPlan,
    device_size,
    gpu_plans,
    moments_plan,
    plan_numbers,
)
from lddgan_kernels.ops.ada_group_norm import ada_group_norm_reference
from lddgan_kernels.testing import assert_error_rule
from tests.conftest import EMULATED_CUDA, HAS_GPU

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PLANS = {
    "on chip": NormPlan("onchip", 2, 1, 1),
    "cluster 2": NormPlan("onchip", 2, 2, 1),
    "cluster 8": NormPlan("onchip", 2, 8, 1),
    "split": NormPlan("split", 2, 3, 2),
}
GROUPS = 4


def native():
    """The operators: of the extension, or their emulation."""
    return torch.ops.lddgan if HAS_GPU else torch.ops.lddgan_emulated


def images(shape, dtype, layout, count=1):
    made = [torch.randn(shape, device=DEVICE).to(dtype) for _ in range(count)]
    return [x.to(memory_format=LAYOUTS[layout]) for x in made]


def norm(x, rows, plan, moments=None):
    """Output and gradients of ada_group_norm by the operators themselves."""
    scale, shift, bias = rows
    given = bias if moments is None else None
    numbers = plan_numbers((plan, PLANS["split"] if moments is not None else plan))
    out, statistics = native().ada_group_norm_forward(
        x, None, given, scale, shift, GROUPS, 1e-6, True, numbers, moments
    )
    grads = native().ada_group_norm_backward(
        x, x, None, given, scale, shift, statistics, GROUPS, True, numbers
    )
    return [out, *(g for g in grads if g.numel())]


def norm_by(dtype, x, rows, with_bias):
    """The same by the reference, in `dtype`."""
    scale, shift, bias = rows
    wanted = (x, bias, scale, shift) if with_bias else (x, scale, shift)
    leaves = [t.detach().to(dtype).requires_grad_() for t in wanted]
    out = ada_group_norm_reference(
        leaves[0], *leaves[-2:], GROUPS, bias=leaves[1] if with_bias else None
    )
    return [out, *torch.autograd.grad(out, leaves, x.to(dtype))]


def norm_forms(few):
    """(name, check) of the norm's kernels."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in LAYOUTS:
            # 16 and 9x8 allow packs of either dtype; 20 channels and 7x9 pixels do not.
            # The last fills a block's threads, whose packs are then copied past the registers.
            for packs, shape, plans in (
                ("packs", (2, 16, 8, 9), (*PLANS, "given moments")),
                ("scalar", (2, 20, 7, 9), (*PLANS, "given moments")),
                ("large", (1, 128, 16, 16), ("on chip",)),
            ):
                for plan in plans:
                    yield (
                        f"ada_group_norm {str(dtype)[6:]} {layout} {packs} {plan}",
                        lambda d=dtype, a=layout, s=shape, p=plan: check_norm(d, a, s, p),
                    )
    if not few:
        for layout in LAYOUTS:
            yield (
                f"ada_group_norm of 4096 channels a group, {layout}",
                lambda a=layout: check_norm(torch.float32, a, (1, 4 * 4096, 4, 4), "split"),
            )


def check_norm(dtype, layout, shape, plan):
    (x,) = images(shape, dtype, layout)
    rows = [torch.randn(shape[:2], device=DEVICE).to(dtype) for _ in range(3)]
    moments = None
    if plan == "given moments":
        x, moments = native().residual_scale_moments(x, x, None, None, 0.5, GROUPS, [2, 3])
        plan = "split"
    found = norm(x, rows, PLANS[plan], moments)
    with_bias = moments is None
    plain, exact = (norm_by(d, x, rows, with_bias) for d in (dtype, torch.float64))
    for results in zip(found, plain, exact, strict=True):
        assert_error_rule(*results, plan)


def other_forms():
    """(name, check) of the other kernels, through the public functions."""
    backend = "cuda" if HAS_GPU else "cpu"
    rows = torch.randn(2, 16, device=DEVICE)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=DEVICE) / 8
    calls = {
        "haar_dwt2d": lambda x, **k: ops.haar_dwt2d(x, **k),
        "haar_idwt2d": lambda x, **k: ops.haar_idwt2d(x, **k),
        "residual_scale": lambda x, **k: ops.residual_scale(x, x, bias=x[0, :, 0, 0], **k),
        "upsample2d": lambda x, **k: ops.upsample2d(x, **k),
        "downsample2d": lambda x, **k: ops.downsample2d(x, **k),
        "upfirdn2d": lambda x, **k: ops.upfirdn2d(x, taps, up=3, down=2, pad=(1, 2), **k),
        "norm_resample": lambda x, **k: ops.norm_resample(
            x, rows[:, : x.shape[1]].to(x.dtype), rows[:, : x.shape[1]].to(x.dtype), 4, "down", **k
        )[0],
    }
    for op, call in calls.items():
        for dtype in (torch.float32, torch.bfloat16):
            for layout in LAYOUTS:
                for packs, shape in (("packs", (2, 16, 8, 8)), ("scalar", (2, 12, 6, 10))):

                    def check(call=call, dtype=dtype, layout=layout, shape=shape):
                        (x,) = images(shape, dtype, layout)
                        found, plain = call(x, backend=backend), call(x, backend="reference")
                        exact = call(x.double(), backend="reference")
                        assert_error_rule(found, plain, exact, "it")

                    yield f"{op} {str(dtype)[6:]} {layout} {packs}", check


def forms(few):
    failed = ran = 0
    for name, check in (*norm_forms(few), *other_forms()):
        ran += 1
        torch.manual_seed(1)
        try:
            check()
            if HAS_GPU:
                torch.cuda.synchronize()
        except Exception as error:  # the next form is tried
            failed += 1
            print(f"FAIL {name}: {str(error).splitlines()[0]}", flush=True)
    print(f"{ran} forms, {failed} failed")
    return failed


def stress(seconds=30.0):
    """Launches of clusters of 2 and 8, forward and backward, beside products of large matrices."""
    failed = launches = 0
    torch.manual_seed(0)
    (x,) = images((8, 16, 16, 16), torch.bfloat16, "channels_last")
    rows = [torch.randn(8, 16, device=DEVICE).to(x.dtype) for _ in range(3)]
    plans = [PLANS["cluster 2"], PLANS["cluster 8"]]
    first = [norm(x, rows, plan) for plan in plans]
    busy = torch.cuda.Stream() if HAS_GPU else None
    a = torch.randn(4096 if HAS_GPU else 8, 4096 if HAS_GPU else 8, device=DEVICE)
    end = time.monotonic() + (seconds if HAS_GPU else 2)
    while time.monotonic() < end:
        if busy is not None:
            with torch.cuda.stream(busy):
                for _ in range(8):
                    a @ a
        for plan, wanted in zip(plans, first, strict=True):
            found = [norm(x, rows, plan) for _ in range(50 if HAS_GPU else 1)]
            launches += 2 * len(found)
            for results in found:
                failed += any(not torch.equal(u, v) for u, v in zip(results, wanted, strict=True))
    print(f"{launches} launches of clusters, {failed} differ")
    return failed


def times():
    if not HAS_GPU:
        print("times take a GPU")
        return 0
    bandwidth = _harness.copy_bandwidth()
    print(f"copy: {bandwidth / 1e12:.2f} TB/s")
    for n in (1, 16, 100, 256):
        for c, side in ((128, 16), (256, 16), (384, 16), (256, 8), (128, 64)):
            time_norms((n, c, side, side), bandwidth)
    return 0


def time_norms(shape, bandwidth, groups=32):
    """Prints how long the norm's kernels take at a shape, in bfloat16 and channels_last."""
    n, c, h, w = shape
    size = 2 * n * c * h * w

    def inputs():
        rows = (torch.randn(n, c, device=DEVICE) for _ in range(2))
        return (*images(shape, torch.bfloat16, "channels_last"), *rows)

    sets = [inputs() for _ in range(_harness._copies(2 * size))]
    plans = gpu_plans(sets[0][0], 0, groups, "cuda")
    numbers = plan_numbers(plans)
    cut = moments_plan((n, c // groups, groups, h * w), 2, True, device_size(DEVICE))
    op = native()

    def forward(x, scale, shift):
        return op.ada_group_norm_forward(
            x, None, None, scale, shift, groups, 1e-6, True, numbers, None
        )

    statistics = forward(*sets[0])[1]

    def backward(x, scale, shift):
        return op.ada_group_norm_backward(
            x, x, None, None, scale, shift, statistics, groups, True, numbers
        )

    def residual(x, scale, shift):
        return op.residual_scale_moments(x, x, None, None, 0.7, groups, [cut.groups, cut.parts])

    for call, tensors, plan in (
        (forward, 2, plans[0]),
        (backward, 3, plans[1]),
        (residual, 2, cut),
    ):
        repeats = max(len(sets), 50)
        replay = _harness.recorded_calls(call, sets, repeats)
        seconds = sorted(_harness._time(replay, True) / repeats for _ in range(7))[3]
        share = tensors * size / seconds / bandwidth
        print(
            f"{call.__name__:9s} {n:4d}x{c}x{h}x{w} {seconds * 1e6:8.1f} us {share:6.1%} of copy  "
            f"{plan.kind}, {plan.groups} groups, {plan.parts} parts",
            flush=True,
        )


def main(arguments):
    if not HAS_GPU and not EMULATED_CUDA:
        print("neither a GPU nor the emulated kernels are here")
        return 0
    kind = arguments[0]
    failed = (
        forms("--few" in arguments)
        if kind == "forms"
        else stress()
        if kind == "stress"
        else times()
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
