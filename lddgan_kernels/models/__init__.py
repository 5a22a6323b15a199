"""The networks, each with its configuration: all memory-bound steps are public ops."""

from lddgan_kernels.models.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderOutput
from lddgan_kernels.models.discriminator import Discriminator, DiscriminatorConfig
from lddgan_kernels.models.generator import Generator, GeneratorConfig

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderOutput",
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
]
