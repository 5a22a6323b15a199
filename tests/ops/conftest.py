"""Without a GPU, tests of backend "cuda" run the CUDA kernels on an emulated runtime.

`tests/cuda_emulation` compiles csrc/cuda as plain C++; its module registers the same operators
for CPU tensors as `torch.ops.lddgan_emulated`, which stand in for `torch.ops.lddgan` meanwhile.

Triton's interpreter truncates where a GPU rounds float32 to bfloat16, and multiplies matrices of
bfloat16 by their bits; here it rounds as well, and multiplies their values.
"""

import numpy
import pytest
import torch

from lddgan_kernels import _backend
from tests.conftest import HAS_GPU


@pytest.fixture(autouse=True)
def _emulated_cuda(request, monkeypatch):
    callspec = getattr(request.node, "callspec", None)
    if HAS_GPU or callspec is None or callspec.params.get("backend") != "cuda":
        return
    monkeypatch.setattr(torch.ops, "lddgan", torch.ops.lddgan_emulated)
    unavailable = _backend.unavailable

    def without_gpu(op, backend, x, kernels):
        # What remains of the check is the dtype's: ask for the CPU, which these tensors are on.
        return unavailable(op, "cpu" if backend == "cuda" else backend, x, (*kernels, "cpu"))

    monkeypatch.setattr(_backend, "unavailable", without_gpu)


@pytest.fixture(autouse=True)
def _rounding_interpreter(request, monkeypatch):
    callspec = getattr(request.node, "callspec", None)
    if HAS_GPU or callspec is None or callspec.params.get("backend") != "triton":
        return
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(values, from_type, to_type, rounding_mode):
        if (from_type.name, to_type.name) != ("fp32", "bf16"):
            return convert(values, from_type, to_type, rounding_mode)
        rounded = torch.from_numpy(numpy.array(values, numpy.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(numpy.uint16)

    multiply = interpreter.InterpreterBuilder.create_dot

    def values_of(operand):
        if operand.dtype.name != "bf16":
            return operand
        wide = (operand.data.astype(numpy.uint32) << 16).view(numpy.float32)
        return interpreter.TensorHandle(wide, interpreter.tl.float32)

    def multiply_values(self, a, b, *options):
        return multiply(self, values_of(a), values_of(b), *options)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply_values)
