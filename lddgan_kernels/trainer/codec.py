"""Between images in [-1, 1] and what the GAN works on, which lies in about [-1, 1] as well."""

from torch import Tensor, nn

from lddgan_kernels.models import Autoencoder
from lddgan_kernels.ops import haar_dwt2d, haar_idwt2d


class PixelCodec(nn.Module):
    """The images themselves (DDGAN)."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class HaarCodec(nn.Module):
    """The four halved Haar bands, whose lowest is then the mean of each 2x2 (WDDGAN)."""

    def encode(self, images: Tensor) -> Tensor:
        return haar_dwt2d(images, 0.5)

    def decode(self, latents: Tensor) -> Tensor:
        return haar_idwt2d(latents, 2.0)


class AutoencoderCodec(nn.Module):
    """An autoencoder's latents over their measured scale (LDDGAN)."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images) / self.autoencoder.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents * self.autoencoder.latent_scale)


# Both ways, for batches (N, C, H, W).
Codec = PixelCodec | HaarCodec | AutoencoderCodec
