"""Fused kernels, models and a trainer for few-step diffusion GANs (LDDGAN, DDGAN, WDDGAN).

`lddgan_kernels.ops` holds the ops; each takes `backend=` and obeys `use_backend`. Importing needs
torch and numpy only: no GPU, no compiler, no compiled extension.
"""

from lddgan_kernels import ops
from lddgan_kernels._backend import use_backend
from lddgan_kernels._version import __version__

__all__ = ["__version__", "ops", "use_backend"]
