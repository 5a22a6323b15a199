"""The op benchmarks' cases under pytest-benchmark: `pytest benchmarks --benchmark-enable`.

Select with -k, such as -k "haar and ours". On the CPU set GLIBC_TUNABLES as `_harness.py` does.
"""

import importlib
import pkgutil

import pytest
import torch

from lddgan_kernels import ops


def _sides():
    for module in pkgutil.iter_modules(ops.__path__):
        if module.name[0] != "_":
            for case in importlib.import_module(f"benchmarks.{module.name}").cases():
                for side in case.sides:
                    yield pytest.param(case, side, id=f"{module.name} {case.name} {side}")


@pytest.mark.parametrize(("case", "side"), list(_sides()))
def test_op(benchmark, case, side):
    inputs = case.inputs()
    fn = case.sides[side]

    def run():
        fn(*inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    case.check()
    benchmark.group = case.name
    benchmark(run)
