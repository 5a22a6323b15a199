"""The CPU kernels on NEON, held to the error rule by a program without PyTorch.

On other processors a cross compiler builds it (Debian: g++-aarch64-linux-gnu) and an emulator runs
it (qemu-user).
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "cpu_kernels"


def read(folder, pattern):
    return "".join(path.read_text() for path in sorted(folder.rglob(pattern)))


def test_every_kernel_has_its_case():
    kernels = set(re.findall(r"^LDDGAN_DECLARE_CPU\((\w+),", read(ROOT / "csrc", "*.h"), re.M))
    cases = set(re.findall(r"(?:BOTH\(|LDDGAN_TESTED::)(\w+)", read(HERE, "*.cpp")))
    assert cases == kernels


def needed(*programs):
    """The first of these programs that is here; else skips."""
    found = next(filter(None, map(shutil.which, programs)), None)
    return found or pytest.skip(f"needs {programs[0]}")


@pytest.mark.slow
def test_neon_meets_the_error_rule(tmp_path):
    options, emulator = [], []
    if platform.machine() not in ("aarch64", "arm64"):
        emulator = [needed("qemu-aarch64", "qemu-aarch64-static")]
        options = [
            f"-DCMAKE_CXX_COMPILER={needed('aarch64-linux-gnu-g++')}",
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        ]
    cmake = needed("cmake")
    options += ["-DCMAKE_BUILD_TYPE=Release", "-DLDDGAN_TESTED=neon"]
    for command in (
        [cmake, "-S", HERE, "-B", tmp_path, *options],
        [cmake, "--build", tmp_path],
    ):
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    for seed in ("1", "2"):
        command = [*emulator, tmp_path / "compare", "40", seed]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.endswith("\n0 failures\n")
