"""Importing needs torch and numpy alone; without the extension every op runs on its reference."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Refuses to import what a plain installation of torch and numpy may lack.
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "lddgan_kernels._C" or name.split(".")[0] in BLOCKED:
            raise ImportError(f"No module named {name!r}")

import torch, numpy
sys.meta_path.insert(0, Block())
"""

OPS = """
import torch
import lddgan_kernels
from lddgan_kernels import ops
from lddgan_kernels.diffusion import Schedule

x, seeds, t = torch.randn(4, 8, 6, 4), torch.arange(4), torch.tensor([0, 1, 0, 1])
rows = torch.randn(4, 8)
taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
packed = ops.pack_conv2d(torch.randn(5, 8, 3, 3), (4, 6, 4))
calls = {
    "ada_group_norm": lambda: ops.ada_group_norm(x, rows, rows, 4),
    "bias_act": lambda: ops.bias_act(x, rows[0], "silu"),
    "conv3x3": lambda: ops.conv3x3(x, torch.randn(5, 8, 3, 3)),
    "diffuse_pair": lambda: ops.diffuse_pair(x, t, Schedule(2), seeds),
    "downsample2d": lambda: ops.downsample2d(x),
    "haar_dwt2d": lambda: ops.haar_dwt2d(x),
    "haar_idwt2d": lambda: ops.haar_idwt2d(x),
    "minibatch_stddev": lambda: ops.minibatch_stddev(x),
    "nearest_code": lambda: ops.nearest_code(x, torch.randn(9, 8)),
    "norm_resample": lambda: ops.norm_resample(x, rows, rows, 4, "down"),
    "pack_conv2d": lambda: packed.weight.to_dense(),
    "packed_conv2d": lambda: ops.packed_conv2d(x, packed),
    "pixel_norm": lambda: ops.pixel_norm(rows),
    "posterior_sample": lambda: ops.posterior_sample(x, x, t, Schedule(2), seeds),
    "residual_scale": lambda: ops.residual_scale(x, x),
    "residual_scale_moments": lambda: ops.residual_scale_moments(x, x, 4)[0],
    "seeded_normal": lambda: ops.seeded_normal((4, 8), seeds, 0),
    "upfirdn2d": lambda: ops.upfirdn2d(x, taps, up=2, pad=(2, 1)),
    "upsample2d": lambda: ops.upsample2d(x),
}
assert set(calls) == set(ops.__all__), set(calls) ^ set(ops.__all__)
for name, call in calls.items():
    out = call()
    for y in out if isinstance(out, tuple) else (out,):
        assert y.isfinite().all(), name
try:
    ops.residual_scale(x, x, backend="cpu")
except RuntimeError as error:
    assert "not compiled" in str(error) and "pip install" in str(error), error
else:
    raise AssertionError("a named backend that is missing must raise")
"""


def python(code):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("LDDGAN_BACKEND", None)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def declared():
    """Import names of everything pyproject.toml names besides torch and numpy."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", line)[0] for group in groups for line in group}
    renamed = {"pillow": "PIL"}
    return {renamed.get(n, n.replace("-", "_")) for n in names} - {"torch", "numpy"}


def test_import_loads_nothing_but_torch_and_numpy():
    code = """
import sys, torch, numpy
before = {name.split(".")[0] for name in sys.modules}
import lddgan_kernels
after = {name.split(".")[0] for name in sys.modules}
print(*sorted(after - before - set(sys.stdlib_module_names)))
"""
    assert python(code).split() == ["lddgan_kernels"]


@pytest.mark.parametrize("code", ["import lddgan_kernels", OPS], ids=["import", "ops"])
def test_without_extension_triton_and_optional_packages(code):
    # torch.compile and its like stay unused, so Triton is not needed by torch either.
    python(f"BLOCKED = {declared()!r}\n{BLOCK}\n{code}")
