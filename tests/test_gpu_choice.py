"""What is decided about a GPU before anything runs on it: device, compiled code, clusters."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lddgan_kernels import _backend, _extension
from lddgan_kernels.ops import _norm_plan

ROOT = Path(__file__).parents[1]


def test_triton_kernels_are_launched_by_launch():
    for path in sorted((ROOT / "lddgan_kernels" / "triton").glob("*.py")):
        if path.name == "_common.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            direct = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
            assert not direct, f"{path.name}:{node.lineno} launches on the current device"


@pytest.mark.skipif(not _backend.has_triton(), reason="Triton is not installed")
def test_launch_takes_the_tensors_device(monkeypatch):
    from lddgan_kernels.triton._common import launch

    current, seen = ["cuda:0"], []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    x = SimpleNamespace(is_cuda=True, device="cuda:1")
    kernel = {(3,): lambda *arguments, **options: seen.append((current[-1], arguments, options))}
    launch(kernel, (3,), x, 5, BLOCK=8)
    assert seen == [("cuda:1", (x, 5), {"BLOCK": 8})]
    assert current == ["cuda:0"]


def gpu(monkeypatch, capability, architectures):
    """A GPU of such a capability, and an extension compiled so."""
    major, minor = divmod(capability, 10)
    properties = SimpleNamespace(
        name="a GPU",
        major=major,
        minor=minor,
        multi_processor_count=100,
        shared_memory_per_block_optin=101376,
        shared_memory_per_multiprocessor=102400,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    built = {"cuda": "13.0", "cuda_architectures": architectures}
    monkeypatch.setattr(_extension, "_built", built)
    monkeypatch.setattr(_extension, "_C", object())
    _norm_plan.device_size.cache_clear()


@pytest.mark.parametrize(
    ("capability", "architectures", "cluster"),
    [
        (90, "75,80,90", 8),
        (100, "75,80,90", 8),  # from the code for sm_90
        (120, "80,90a", 8),
        (90, "80,86", 1),  # runs, compiled anew from the code for sm_86: without clusters
        (86, "75,80,90", 1),
    ],
)
def test_clusters_by_what_was_compiled(monkeypatch, capability, architectures, cluster):
    gpu(monkeypatch, capability, architectures)
    size = _norm_plan.device_size(torch.device("cuda", 0))
    assert size.max_cluster == cluster
    _norm_plan.device_size.cache_clear()


def test_a_gpu_without_code_is_named(monkeypatch):
    gpu(monkeypatch, 75, "80,90")
    x = SimpleNamespace(
        is_cpu=False, dtype=torch.float32, device=torch.device("cuda", 0), is_cuda=True
    )
    reason = "the extension was compiled for sm_80, sm_90 and newer, and a GPU is sm_75"
    assert _backend.unavailable("haar", "cuda", x, ("cuda",)) == reason
    # Without a name, the next that can run.
    assert _backend.select("haar", x, None, ("cuda",)) == "reference"
    with pytest.raises(RuntimeError, match="haar: backend 'cuda' unavailable: .* sm_75"):
        _backend.select("haar", x, "cuda", ("cuda",))
    gpu(monkeypatch, 75, "75,80,90")
    assert _backend.unavailable("haar", "cuda", x, ("cuda",)) is None
