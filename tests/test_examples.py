"""The examples run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "kernels_only.py": ([], "differs from plain PyTorch by"),
    "export_generator.py": ([], "5 images by a program of 3"),
    "train_and_sample.py": (["--quick"], "generator.safetensors"),
}


def test_none_is_left_out():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    arguments, told = EXAMPLES[name]
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert told in result.stdout
