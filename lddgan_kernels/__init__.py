"""Fused kernels, models and a trainer for few-step diffusion GANs (LDDGAN, DDGAN, WDDGAN).

`lddgan_kernels.ops` holds the ops; each takes `backend=` and obeys `use_backend`. Importing needs
torch and numpy only: no GPU, no compiler, no compiled extension.
"""

from typing import TYPE_CHECKING

from lddgan_kernels import ops
from lddgan_kernels._backend import use_backend
from lddgan_kernels._version import __version__

if TYPE_CHECKING:
    import torch

    from lddgan_kernels.patching import Patched

__all__ = ["__version__", "ops", "patch", "use_backend"]


def patch(model: "torch.nn.Module") -> "Patched":
    """Has a network of others run on these kernels, in place; see `patching.patch_model`."""
    from lddgan_kernels.patching import patch_model  # importing the package stays light

    return patch_model(model)
