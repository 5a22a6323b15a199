"""Published DDGAN, WDDGAN and LDDGAN checkpoints: into our modules, and back."""

from lddgan_kernels.interop.published import load_published, to_published

__all__ = ["load_published", "to_published"]
