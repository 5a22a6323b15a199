"""Which backend runs an op: `reference`, `cpu`, `triton` or `cuda`.

Automatic choice happens only where the caller named no backend; a named backend that cannot run
raises and says why.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lddgan_kernels import _extension

BACKENDS = ("reference", "cpu", "triton", "cuda")
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check_name(backend: str | None, source: str) -> str | None:
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


# Process-wide, like torch's own default dtype: torch.compile guards on a plain global.
_default: str | None = _check_name(os.environ.get("LDDGAN_BACKEND") or None, "LDDGAN_BACKEND")


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Sets the default backend of every op inside the `with` block, for the whole process.

    Args:
        backend: "reference", "cpu", "triton" or "cuda"; None restores the automatic choice.
    """
    global _default
    previous = _default
    _default = _check_name(backend, "use_backend: backend")
    try:
        yield
    finally:
        _default = previous


def default_backend() -> str | None:
    """The backend set by `use_backend` or `LDDGAN_BACKEND`; None: the fastest that can run."""
    return _default


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def triton_interpreted() -> bool:
    """Whether Triton runs in its interpreter, which accepts CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def transformed() -> bool:
    """Whether forward-mode derivatives or transforms of torch.func are at work.

    They pass through PyTorch's operators alone; a kernel would drop a tangent without a word.
    """
    return forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None


def unavailable(op: str, backend: str, x: Tensor, kernels: tuple[str, ...]) -> str | None:
    """Why `backend` cannot run `op` on tensors like `x`, in a few words; None when it can.

    Args:
        op: the op's name.
        backend: one of BACKENDS.
        x: the op's main input; its device and dtype decide.
        kernels: the native backends that have a kernel for this op.
    """
    if backend == "reference":
        return None
    if backend == "cpu":
        if x.device.type != "cpu":
            return f"the tensors are on {x.device}, not on the CPU"
        if backend not in kernels:
            return None  # nothing faster than the reference is known, so `cpu` runs it
    elif backend not in kernels:
        return f"{op} has no {backend} kernel"
    if transformed():
        return "forward-mode derivatives and transforms of torch.func run on the reference only"
    if backend == "cpu":
        if not _extension.is_loaded():
            return _extension.why_missing()
    elif backend == "triton":
        if not has_triton():
            return "Triton is not installed"
        if x.device.type != "cuda" and not triton_interpreted():
            return f"Triton needs CUDA tensors, these are on {x.device}"
    else:
        if x.device.type != "cuda":
            return f"the tensors are on {x.device}, not on a CUDA device"
        if not _extension.is_loaded():
            return _extension.why_missing()
        if not _extension.has_cuda_kernels():
            return "the extension was compiled without CUDA kernels"
        properties = torch.cuda.get_device_properties(x.device)
        if not _extension.cuda_code_for(10 * properties.major + properties.minor):
            compiled = ", sm_".join(map(str, _extension.cuda_architectures()))
            here = f"{properties.name} is sm_{properties.major}{properties.minor}"
            return f"the extension was compiled for sm_{compiled} and newer, and {here}"
    if x.dtype not in NATIVE_DTYPES:
        return f"dtype {x.dtype} runs on the reference only"
    return None


def direct_calls(backend: str | None) -> ModuleType | None:
    """The extension's functions for plain CPU tensors; None where they must not be tried.

    Each returns None for arguments that do not fit as they are (see python/direct.cpp); the long
    way through checks and `select` then serves them.
    """
    if backend is not None or _default is not None or torch.compiler.is_compiling():
        return None
    if transformed():
        return None
    return _extension.module()


def select(op: str, x: Tensor, requested: str | None, kernels: tuple[str, ...]) -> str:
    """The backend that runs `op` on tensors like `x`.

    Args:
        op: the op's name, for errors.
        x: the op's main input; its device and dtype decide.
        requested: the caller's `backend=` argument.
        kernels: the native backends with a kernel for this op, fastest first.

    Returns:
        "reference", or one of `kernels`. (`cpu` without a CPU kernel returns "reference".)

    Raises:
        ValueError: `requested` is no backend name.
        RuntimeError: a backend was named, here or by `use_backend`, that cannot run.
    """
    named = _default if requested is None else _check_name(requested, f"{op}: backend")
    if named is None:
        if x.is_cpu:  # Triton's interpreter must be named
            native = "cpu" in kernels and x.dtype in NATIVE_DTYPES and _extension.is_loaded()
            return "cpu" if native and not transformed() else "reference"
        for backend in kernels:
            if unavailable(op, backend, x, kernels) is None:
                return backend
        return "reference"
    reason = unavailable(op, named, x, kernels)
    if reason is not None:
        raise RuntimeError(
            f"{op}: backend {named!r} unavailable: {reason}; run python -m lddgan_kernels.info"
        )
    return named if named in kernels else "reference"
