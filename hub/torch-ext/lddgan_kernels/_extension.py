"""What the ops ask of their compiled extension, of a build for the kernel hub."""

import json
from pathlib import Path

from ._ops import ops

_backend = json.loads(Path(__file__).with_name("metadata.json").read_text())["backend"]
_architectures = tuple(
    sorted(int(arch.split("+")[0].replace(".", "")) for arch in _backend.get("archs", ()))
)
_built = {"cpu_isa": ops.cpu_isa()}


def module():
    """The functions that skip the dispatcher: a build for the hub has none."""
    return None


def is_loaded():
    return True


def has_cuda_kernels():
    return _backend["type"] == "cuda"


def build_info():
    return dict(_built)


def cuda_architectures():
    """What the CUDA kernels were compiled for: (75, 80, 90)."""
    return _architectures


def cuda_code_for(capability):
    """The architecture whose code a GPU of such a compute capability (90) runs; 0: none."""
    return max([0, *(a for a in _architectures if a <= capability)])


def why_missing():
    return None
