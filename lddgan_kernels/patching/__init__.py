"""Other people's networks on these kernels: `lddgan_kernels.patch`.

Blocks, norms, resampling and convolutions of diffusers, ADM (guided-diffusion), EDM, score_sde,
DDGAN and latent diffusion are recognised by the names of their classes and parts. What is
recognised is tried before it is replaced, so that another class of the same name stays as it is.
"""

from lddgan_kernels.patching.patched import Patched, patch_model

__all__ = ["Patched", "patch_model"]
