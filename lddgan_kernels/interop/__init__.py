"""Published checkpoints into our modules, and back: DDGAN, WDDGAN, LDDGAN, their autoencoders."""

from lddgan_kernels.interop.diffusers import load_diffusers
from lddgan_kernels.interop.published import load_published, to_published

__all__ = ["load_diffusers", "load_published", "to_published"]
