"""Packages: complete, true to what they hold, and clear where something is missing."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import library_paths

from lddgan_kernels import __version__, _extension

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


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"LDDGAN_BUILD": "none"}, None),
        ({"PATH": "", "CXX": ""}, "the extension cannot be compiled: no C++ compiler was found"),
    ],
    ids=["as asked", "no compiler"],
)
def test_a_wheel_without_extension_is_pure(unpacked, tmp_path, environment, told):
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": "", "LDDGAN_BUILD": "", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"lddgan_kernels-{__version__}-py3-none-any.whl"
    assert (told or "") in result.stderr
    assert told is not None or "cannot be compiled" not in result.stderr


def test_what_was_asked_for_and_cannot_be_compiled_is_an_error(unpacked, tmp_path):
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": "", "LDDGAN_BUILD": "cpu", "PATH": "", "CXX": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "no C++ compiler was found: install one (such as g++) or set CXX." in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")
def test_the_extension_names_no_folder_of_its_build():
    data = Path(_extension.module().__file__).read_bytes()
    assert b"$ORIGIN/../torch/lib" in data
    assert library_paths()[0].encode() not in data


def test_info_without_pytorch():
    result = subprocess.run(
        [sys.executable, "-S", "-m", "lddgan_kernels.info"],  # no site-packages
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "missing: torch, numpy, pillow" in result.stdout
    assert "PyTorch comes first" in result.stdout
    assert not result.stderr


def test_import_without_pytorch_says_what_to_install():
    code = "import lddgan_kernels\ntry: lddgan_kernels.ops\nexcept ImportError as e: print(e)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "lddgan_kernels.ops needs PyTorch 2.11 to 2.15: pip install torch" in result.stdout


@pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")
def test_an_extension_for_another_pytorch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.1")
    module, error = _extension._load()
    built = ".".join(_extension.build_info()["torch"].split(".")[:2])
    assert module is None
    assert error == f"it was compiled for PyTorch {built}: install that, or a wheel for this one"


def test_the_version_of_a_wheel_tells_its_pytorch(monkeypatch):
    monkeypatch.setattr(_extension, "version", lambda name: "0.1.0+torch2.12.cu130")
    assert _extension._installed_for() == "2.12"
    monkeypatch.setattr(_extension, "version", lambda name: "0.1.0")
    assert _extension._installed_for() is None


def test_missing_kernels_are_told_once_on_import(tmp_path):
    # Without the finder of an editable installation, which would lend the copy its extension.
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if '_editable_' not in f.__module__]\n"
        "import lddgan_kernels, lddgan_kernels.ops"
    )
    shutil.copytree(
        ROOT / "lddgan_kernels", tmp_path / "lddgan_kernels", ignore=shutil.ignore_patterns("*.so")
    )
    for chosen, count in (("", 1), ("none", 0)):
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "LDDGAN_BUILD": chosen},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr.count("runs on its reference implementations on CPUs") == count
