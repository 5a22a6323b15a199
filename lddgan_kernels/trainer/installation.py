"""What is installed here, and which backends run each op."""

import importlib
import pkgutil
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from lddgan_kernels import _backend, _extension, ops
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels._version import __version__
from lddgan_kernels.ops.packed_conv2d import MOST_FORMS


def versions() -> list[str]:
    """Of the package and what it runs on, and the devices."""
    lines = [f"lddgan_kernels {_installed()}", f"Python {platform.python_version()}"]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    lines.append(f"PyTorch {torch.__version__} ({cuda}), {torch.get_num_threads()} threads")
    if _backend.has_triton():
        try:
            lines.append(f"Triton {version('triton')}")
        except PackageNotFoundError:
            lines.append("Triton, of unknown version")
    lines += [
        f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ] or ["no GPU that PyTorch can use"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suits, why = multiplies_bfloat16(device)
    lines.append(f"precision auto means {'bfloat16' if suits else 'float32'} on {device}: {why}")
    return lines


def _installed() -> str:
    """The version, with what a wheel was compiled for."""
    try:
        found = version("lddgan_kernels")
    except PackageNotFoundError:
        return __version__
    return found if found.partition("+")[0] == __version__ else __version__


def extension_lines() -> list[str]:
    """What is compiled, or why nothing is."""
    if not _extension.is_loaded():
        return [f"extension: missing; {_extension.why_missing()}"]
    built = _extension.build_info()
    cuda = (
        f"CUDA {built['cuda']} for sm_{built['cuda_architectures'].replace(',', ', sm_')}"
        if built["cuda"]
        else "no CUDA kernels"
    )
    return [
        f"extension: compiled by {built['compiler']} against PyTorch {built['torch']}, {cuda}",
        f"CPU instruction set in use: {built['cpu_isa']}",
        f"convolution weights packed for CPU inference: at most {MOST_FORMS} copies of each",
    ]


def backends() -> list[str]:
    """Ops by backends, read off the folder; the reasons of what cannot run below it."""
    default = _backend.default_backend()
    lines = [f"{'op':20s}" + "".join(f"{name:>11s}" for name in _backend.BACKENDS)]
    reasons: dict[str, str] = {}
    for module in pkgutil.iter_modules(ops.__path__):
        if module.name.startswith("_"):
            continue
        kernels = importlib.import_module(f"lddgan_kernels.ops.{module.name}").KERNELS
        row = f"{module.name:20s}"
        for backend in _backend.BACKENDS:
            row += f"{_cell(module.name, backend, kernels, reasons):>11s}"
        lines.append(row)
    lines += ["", "yes: runs here; ref: runs, on the reference, as nothing faster is known"]
    lines += [f"no:  {backend} {reason}" for backend, reason in reasons.items()]
    if default is not None:
        lines.append(f"LDDGAN_BACKEND={default} is the default of every op")
    return lines


def _cell(op: str, backend: str, kernels: tuple[str, ...], reasons: dict[str, str]) -> str:
    if backend == "reference":
        return "yes"
    if backend not in kernels:
        return "ref" if backend == "cpu" else "-"
    gpu = backend != "cpu" and torch.cuda.is_available()
    reason = _backend.unavailable(
        op, backend, torch.empty(1, device="cuda" if gpu else "cpu"), kernels
    )
    if reason is None:
        return "yes"
    if backend in ("cuda", "triton") and not torch.cuda.is_available():
        reason = "needs a GPU that PyTorch can use"
        if torch.version.cuda is None and torch.version.hip is None:
            reason += f"; this PyTorch, {torch.__version__}, is built without CUDA"
    reasons.setdefault(backend, f"cannot run: {reason}")
    return "no"
