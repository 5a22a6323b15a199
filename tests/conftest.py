"""Fixtures shared by all tests: devices, backends, NaN-filled memory."""

import os
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # Workers share the cores; tests that need threads set their number.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Before anything imports Triton: its kernels are decorated according to this variable.
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402

from lddgan_kernels import _backend, _extension  # noqa: E402


def shared_path(name: str) -> Path:
    """A file of the optional test material: in `LDDGAN_SHARED`, else in `../shared`; else skips."""
    root = Path(os.environ.get("LDDGAN_SHARED") or Path(__file__).parents[2] / "shared")
    path = root / name
    if not path.exists():
        pytest.skip(f"test material {name} is not here")
    return path


def emulated_cuda_path() -> Path | None:
    """The CUDA kernels compiled for the CPU, where no GPU is present and they were built."""
    found = sorted((Path(__file__).parents[1] / "build").glob("*/emulated_cuda.so"))
    matching = [path for path in found if path.parent.name.startswith(f"{torch.__version__}-py")]
    return matching[0] if matching and not HAS_GPU and _extension.is_loaded() else None


# Where torch.ops.lddgan has kernels: the devices of opcheck tests.
NATIVE_DEVICES = ["cpu"] * _extension.is_loaded() + [
    "cuda"
] * _extension.has_cuda_kernels() * HAS_GPU
EMULATED_CUDA = emulated_cuda_path() is not None
if EMULATED_CUDA:
    torch.ops.load_library(emulated_cuda_path())


def backends_of(op_module) -> list[str]:
    """The backends of an op that can be tested here: `reference` and each kernel that can run."""
    x = torch.empty(1, device="cuda" if HAS_GPU else "cpu")
    cpu = torch.empty(1)
    name = op_module.__name__.rsplit(".", 1)[-1]
    kernels = op_module.KERNELS
    found = ["reference"]
    for backend in kernels:
        probe = cpu if backend == "cpu" else x
        if _backend.unavailable(name, backend, probe, kernels) is None:
            found.append(backend)
    if EMULATED_CUDA and "cuda" in kernels:
        found.append("cuda")
    return found


def device_of(backend: str) -> str:
    """Where a backend's tensors live in these tests."""
    return "cuda" if HAS_GPU and backend in ("cuda", "triton") else "cpu"


def depends_on_instruction_set(item) -> bool:
    """Whether other processors may give another result: the CPU's kernels, models, a GAN step."""
    if "slow" in item.keywords or "compile" in item.name:
        return False
    callspec = getattr(item, "callspec", None)
    backend = callspec.params.get("backend") if callspec else None
    folder = item.path.parent.name
    if folder == "ops":
        return backend == "cpu" or item.path.stem in ("test_packed_conv2d", "test_properties")
    if folder in ("nn", "models"):
        return backend in (None, "cpu")
    return item.originalname == "test_options_of_a_step"


def pytest_collection_modifyitems(items):
    for item in items:
        if depends_on_instruction_set(item):
            item.add_marker(pytest.mark.instruction_sets)
        if "gpu" in item.keywords and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison():
    """Fills what torch.empty* returns with NaN, so that an unwritten output is seen.

    (PyTorch does so itself in deterministic mode; the C++ kernels' at::empty included.)
    """
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill
