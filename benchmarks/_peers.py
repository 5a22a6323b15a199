"""What a user could run instead on a CPU: ONNX Runtime and OpenVINO (`pip install '.[peers]'`).

Networks are exported in float32 from the reference implementations, for inputs of fixed sizes;
OpenVINO computes in bfloat16 where that is asked for, ONNX Runtime has no such convolutions.
"""

import copy
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from lddgan_kernels import use_backend
from lddgan_kernels.testing import INSTRUCTION_SETS, relative_error, unit_roundoff

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")
# It asks the processor itself, so that no setting keeps it to an instruction set.
LIMITED = any(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == settings["ONEDNN_MAX_CPU_ISA"]
    for settings in INSTRUCTION_SETS.values()
)
ONNXRUNTIME = "onnxruntime, all instructions" if LIMITED else "onnxruntime"


def sides(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Callable[..., Tensor]]:
    """name -> the module's call on inputs of the same sizes and dtypes.

    Empty where a package is missing or the inputs are on a GPU.

    Raises:
        AssertionError: an output differs from the module's by more than rounding.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if inputs[0].is_cuda:
        return {}
    if missing:
        print(f"    without ONNX Runtime and OpenVINO: {', '.join(missing)} not installed")
        return {}
    dtype = inputs[0].dtype
    model = _export(copy.deepcopy(module).float(), tuple(map(_wide, inputs)))
    found = {"openvino": _openvino(model, dtype)}
    if dtype == torch.float32:
        found[ONNXRUNTIME] = _onnxruntime(model)
    with use_backend("reference"), torch.no_grad():
        exact = copy.deepcopy(module).double()(*(_wide(x, torch.float64) for x in inputs))
        plain = relative_error(module(*inputs), exact)
    for name, call in found.items():
        error, allowed = relative_error(call(*inputs), exact), 4 * plain + unit_roundoff(dtype)
        assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.2e}"
    return found


def comparable(sides: Iterable[str]) -> tuple[str, ...]:
    """Those to be ahead of: all but ours and what ignores the limits."""
    ignores = {ONNXRUNTIME} if LIMITED else set()
    return tuple(name for name in sides if name not in {"ours", *ignores})


def _wide(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return x.to(dtype).contiguous() if x.is_floating_point() else x


def _export(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with use_backend("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    stored = io.BytesIO()
    program.save(stored)
    return stored.getvalue()


def _onnxruntime(model: bytes) -> Callable[..., Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        arrays = (_wide(x).numpy() for x in inputs)
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return call


def _openvino(model: bytes, dtype: torch.dtype) -> Callable[..., Tensor]:
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", options)
    request = compiled.create_infer_request()

    def call(*inputs: Tensor) -> Tensor:
        arrays = {i: _wide(x).numpy() for i, x in enumerate(inputs)}
        out = np.array(request.infer(arrays, share_inputs=True)[0])
        return torch.from_numpy(out).to(dtype)

    return call
