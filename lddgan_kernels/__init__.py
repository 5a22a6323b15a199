"""Fused kernels, models and a trainer for few-step diffusion GANs (LDDGAN, DDGAN, WDDGAN).

`lddgan_kernels.ops` holds the ops; each takes `backend=` and obeys `use_backend`. Importing needs
torch and numpy only: no GPU, no compiler, no compiled extension.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lddgan_kernels._version import __version__

if TYPE_CHECKING:
    import torch

    from lddgan_kernels.patching import Patched

# Without PyTorch there is still `python -m lddgan_kernels.info`.
if find_spec("torch") is not None:
    from lddgan_kernels import ops
    from lddgan_kernels._backend import use_backend

__all__ = ["__version__", "ops", "patch", "use_backend"]


def patch(model: "torch.nn.Module") -> "Patched":
    """Has a network of others run on these kernels, in place; see `patching.patch_model`."""
    from lddgan_kernels.patching import patch_model  # importing the package stays light

    return patch_model(model)


def __getattr__(name: str) -> object:
    """Why what is not there is missing."""
    if name in ("ops", "use_backend") and find_spec("torch") is None:
        raise ImportError(f"lddgan_kernels.{name} needs PyTorch 2.11 to 2.15: pip install torch")
    raise AttributeError(f"module 'lddgan_kernels' has no attribute {name!r}")
