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
PRODUCT = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b")  # tensor cores
WIDE = re.compile(r"\.128\b|\.BYPASS|\bUBLKCP|\bUTMA")  # a bulk copy moves 16 bytes and more
CLUSTER = re.compile(r"\bUCGABAR_(?:ARV|WAIT)\b")  # barriers of a cluster
TRAP = re.compile(r"\bBPT\.TRAP\b")
INSTRUCTION = re.compile(r"\s*(?:\.\S+\s+)?/\*[0-9a-f]+\*/\s+(.*?);")
LABEL = re.compile(r"\s*\.(L_x_\d+):")
JUMP = re.compile(r"\bBRA(?:\.\w+)*\s.*`\(\.(L_x_\d+)\)")


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


def innermost_loops(body):
    """The instructions of each loop of a function's code that holds no other loop."""
    instructions, labels, loops = [], {}, []
    for line in body.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            instructions.append(found[1])
            jump = JUMP.search(found[1])
            if jump and jump[1] in labels:  # backwards
                loops.append((labels[jump[1]], len(instructions)))
    return [
        instructions[begin:end]
        for begin, end in loops
        if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in loops)
    ]


def in_flight(loop):
    """How many 16-byte loads of a loop are issued before the first of them is used."""
    count, waiting = 0, None
    for instruction in loop:
        name, _, operands = re.sub(r"^@!?U?P\d+ ", "", instruction).partition(" ")
        registers = [int(r) for r in re.findall(r"\bR(\d+)\b", operands)]
        if name.startswith(("LDG", "LDS")) and ".128" in name:
            count += 1
            if waiting is None:
                waiting = range(registers[0], registers[0] + 4)
        elif waiting is not None and any(r in waiting for r in registers):
            break
    return count


def hot_loops(body):
    """Of the innermost loops that move 16 bytes at a time: instructions, 16-byte accesses."""
    found = []
    for loop in innermost_loops(body):
        wide = [i for i in loop if ".128" in i]
        counts = {
            kind: sum(bool(re.search(rf"\b{kind}\b", i)) for i in wide)
            for kind in ("LDG", "STG", "LDS", "STS")
        }
        if any(counts.values()):
            found.append({"instructions": len(loop), "in_flight": in_flight(loop), **counts})
    return found


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
            "cluster": len(CLUSTER.findall(body)),
            "traps": len(TRAP.findall(body)),
            "loops": hot_loops(body),
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
        for name, registers in re.findall(
            r"Function properties for (\S+)\s+.*?Used (\d+) registers", result.stderr, re.S
        ):
            facts[name]["registers"] = int(registers)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(facts))
    return json.loads(kept.read_text())
