"""Runs the tests marked `instruction_sets` again, as lesser processors than this one would.

    python -m tests.instruction_sets [PYTEST ARGUMENTS]

Each pass sets what oneDNN, PyTorch and these kernels use, all three alike; what this processor does
of itself is left to the ordinary run.
"""

import os
import subprocess
import sys
import tempfile

import torch

from lddgan_kernels import _extension

# Of oneDNN, of PyTorch and of the kernels; from the least on.
SETS = (
    ("AVX2", "avx2", "avx2"),
    ("AVX512_CORE", "avx512", "avx512"),
    ("AVX512_CORE_BF16", "avx512", "avx512bf16"),
)
NAMES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "LDDGAN_CPU_ISA")


def lesser_sets() -> list[tuple[str, str, str]]:
    """The sets that this processor has beside its own."""
    own = _extension.build_info().get("cpu_isa", "baseline")
    kernels = [of_kernels for _, _, of_kernels in SETS]
    count = kernels.index(own) if own in kernels else 0
    return list(SETS[: count + torch.cpu._is_amx_tile_supported()])


def main(arguments: list[str]) -> int:
    """Returns the exit status: that of the last pass that failed, else 0."""
    status = 0
    for values in lesser_sets():
        print(f"== as a processor with {values[0]}", flush=True)
        environment = os.environ | dict(zip(NAMES, values, strict=True))
        command = [sys.executable, "-m", "pytest", "-m", "instruction_sets", *arguments]
        # Compiled code that PyTorch kept for another set would run, and add up wrong.
        with tempfile.TemporaryDirectory() as kept:
            environment["TORCHINDUCTOR_CACHE_DIR"] = kept
            status = subprocess.run(command, env=environment).returncode or status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
