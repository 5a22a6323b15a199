"""Every operator on every backend once, in order, each operator in a process of its own.

`python .ci/gpu/smoke.py` prints a line for each call: ok, or FAIL and why. With an operator's
number it runs that one; a GPU that stops at an illegal access ends no other operator's process.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from lddgan_kernels import _backend, ops
from lddgan_kernels.ops import residual_scale_moments
from lddgan_kernels.testing import assert_error_rule
from tests.ops import cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
for name in ("SCHEDULE", "T", "SEEDS", "TAPS"):  # what the calls of tests/ops/cases.py look up
    setattr(cases, name, getattr(cases, name).to(DEVICE))


def _noise(**k):
    return ops.seeded_normal((2, 4, 6, 8), cases.SEEDS, 1, **k)


def _pair(x, **k):
    return torch.cat(ops.diffuse_pair(x, cases.T, cases.SCHEDULE, cases.SEEDS, **k))


def _sum(x, h, **k):
    return residual_scale_moments(x, h, 4, **k)[0]


IMAGE = (2, 8, 6, 4)
# (operator, module of ops/, call, shapes, whether it has a gradient)
CALLS = [(c.op, c.module, c.call, c.shapes, True) for c in cases.CASES]
CALLS += [
    ("seeded_normal", "seeded_normal", _noise, (), False),
    ("diffuse_pair", "diffuse_pair", _pair, (IMAGE,), False),
    ("residual_scale_moments", "residual_scale", _sum, (IMAGE, IMAGE), True),
]


def _run(call, inputs, gradient, backend):
    leaves = [x.detach().requires_grad_(gradient) for x in inputs]
    out = call(*leaves, backend=backend)
    if not gradient:
        return [out]
    # No sum of squares: that of a normalised tensor hardly depends on it.
    weights = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, weights, allow_unused=True)]


def one(number):
    """Prints a line for each backend and dtype of one operator."""
    op, module, call, shapes, gradient = CALLS[number]
    kernels = sys.modules[f"lddgan_kernels.ops.{module}"].KERNELS
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        inputs = [torch.randn(shape).to(dtype).to(DEVICE) for shape in shapes]
        inputs = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
        for backend in ("reference", *kernels):
            x = inputs[0] if inputs else torch.empty(1, device=DEVICE)
            why = _backend.unavailable(op, backend, x, kernels)
            name = f"{op:24s} {backend:10s} {str(dtype)[6:]:9s}"
            if why is not None:
                print(f"--   {name} {why}", flush=True)
                continue
            try:
                found = _run(call, inputs, gradient, backend)
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()
                plain = _run(call, inputs, gradient, "reference")
                wide = [x.double() for x in inputs] if gradient else inputs
                exact = _run(call, wide, gradient, "reference")
                for results in zip(found, plain, exact, strict=True):
                    if not gradient:  # noise: backends agree within 2e-6
                        tolerance = max(2e-6, torch.finfo(results[0].dtype).eps)
                        assert torch.allclose(*results[:2], rtol=tolerance, atol=tolerance)
                    elif results[0] is not None:
                        assert_error_rule(*results, op)
                print(f"ok   {name}", flush=True)
            except Exception as error:  # whatever it is, the next one is tried
                reason = str(error).strip().splitlines() or [type(error).__name__]
                print(f"FAIL {name} {reason[0]}", flush=True)


def main():
    def child(number):
        command = [sys.executable, __file__, str(number)]
        result = subprocess.run(command, capture_output=True, text=True)
        out = result.stdout
        if result.returncode:
            last = result.stderr.strip().splitlines()[-1:]
            out += f"FAIL {CALLS[number][0]:24s} ended with {result.returncode}: {last}\n"
        return out

    with ThreadPoolExecutor(max((os.cpu_count() or 2) - 2, 2)) as pool:
        found = list(pool.map(child, range(len(CALLS))))
    print("".join(found), end="")
    lines = [line for out in found for line in out.splitlines()]
    failed = sum(line.startswith("FAIL") for line in lines)
    ran = sum(line.startswith("ok") for line in lines)
    print(f"{ran} ok, {failed} failed, {len(lines) - ran - failed} not here")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:]:
        one(int(sys.argv[1]))
        # PyTorch's autograd thread may let go of a Python object once the interpreter is gone, and
        # is then terminated: seen in 1 of 10 processes that end right after a backward pass.
        sys.stdout.flush()
        os._exit(0)
    else:
        sys.exit(main())
