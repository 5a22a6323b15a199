"""Runs tests/ops on a CPU extension of its own, built with g++'s sanitizers for memory and
undefined behaviour.

    python -m tests.sanitized [PYTEST ARGUMENTS]

It watches the bindings and the kernels of this processor's instruction set, or of LDDGAN_CPU_ISA.
The first report of a sanitizer ends its process, and so fails the run.
"""

import os
import subprocess
import sys
from pathlib import Path

from lddgan_kernels import _extension

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "sanitized"
COMPILER = os.environ.get("CXX", "g++")
# Two kernels give the same bits where the compiler fuses the same sums, which it doesn't here.
OF_BITS = "tests/ops/test_posterior_sample.py::test_noise_made_inside"


def libraries() -> list[str]:
    """What has to be loaded first, where the compiler has it."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [COMPILER, f"-print-file-name={name}"]
        try:
            found.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
        except OSError:
            return []
    return found if all(Path(path).is_absolute() for path in found) else []


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    preload = libraries()
    if not preload:
        print(f"sanitize: skipped, as {COMPILER} has no libasan")
        return 0
    isa = _extension.build_info().get("cpu_isa", "baseline")
    sanitize = {"LDDGAN_SANITIZE": "address,undefined", "LDDGAN_SANITIZE_ISA": isa}
    build = [sys.executable, "setup.py", "build", "--build-lib", str(BUILT)]
    subprocess.run(build, cwd=ROOT, env=os.environ | sanitize | {"LDDGAN_BUILD": "cpu"}, check=True)
    tests = ["tests/ops", "-m", "instruction_sets", "--deselect", OF_BITS, *arguments]
    watched = {
        "PYTHONPATH": str(BUILT),
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python ends without freeing all
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-P", "-m", "pytest", "--import-mode=append", *tests]
    return subprocess.run(command, cwd=ROOT, env=os.environ | watched).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
