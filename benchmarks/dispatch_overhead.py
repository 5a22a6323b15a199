"""Host time of a public op call over its raw kernel, in microseconds, at tiny shapes.

The raw kernel is the operators of torch.ops.lddgan that the call makes, with the arguments it makes
them with, and nothing else. With gradients: forward and backward over the raw operators of both,
and, as `torch.autograd` costs what it costs, over a function that does nothing there. Asked for: at
most 8 forward and 15 with gradients.
"""

import time
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._harness import device, device_name, store
from lddgan_kernels import ops
from lddgan_kernels.diffusion import Schedule

ASKED = {"forward": 8.0, "gradients": 15.0}


def calls():
    """Op -> (function of tensors, the tensors; those of a floating dtype are differentiated)."""
    where = device()
    x, h, rows = (torch.randn(s, device=where) for s in ((2, 8, 4, 4), (2, 8, 4, 4), (2, 8)))
    t, seeds = torch.tensor([0, 1], device=where), torch.tensor([5, 6], device=where)
    schedule = Schedule(2).to(where)
    return {
        "ada_group_norm": (lambda x, a, b: ops.ada_group_norm(x, a, b, 4), (x, rows, rows.clone())),
        "bias_act": (lambda x, b: ops.bias_act(x, b, "silu"), (x, rows[0].clone())),
        "diffuse_pair": (lambda t: ops.diffuse_pair(x, t, schedule, seeds), (t,)),
        "haar_dwt2d": (ops.haar_dwt2d, (x,)),
        "minibatch_stddev": (ops.minibatch_stddev, (x,)),
        "nearest_code": (lambda z: ops.nearest_code(z, rows.T)[0], (x[:, :2].contiguous(),)),
        "pixel_norm": (ops.pixel_norm, (rows,)),
        "posterior_sample": (
            lambda x, h: ops.posterior_sample(x, h, t, schedule, seeds),
            (x, h),
        ),
        "residual_scale": (ops.residual_scale, (x, h)),
        "seeded_normal": (lambda seeds: ops.seeded_normal((2, 8), seeds, 0), (seeds,)),
        "upsample2d": (ops.upsample2d, (x,)),
    }


class _Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lddgan":
            plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
            self.calls.append(partial(func.overloadpacket, *plain, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _raw(fn):
    """A function that makes fn's calls of native operators and nothing else."""
    with _Record() as record:
        fn()

    def run():
        for call in record.calls:
            call()

    return run


def _excess(fn, base, repeats=200, rounds=25):
    """Microseconds that fn takes over base: median over rounds, the two alternating."""

    def once(f):
        begin = time.perf_counter()
        for _ in range(repeats):
            f()
        return (time.perf_counter() - begin) / repeats * 1e6

    once(fn), once(base)
    return sorted(once(fn) - once(base) for _ in range(rounds))[rounds // 2]


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def _with_gradients(fn, tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    grad = torch.randn_like(fn(*leaves))
    return lambda: torch.autograd.grad(fn(*leaves), leaves, grad)


def main(everything: bool = False) -> None:
    rows = []
    empty = _with_gradients(_Nothing.apply, (torch.randn(2, 8, device=device()),))
    engine = _excess(empty, lambda: None)
    print(f"dispatch_overhead on {device_name()}, microseconds, asked {ASKED}; engine {engine:.1f}")
    for name, (fn, tensors) in calls().items():
        call = partial(fn, *tensors)
        row = {"name": name, "forward": _excess(call, _raw(call))}
        if all(t.is_floating_point() for t in tensors):
            step = _with_gradients(fn, tensors)
            row["gradients_and_engine"] = _excess(step, _raw(step))
            row["gradients"] = row["gradients_and_engine"] - engine
        shown = "  ".join(
            f"{kind} {row[kind]:5.1f} {'met' if row[kind] <= asked else 'MISSED'}"
            for kind, asked in ASKED.items()
            if kind in row
        )
        if "gradients" in row:
            shown += f" ({row['gradients_and_engine']:.1f} with the engine)"
        print(f"  {name:18s} {shown}", flush=True)
        rows.append(row | {"engine": engine, "asked": ASKED})
    store("dispatch_overhead", rows)


if __name__ == "__main__":
    main()
