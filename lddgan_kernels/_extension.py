"""Loads the compiled extension once and remembers why it could not be loaded.

Importing `lddgan_kernels` never compiles anything and never needs the extension: without it every
op runs on its reference implementation, and `python -m lddgan_kernels.info` says why.
"""

import importlib
import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from lddgan_kernels import _schemas


def _load() -> tuple[ModuleType | None, str | None]:
    """The extension, or None and why not."""
    try:
        # Registers the `torch.ops.lddgan.*` operators as a side effect.
        module = importlib.import_module("lddgan_kernels._C")
    except ImportError as error:
        return None, _other_torch(_installed_for()) or str(error)
    other = _other_torch(module.build_info().get("torch"))
    if other is not None:
        return None, other
    expected = _schemas.schema_stamp(Path(__file__).parents[1])
    if expected and module.build_info().get("schemas") != expected:
        return None, "it was built from other sources than these"
    return module, None


def _installed_for() -> str | None:
    """The PyTorch of the installed wheel: 2.13 where its version is 0.1.0+torch2.13.cpu."""
    try:
        local = version("lddgan_kernels").partition("+torch")[2]
    except PackageNotFoundError:
        return None
    return ".".join(local.split(".")[:2]) if local else None


def _other_torch(compiled: str | None) -> str | None:
    """What is wrong where the extension was compiled for another PyTorch; None: it was not."""
    if compiled is None or compiled.split(".")[:2] == torch.__version__.split(".")[:2]:
        return None
    release = ".".join(compiled.split(".")[:2])
    return f"it was compiled for PyTorch {release}: install that, or a wheel for this one"


_C, _error = _load()
# Read once: a plain constant to torch.compile.
_built: dict[str, str] = {} if _C is None else dict(_C.build_info())


def module() -> ModuleType | None:
    """The compiled extension `_C`, where it is loaded."""
    return _C


def is_loaded() -> bool:
    """Whether the compiled extension `_C` is loaded."""
    return _C is not None


def has_cuda_kernels() -> bool:
    """Whether the loaded extension was compiled with its CUDA kernels."""
    return bool(_built.get("cuda"))


def build_info() -> dict[str, str]:
    """What the extension was built with: compiler, torch version, CUDA version, architectures."""
    return dict(_built)


def cuda_architectures() -> tuple[int, ...]:
    """What the CUDA kernels were compiled for: (75, 80, 90)."""
    names = _built.get("cuda_architectures", "").split(",")
    numbers = (int(name.rstrip("af")) for name in names if name)  # "90a" is 90 and more
    return tuple(sorted(numbers)) if has_cuda_kernels() else ()


def cuda_code_for(capability: int) -> int:
    """The architecture whose code a GPU of such a compute capability (90) runs; 0: none.

    It may be an older one: code compiled for sm_80 runs on sm_90, without what is new there.
    """
    return max([0, *(a for a in cuda_architectures() if a <= capability)])


def why_missing() -> str | None:
    """One sentence saying why the extension is not loaded and what to do; None when it is."""
    if _C is not None:
        return None
    if _error is not None and "No module named 'lddgan_kernels._C'" not in _error:
        return (
            f"the compiled extension does not fit this checkout and PyTorch {torch.__version__} "
            f"({_error}); run `pip install -e . --no-build-isolation` again"
        )
    return (
        "the extension is not compiled; with PyTorch and a C++ compiler present, "
        "run `pip install -e .` (of a wheel: install one for your PyTorch)"
    )


# Pip shows nothing of what a build says, so whoever lacks the kernels is told here, once.
if _C is None and os.environ.get("LDDGAN_BUILD") != "none":
    warnings.warn(
        f"lddgan_kernels runs on its reference implementations on CPUs: {why_missing()}; "
        "LDDGAN_BUILD=none in the environment leaves this warning out",
        RuntimeWarning,
        stacklevel=2,
    )
