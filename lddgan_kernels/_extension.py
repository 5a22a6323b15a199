"""Loads the compiled extension once and remembers why it could not be loaded.

Importing `lddgan_kernels` never compiles anything and never needs the extension: without it every
op runs on its reference implementation, and `python -m lddgan_kernels.info` says why.
"""

import importlib
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
        return None, str(error)
    expected = _schemas.schema_stamp(Path(__file__).parents[1])
    if expected and module.build_info().get("schemas") != expected:
        return None, "it was built from other sources than these"
    return module, None


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
        "run `pip install -e .`"
    )
