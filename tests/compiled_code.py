"""Reads compiled GPU code: the tools that are here, and what a disassembly says."""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

LOAD = re.compile(r"\b(?:LDG|LDGSTS|UBLKCP|UTMALDG)\b(?:\.\w+)*")
STORE = re.compile(r"\b(?:STG|UTMASTG)\b(?:\.\w+)*")
SPILL = re.compile(r"\b(?:LDL|STL)\b")
PRODUCT = re.compile(r"\b(?:HMMA|HGMMA)\b")  # tensor cores
WIDE = re.compile(r"\.128\b|\.BYPASS|\bUBLKCP|\bUTMA")  # a bulk copy moves 16 bytes and more


def find_tool(name):
    """nvcc, nvdisasm, ...: on PATH, of a CUDA toolkit, or of Triton's wheel; None if absent."""
    triton = find_spec("triton")
    folders = [Path("/usr/local/cuda/bin")]
    if triton is not None and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    beside = (str(folder / name) for folder in folders if (folder / name).exists())
    return shutil.which(name) or next(beside, None)


def disassemble(cubin):
    """The SASS of a cubin file."""
    result = subprocess.run(
        [find_tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True
    )
    return result.stdout


def summary(sass):
    """Function -> counts of global loads, stores, those of 16 bytes, spills, tensor products."""
    facts = {}
    for part in re.split(r"^\.text\.", sass, flags=re.M)[1:]:
        name, _, body = part.partition(":")
        loads, stores = LOAD.findall(body), STORE.findall(body)
        facts[name] = {
            "loads": len(loads),
            "wide_loads": sum(bool(WIDE.search(x)) for x in loads),
            "stores": len(stores),
            "wide_stores": sum(bool(WIDE.search(x)) for x in stores),
            "local": len(SPILL.findall(body)),
            "products": len(PRODUCT.findall(body)),
        }
    return facts


def compile_cuda(source, architecture):
    """Compiles a .cu file; kernel -> its `summary` and the bytes it spills.

    Kept in build/compiled_code until the source, a header or the compiler changes.
    """
    root = Path(__file__).parents[1]
    headers = sorted((root / "csrc" / "include" / "lddgan").iterdir())
    headers += sorted((root / "csrc" / "cuda").glob("*.cuh"))
    nvcc = find_tool("nvcc")
    command = [nvcc, "-std=c++20", "--expt-relaxed-constexpr", "--extended-lambda", "-lineinfo"]
    command += ["-I", str(root / "csrc" / "include"), "-DLDDGAN_CUDA", f"-arch=sm_{architecture}"]
    command += ["-Xptxas", "-v", "-cubin", str(source)]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    key = hashlib.sha256("\0".join([*command, version.stdout]).encode())
    for path in (source, *headers, Path(__file__)):
        key.update(path.read_bytes())
    kept = root / "build" / "compiled_code" / f"{source.stem}-{architecture}-{key.hexdigest()}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            result = subprocess.run([*command, "-o", str(cubin)], capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{source.name} for sm_{architecture}: {result.stderr}")
            facts = summary(disassemble(cubin))
        spills = re.findall(
            r"Function properties for (\S+)\s+.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
            result.stderr,
        )
        for name, stores, loads in spills:
            facts[name]["spilled"] = int(stores) + int(loads)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(facts))
    return json.loads(kept.read_text())
