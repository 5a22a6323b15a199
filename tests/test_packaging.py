"""The source distribution is complete: unpacked alone, it builds, and what it builds runs."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lddgan_kernels import _extension

ROOT = Path(__file__).parents[1]

USE = """
import torch, lddgan_kernels
from lddgan_kernels import _extension, ops
assert _extension.is_loaded(), _extension.why_missing()
x = torch.randn(2, 8, 4, 6)
torch.testing.assert_close(ops.haar_idwt2d(ops.haar_dwt2d(x, backend="cpu"), backend="cpu"), x)
print(lddgan_kernels.__file__)
"""


def tracked(*folders):
    """Files that belong to the project: of a checkout those that git knows or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("needs a git checkout")
    return {name for name in found.stdout.splitlines() if (ROOT / name).exists()}


def run(code, folder, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source distribution of a fresh checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in tracked():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "checkout" / name)
    run("from setuptools import build_meta; build_meta.build_sdist('..')", folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_sdist_holds_every_source(unpacked):
    packed = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    wanted = tracked("lddgan_kernels", "csrc", "python", "tests/cuda_emulation")
    wanted |= {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert wanted <= packed


@pytest.mark.slow
@pytest.mark.skipif(not _extension.is_loaded(), reason="needs a compiler, as the extension does")
def test_sdist_builds(unpacked, tmp_path):
    # Not optimised, which takes a third of the time.
    run(
        f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})",
        unpacked,
        LDDGAN_BUILD="cpu",
        CMAKE_BUILD_TYPE="None",
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        missing = tracked("lddgan_kernels") - set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert not missing
    used = run(USE, tmp_path / "installed")
    assert used.startswith(str(tmp_path))
