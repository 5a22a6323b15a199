"""Without a GPU, tests of backend "cuda" run the CUDA kernels on an emulated runtime.

`tests/cuda_emulation` compiles csrc/cuda as plain C++; its module registers the same operators
for CPU tensors as `torch.ops.lddgan_emulated`, which stand in for `torch.ops.lddgan` meanwhile.
"""

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
