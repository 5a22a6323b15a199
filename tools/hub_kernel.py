"""`python -m tools.hub_kernel FOLDER [--build]`: the ops as a project for the kernel hub.

FOLDER becomes what Hugging Face's kernel-builder takes: `build.toml`, `flake.nix`, the sources, and
`torch-ext/` with the package, whose imports are relative as the hub demands. `--build` compiles it
here too, for this PyTorch and x86-64, as build.toml says, into `build/VARIANT`, which
`kernels.get_local_kernel(FOLDER)` loads.
"""

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tomli_w

ROOT = Path(__file__).parents[1]
NAME = "lddgan_kernels"
# csrc/cpu is compiled for each, as in CMakeLists.txt; their options are in build.toml.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512bf16")
WITH_PYTHON = ("module.cpp", "direct.cpp", "replay.cpp")  # bindings to Python alone
MODULES = ("_backend.py", "_bfloat16.py", "_checks.py", "ops/*.py", "triton/*.py")

REGISTRATION = """\
#pragma once
#include <Python.h>
#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define INIT_(name) PyInit_##name
#define INIT(name) INIT_(name)
#define REGISTER_EXTENSION(name)                                                              \\
  PyMODINIT_FUNC INIT(name)() {                                                               \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, STRINGIFY(name), nullptr, 0, nullptr}; \\
    return PyModule_Create(&module);                                                          \\
  }
"""
OPS = """\
import torch

from . import {id}

ops = torch.ops.{id}


def add_op_namespace_prefix(name):
    return "{id}::" + name
"""


def make_project(out: Path) -> None:
    """Writes the project of kernel-builder into a new or empty folder."""
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"hub_kernel: folder must be new or empty, got {out}")
    shutil.copytree(ROOT / "hub", out, dirs_exist_ok=True)
    package = out / "torch-ext" / NAME
    for pattern in MODULES:
        for source in sorted((ROOT / NAME).glob(pattern)):
            target = package / source.relative_to(ROOT / NAME)
            target.parent.mkdir(exist_ok=True)
            target.write_text(relative(source.read_text(), len(target.relative_to(package).parts)))
    sources = shutil.ignore_patterns("*.cpp")  # of csrc/cpu
    shutil.copytree(ROOT / "csrc", out / "csrc", ignore=sources)
    for folder in ("python", "cpu"):
        (out / folder).mkdir()
    for source in sorted((ROOT / "csrc/cpu").glob("*.cpp")):
        for isa in INSTRUCTION_SETS:
            text = f"#define LDDGAN_X86\n#define LDDGAN_ISA {isa}\n{source.read_text()}"
            (out / "cpu" / f"{isa}_{source.name}").write_text(text)
    included = []
    for source in sorted((ROOT / "python").iterdir()):
        if source.suffix == ".h":
            shutil.copy(source, out / "python")
        elif source.name not in WITH_PYTHON:  # as headers, so that all is one translation unit
            shutil.copy(source, out / "python" / f"{source.name}.h")
            included.append(f'#include "{source.name}.h"\n')
    (out / "python" / "all.h").write_text("".join(included))
    config = tomllib.loads((out / "build.toml").read_text())
    for section in (config["torch"], *config["kernel"].values()):
        section["src"] = [name for pattern in section["src"] for name in expand(out, pattern)]
    for isa in INSTRUCTION_SETS:
        config["kernel"][f"{isa}_beside_cuda"] = config["kernel"][isa] | {"backend": "cuda"}
    (out / "build.toml").write_text(tomli_w.dumps(config))


def relative(code: str, depth: int) -> str:
    """A module's code with the package's imports relative, and the operators of `_ops`."""
    up = "." * depth
    code = re.sub(rf"from {NAME} import _extension", f"from {up} import _extension, _ops", code)
    code = re.sub(rf"from {NAME}\.", f"from {up}", code)
    code = code.replace("torch.ops.lddgan.", "_ops.ops.")
    return re.sub(r'"lddgan::(\w+)"', r'_ops.add_op_namespace_prefix("\1")', code)


def expand(root: Path, pattern: str) -> list[str]:
    """The files of a pattern of build.toml."""
    found = sorted(str(path.relative_to(root)) for path in root.glob(pattern))
    if not found:
        raise SystemExit(f"hub_kernel: build.toml names {pattern}, which is no file")
    return found


def build(project: Path) -> Path:
    """Compiles the CPU kernels as build.toml says; returns the variant's folder."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    config = tomllib.loads((project / "build.toml").read_text())
    digest = hashlib.sha256()
    for file in sorted(path for path in project.rglob("*") if path.is_file()):
        digest.update(file.read_bytes())
    unique = f"_{NAME}_cpu_{digest.hexdigest()[:7]}"
    release = "".join(torch.__version__.split(".")[:2])
    abi = f"-cxx11-cpu-{platform.machine()}-{platform.system().lower()}"
    variant = project / "build" / f"torch{release}{abi}"
    objects = project / "objects"
    objects.mkdir()
    (objects / "registration.h").write_text(REGISTRATION)
    torch_includes = [*include_paths(), sysconfig.get_paths()["include"]]
    sections = [config["torch"], *(k for k in config["kernel"].values() if k["backend"] == "cpu")]
    compiler = [*filter(None, [shutil.which("ccache")]), os.environ.get("CXX", "g++")]
    commands = []
    for section in sections:
        given = [f"-I{project / folder}" for folder in section["include"]]
        given += [f"-isystem{folder}" for folder in torch_includes] + [f"-I{objects}"]
        given += [
            "-fPIC",
            "-w",
            "-fvisibility=hidden",
            "-DCPU_KERNEL",
            "-DPy_LIMITED_API=0x03090000",
        ]
        given += [f"-DTORCH_EXTENSION_NAME={unique}", "-DNDEBUG", "-O2", *section["cxx-flags"]]
        for name in section["src"]:
            if name.endswith(".cpp"):
                target = objects / f"{name.replace('/', '_')}.o"
                commands.append([*compiler, *given, "-c", str(project / name), "-o", str(target)])
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda command: subprocess.run(command, check=True), commands):
            pass
    shutil.copytree(project / "torch-ext" / NAME, variant)
    (variant / "_ops.py").write_text(OPS.format(id=unique))
    linked = variant / f"{unique}.abi3.so"
    libraries = [f"-L{library_paths()[0]}", "-lc10", "-ltorch_cpu", "-ltorch", "-fopenmp"]
    made = [command[-1] for command in commands]
    subprocess.run(
        [compiler[-1], "-shared", *made, *libraries, "-Wl,-s", "-o", str(linked)], check=True
    )
    write_metadata(variant, unique, config["general"])
    shutil.rmtree(objects)
    return variant


def write_metadata(variant: Path, unique: str, general: dict) -> None:
    """metadata.json, as the hub's loader reads it."""
    files = {
        str(path.relative_to(variant)): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in sorted(variant.rglob("*"))
        if path.is_file()
    }
    facts = {
        "name": general["name"],
        "id": unique,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {"algorithm": "sha256", "files": files},
    }
    (variant / "metadata.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", action="store_true", help="compile it here, for CPUs")
    options = parser.parse_args()
    make_project(options.folder)
    print(build(options.folder) if options.build else options.folder)
