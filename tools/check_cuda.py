"""`make check-cuda`: compiles, links and loads the CUDA extension, on a machine without a GPU too.

Makes a virtual environment with a CUDA build of PyTorch (CHECK_CUDA_TORCH, default 2.14.1; several
GB) in CHECK_CUDA_VENV (default build/check-cuda, kept and used again), compiles for sm_80 and
sm_90, loads `_C` there and asserts that it was built as asked and that every operator is registered
for each device that its op has kernels for. nvcc must be present.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = Path(os.environ.get("CHECK_CUDA_VENV", ROOT / "build" / "check-cuda"))
TORCH = os.environ.get("CHECK_CUDA_TORCH", "2.14.1")

# Runs inside the environment, from the repository's root.
CHECK = """
import importlib, pkgutil, re
from pathlib import Path
import torch
from lddgan_kernels import _extension, ops

assert _extension.is_loaded(), _extension.why_missing()
built = _extension.build_info()
print(built)
assert built["cuda"], "built without CUDA kernels"
assert built["torch"].split("+")[0] == torch.__version__.split("+")[0], built
assert {"80", "90"} <= set(built["cuda_architectures"].split(",")), built
defined = {}
for source in sorted(Path("python").glob("*.cpp")):
    for name in re.findall(r'm\\.def\\(\\s*"(\\w+)\\(', source.read_text()):
        defined[name] = source.stem
assert defined
registered = torch._C._dispatch_has_kernel_for_dispatch_key
lacking = []
for name, stem in defined.items():
    kernels = importlib.import_module(f"lddgan_kernels.ops.{stem}").KERNELS
    for backend in ("cpu", "cuda"):
        if backend in kernels and not registered(f"lddgan::{name}", backend.upper()):
            lacking.append(f"{name} on {backend}")
assert not lacking, f"not registered: {', '.join(lacking)}"
print(f"{len(defined)} operators, each registered for its devices")
"""


def run(*command, **environment):
    print("+", *command[:4], flush=True)
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)


def main():
    python = str(VENV / "bin" / "python")
    if not Path(python).exists():
        run(sys.executable, "-m", "venv", str(VENV))
    run(python, "-m", "pip", "install", "--quiet", f"torch=={TORCH}", "numpy", "setuptools>=77")
    run(python, "-m", "pip", "install", "--quiet", "cmake>=3.24", "ninja", "pybind11>=2.13")
    build = {"LDDGAN_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "8.0;9.0"}
    # Beside the working tree's own extension, which stays as it is.
    library = ROOT / "build" / "check-cuda-library"
    run(python, "setup.py", "--quiet", "build", "--build-lib", str(library), **build)
    run(python, "-P", "-c", CHECK, PYTHONPATH=str(library))


if __name__ == "__main__":
    main()
