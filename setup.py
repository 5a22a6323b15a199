"""Compiles the extension with CMake and ninja against the PyTorch that is already installed.

LDDGAN_BUILD=cuda|cpu|none chooses what to compile; unset, CUDA kernels are compiled where PyTorch
is a CUDA build and nvcc is present (no GPU is needed), CPU kernels otherwise. TORCH_CUDA_ARCH_LIST
(such as "8.0;9.0") names the GPU architectures. Without PyTorch or a compiler the package installs
without the extension, as py3-none-any, and runs on its reference implementations; a build asked for
by name fails. A wheel with the extension says in its version what it was compiled for:
0.1.0+torch2.13.cpu. LDDGAN_SANITIZE=address,undefined compiles with these sanitizers, which watch
the kernels of LDDGAN_SANITIZE_ISA (tests/sanitized.py).
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# Run with -I: an isolated build's own environment is on PYTHONPATH, the user's PyTorch is not.
# The version's own file is read first: importing PyTorch takes seconds.
PROBE_VERSION = """
import importlib.util, json, pathlib, runpy
origin = importlib.util.find_spec("torch").origin
found = runpy.run_path(str(pathlib.Path(origin).with_name("version.py")))
print(json.dumps({"version": str(found["__version__"]), "cuda": found["cuda"] or ""}))
"""
PROBE_PATHS = """
import json, torch
from torch.utils.cpp_extension import include_paths, library_paths
include = include_paths("cuda") if torch.version.cuda else include_paths()
print(json.dumps({"include": include, "library": library_paths()[0]}))
"""


def probe(code):
    """What the code prints of the installed PyTorch, or None where there is none."""
    found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else None


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc") or next(
        (path for path in ("/usr/local/cuda/bin/nvcc",) if Path(path).exists()), None
    )


def find_cuda_major(nvcc):
    """The major version of CUDA that an nvcc belongs to: "13"."""
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    return re.search(r"release (\d+)\.", result.stdout)[1]


def find_cmake():
    """cmake and ninja: the pip packages beside Python where present, else those of PATH, where an
    isolated build has its own; a system's cmake may be too old for its nvcc."""
    found = {}
    for tool in ("cmake", "ninja"):
        beside = Path(sys.executable).parent / tool
        found[tool] = str(beside) if beside.exists() else shutil.which(tool)
    return found["cmake"], found["ninja"]


def find_schema_stamp():
    """From the package's own file, without importing the package (which imports PyTorch)."""
    path = ROOT / "lddgan_kernels" / "_schemas.py"
    spec = importlib.util.spec_from_file_location("_schemas", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.schema_stamp(ROOT)


def find_pybind11():
    import pybind11

    return pybind11.get_cmake_dir()


class Plan(NamedTuple):
    """What is compiled: for which PyTorch (its version and CUDA version), by which tools.

    `nvcc` is None for CPU kernels alone; `missing` says why nothing can be compiled.
    """

    torch: dict | None
    nvcc: str | None
    cmake: str | None
    ninja: str | None
    missing: str | None

    @property
    def local_version(self):
        """torch2.13.cpu"""
        release = re.match(r"\d+\.\d+", self.torch["version"])[0]
        cuda = "cu" + self.torch["cuda"].replace(".", "") if self.nvcc else "cpu"
        return f"torch{release}.{cuda}"


def make_plan(wanted):
    """What to compile where LDDGAN_BUILD is `wanted`."""
    if wanted not in ("", "cuda", "cpu", "none"):
        raise SystemExit(f"LDDGAN_BUILD must be cuda, cpu or none, got {wanted!r}")
    torch = probe(PROBE_VERSION)
    nvcc = find_nvcc()
    cmake, ninja = find_cmake()
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    missing = None
    if torch is None:
        missing = "PyTorch is not installed: install it first, then run pip install again"
    elif compiler is None:
        missing = "no C++ compiler was found: install one (such as g++) or set CXX"
    elif cmake is None or ninja is None:
        missing = "CMake or ninja was not found: run pip install cmake ninja"
    elif wanted == "cuda" and not torch["cuda"]:
        missing = f"LDDGAN_BUILD=cuda needs a CUDA build of PyTorch, found {torch['version']}"
    elif wanted == "cuda" and nvcc is None:
        missing = "LDDGAN_BUILD=cuda needs nvcc: install the CUDA toolkit or set CUDA_HOME"
    elif wanted != "cpu" and torch["cuda"] and nvcc is not None:
        # The extension uses the CUDA runtime that PyTorch has loaded.
        major = find_cuda_major(nvcc)
        if major != torch["cuda"].split(".")[0]:
            missing = f"PyTorch is built with CUDA {torch['cuda']}, nvcc is of CUDA {major}"
    with_cuda = wanted == "cuda" or (wanted == "" and torch and torch["cuda"])
    return Plan(torch, nvcc if with_cuda else None, cmake, ninja, missing)


def tell(sentence):
    """To the person, on the terminal if any: pip shows nothing that a build prints."""
    print(sentence, file=sys.stderr)
    try:
        with open("/dev/tty", "w") as terminal:
            terminal.write(f"\n{sentence}\n")
    except OSError:
        pass


class CMakeBuild(build_ext):
    def run(self):
        if PLAN.missing:
            raise SystemExit(f"{CANNOT} {PLAN.missing}.")
        paths = probe(PROBE_PATHS)
        if paths is None:
            raise SystemExit(f"{CANNOT} PyTorch {PLAN.torch['version']} cannot be imported.")
        self.compile(PLAN.torch | paths, PLAN.nvcc, PLAN.cmake, PLAN.ninja)

    def compile(self, torch, nvcc, cmake, ninja):
        # One build folder a PyTorch and Python version, so that rebuilding is incremental.
        tag = f"{torch['version']}-py{sys.version_info.major}{sys.version_info.minor}"
        sanitize = os.environ.get("LDDGAN_SANITIZE", "")
        build = ROOT / "build" / f"{tag}{'-cuda' if nvcc else ''}{'-sanitized' if sanitize else ''}"
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-DTORCH_INCLUDE_DIRS={';'.join(torch['include'])}",
            f"-DTORCH_LIBRARY_DIR={torch['library']}",
            f"-DTORCH_VERSION={torch['version']}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={find_pybind11()}",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DLDDGAN_SCHEMAS={find_schema_stamp()}",
            f"-DLDDGAN_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DLDDGAN_EMULATE_CUDA={os.environ.get('LDDGAN_EMULATE_CUDA', 'OFF')}",
            f"-DLDDGAN_SANITIZE={sanitize}",
            f"-DLDDGAN_SANITIZE_ISA={os.environ.get('LDDGAN_SANITIZE_ISA', 'baseline')}",
        ]
        if nvcc:
            arguments.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0").replace(" ", ";")
            numbers = [a.split("+")[0].replace(".", "") for a in architectures.split(";") if a]
            arguments.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(numbers)}")
        subprocess.run(
            [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *arguments], check=True
        )
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(
            [cmake, "--build", str(build), *(["--parallel", jobs] if jobs else [])], check=True
        )
        built = next(iter(sorted(build.glob("_C*.so"))))
        target = Path(self.get_ext_fullpath(self.extensions[0].name))
        if self.inplace:
            target = ROOT / "lddgan_kernels" / built.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced by rename: a running process keeps the old file mapped.
        temporary = target.with_name(target.name + ".tmp")
        shutil.copy2(built, temporary)
        temporary.replace(target.with_name(built.name))


CANNOT = "lddgan_kernels: the extension cannot be compiled:"
WANTED = os.environ.get("LDDGAN_BUILD", "")
PLAN = make_plan(WANTED)
VERSION = (ROOT / "lddgan_kernels" / "_version.py").read_text().split('"')[1]
# An extension asked for by name is tried, and then fails.
COMPILES = WANTED in ("cpu", "cuda") or (WANTED == "" and PLAN.missing is None)
if WANTED == "" and PLAN.missing and {"bdist_wheel", "editable_wheel"} & set(sys.argv):
    tell(f"{CANNOT} {PLAN.missing}. Installing without it; every op runs on its reference.")

setup(
    # Sources are for every PyTorch.
    version=VERSION
    if "sdist" in sys.argv or not COMPILES or PLAN.missing
    else f"{VERSION}+{PLAN.local_version}",
    ext_modules=[Extension("lddgan_kernels._C", sources=[])] if COMPILES else [],
    cmdclass={"build_ext": CMakeBuild},
)
