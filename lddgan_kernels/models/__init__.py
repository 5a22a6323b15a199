"""The networks. All run on `lddgan_kernels.ops`, so `use_backend` reaches into them."""

from lddgan_kernels.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderOptions,
    AutoencoderOutput,
)
from lddgan_kernels.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    DiscriminatorOptions,
)
from lddgan_kernels.models.generator import Generator, GeneratorConfig, UNetOptions
from lddgan_kernels.models.generator_options import CommonOptions
from lddgan_kernels.models.lpips import LPIPS
from lddgan_kernels.models.patch_discriminator import PatchDiscriminator
from lddgan_kernels.models.vit_generator import VIT_SIZES, ViTConfig, ViTGenerator, ViTOptions
from lddgan_kernels.models.wavelet_generator import WaveletGenerator

__all__ = [
    "LPIPS",
    "VIT_SIZES",
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderOptions",
    "AutoencoderOutput",
    "CommonOptions",
    "Discriminator",
    "DiscriminatorConfig",
    "DiscriminatorOptions",
    "Generator",
    "GeneratorConfig",
    "PatchDiscriminator",
    "UNetOptions",
    "ViTConfig",
    "ViTGenerator",
    "ViTOptions",
    "WaveletGenerator",
]
