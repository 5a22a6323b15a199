"""The networks. All run on `lddgan_kernels.ops`, so `use_backend` reaches into them."""

from lddgan_kernels.models.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderOutput

__all__ = ["Autoencoder", "AutoencoderConfig", "AutoencoderOutput"]
