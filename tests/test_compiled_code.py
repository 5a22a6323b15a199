"""What the compilers make of the GPU kernels, off the machine code.

No spills, 16-byte accesses, cluster barriers where there are clusters, and how many instructions
the hot loops take.
"""

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

needs_disassembler = pytest.mark.skipif(
    find_tool("nvdisasm") is None, reason="nvdisasm is not here"
)
needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="nvcc is not here")
# Every source for these; for others, which differ in limits and not in instructions, one or two.
ARCHITECTURES = (80, 90)
MORE = {
    75: ("ada_group_norm", "seeded_normal"),
    86: ("haar",),
    89: ("upfirdn2d",),
    100: ("ada_group_norm",),
    120: ("ada_group_norm_backward", "residual_scale_moments"),
}
# Kernel -> tensors that its loops read at once, and the most instructions an element of bfloat16
# in channels_last of the dearest of them. (An H100 has time for 35 while an element is copied.)
BUDGETS = {
    "forward_onchip_kernel": (1, 11),
    "apply_kernel": (1, 12),
    "moments_kernel": (1, 6),
    "backward_onchip_kernel": (2, 20),
    "sums_kernel": (2, 19),
    "grad_kernel": (2, 19),
    "residual_moments_kernel": (3, 16),
}
IN_FLIGHT = 4  # 16-byte loads of a thread before it waits for one


def aot_triton(*arguments):
    """What `python -m tests.aot_triton` prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.aot_triton", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found
    return found


@pytest.mark.slow
@needs_triton
def test_triton_kernels_compile_for_every_launch():
    """Integers of 1 become constants, others 64-bit; pointers may be None or at any address."""
    found = aot_triton("specialise")
    complaints = [complaint for complaints, _ in found for complaint in complaints]
    assert not complaints, "\n".join(complaints)
    assert all(count > 3 for _, count in found)


@pytest.mark.slow
@needs_triton
@needs_disassembler
def test_triton_kernels():
    found = aot_triton()
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
@needs_nvcc
@needs_disassembler
@pytest.mark.parametrize(
    ("source", "architecture"),
    [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
    + [(source, a) for source in SOURCES for a, stems in MORE.items() if source.stem in stems],
    ids=lambda value: getattr(value, "stem", f"sm_{value}"),
)
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
    for name, facts in functions.items():
        if "onchip_kernel" in name:
            assert bool(facts["cluster"]) == (architecture >= 90), name
            assert architecture >= 90 or facts["traps"], f"{name} goes on without clusters"
    if architecture >= 80:  # sm_75 has no instructions for bfloat16
        _check_budgets(functions)


def _check_budgets(functions):
    seen = set()
    for name, facts in functions.items():
        for kernel, (tensors, most) in BUDGETS.items():
            if f"{len(kernel)}{kernel}I13__nv_bfloat16Li8ELb1E" not in name:
                continue
            seen.add(kernel)
            assert facts["registers"] <= 128, name  # two blocks of 256 threads a multiprocessor
            assert facts["loops"], name
            for loop in facts["loops"]:
                packs = max(loop["LDG"], loop["LDS"]) / tensors
                assert loop["instructions"] <= most * 8 * packs, (name, loop)
                assert loop["in_flight"] >= IN_FLIGHT, (name, loop)
    present = {k for k in BUDGETS if any(f"{len(k)}{k}" in name for name in functions)}
    assert seen == present
