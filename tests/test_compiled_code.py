"""What the compilers make of the GPU kernels: no spills, 16-byte accesses; off the machine code."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from lddgan_kernels._backend import has_triton
from tests.compiled_code import compile_cuda, find_tool

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

pytestmark = pytest.mark.skipif(find_tool("nvdisasm") is None, reason="nvdisasm is not here")


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_triton_kernels():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.aot_triton"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found
    complaints = []
    for facts in found:
        sass, narrow = facts["sass"], facts["narrow"]
        if sass["local"]:
            complaints.append(f"{facts['name']} spills: {sass}")
        if facts["products"] and not sass["products"]:
            complaints.append(f"{facts['name']} uses no tensor cores: {sass}")
        for kind in ("loads", "stores"):
            exempt = kind in narrow or facts["dtype"] in narrow
            if sass[kind] and not sass[f"wide_{kind}"] and not exempt:
                complaints.append(f"{facts['name']} has no 16-byte {kind}: {sass}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.slow
@pytest.mark.skipif(find_tool("nvcc") is None, reason="nvcc is not here")
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_cuda_kernels(source, architecture):
    functions = compile_cuda(source, architecture)
    spilling = {name: f for name, f in functions.items() if f["spilled"] or f["local"]}
    assert not spilling
    # Each kernel, in one instantiation at least; where none can, the source says `// narrow: why`
    # on the line before its `__global__`.
    # A kernel shared by several sources stands in a header of theirs.
    text = source.read_text()
    for header in re.findall(r'#include "(\w+\.cuh)"', text):
        text += (ROOT / "csrc" / "cuda" / header).read_text()
    kernels = set(re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", text))
    narrow = set(
        re.findall(r"// narrow: .*\n(?:template.*\n)?__global__[^;{]*?\b(\w+_kernel)\(", text)
    )
    assert kernels, "kernels are named <something>_kernel"
    wide = defaultdict(int)
    for name, facts in functions.items():
        for kernel in kernels:
            if f"{len(kernel)}{kernel}" in name:  # as C++ mangles names
                wide[kernel] += facts["wide_loads"] + facts["wide_stores"]
    assert {kernel for kernel in kernels if not wide[kernel]} <= narrow
