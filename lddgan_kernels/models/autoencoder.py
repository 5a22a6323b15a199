"""The autoencoder: VQGAN's encoder and decoder, the quantiser inside the decoder (or a KL term)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import nn
from lddgan_kernels._checks import like_layout, memory_format
from lddgan_kernels._options import Count, Fraction, Whole, check
from lddgan_kernels.models.autoencoder_blocks import Downsample, Level, Middle, Upsample, norm
from lddgan_kernels.models.quantizer import VectorQuantizer
from lddgan_kernels.models.tiny_autoencoder import TinyDecoder, TinyEncoder

# Output pixels decoded at a time where no gradient is asked: 16 images of 256 px, 1 GB in float32.
CHUNK_PIXELS = 2**20


@dataclass(frozen=True)
class AutoencoderOptions:
    """Options of an autoencoder."""

    latent_channels: Count = 4
    """Channels of the latent; its side is the image's over 2^(levels - 1)."""
    base_channels: Count = 128
    """Width of the finest level."""
    channel_multipliers: tuple[Count, ...] = (1, 2)
    """Each level's width over base_channels, finest first."""
    num_blocks: Count = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    attention_resolutions: tuple[Count, ...] = ()
    """Resolutions whose blocks are each followed by attention."""
    tanh_out: bool = False
    """Whether the image passes a tanh."""
    codebook_size: Whole = 8192
    """Codes of the quantiser inside the decoder; 0: none."""
    kl: bool = False
    """A Gaussian latent with a KL penalty instead; needs codebook_size 0."""
    bounded_latent: bool = False
    """Whether each image's latent is normalised and passes a tanh: then it fills [-1, 1], and
    neither an offset nor an outlier makes it weak."""
    dropout: Fraction = 0.0
    """In the residual blocks."""
    z_channels: Count | None = None
    """Of the encoder's own output, before the 1x1 convolution to latent_channels; left out: the
    same."""
    kind: Literal["vqgan", "tiny"] = "vqgan"
    """VQGAN's networks, or TAESD's, tiny: plain convolutions of one width, without a codebook."""


@dataclass(frozen=True)
class ImageShape:
    """What an autoencoder maps from and to; follows from the images."""

    image_channels: Count = 3
    """3, or 1 for grey ones."""
    resolution: Count = 32
    """Side of the images; with channel_multipliers it says where attention sits."""


@dataclass(frozen=True)
class AutoencoderConfig(AutoencoderOptions, ImageShape):
    """An autoencoder's structure."""

    def __post_init__(self) -> None:
        check(self)
        if self.kl and self.codebook_size:
            raise ValueError(
                f"AutoencoderConfig: codebook_size must be 0 where kl is set, "
                f"got {self.codebook_size}"
            )
        if self.kl and self.bounded_latent:
            raise ValueError(
                "AutoencoderConfig: bounded_latent must be False where kl is set, got True"
            )
        if self.kind == "tiny" and (
            self.codebook_size or self.kl or set(self.channel_multipliers) != {1}
        ):
            raise ValueError(
                "AutoencoderConfig: kind tiny must have codebook_size 0, no kl and multipliers of "
                f"1, got {self.codebook_size}, {self.kl} and {self.channel_multipliers}"
            )
        if not self.channel_multipliers:
            raise ValueError("AutoencoderConfig: channel_multipliers must hold one a level, got ()")
        if self.resolution % self.factor:
            raise ValueError(
                f"AutoencoderConfig: resolution must be a multiple of {self.factor} for "
                f"{len(self.channel_multipliers)} levels, got {self.resolution}"
            )

    @property
    def factor(self) -> int:
        """Image resolution over latent resolution."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def latent_resolution(self) -> int:
        """Side of the latent."""
        return self.resolution // self.factor


class AutoencoderOutput(NamedTuple):
    """What training needs of one pass.

    Attributes:
        reconstruction: (N, image_channels, H, W).
        latent: what was decoded, before quantisation: (N, latent_channels, h, w).
        extra_loss: scalar: codebook and commitment loss, or KL, or 0.
    """

    reconstruction: Tensor
    latent: Tensor
    extra_loss: Tensor


class Encoder(torch.nn.Module):
    """(N, image_channels, H, W) -> (N, out_channels, H/factor, W/factor)."""

    def __init__(self, config: AutoencoderConfig, out_channels: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in (1, *config.channel_multipliers)]
        self.conv_in = nn.StemConv2d(config.image_channels, widths[0], 3)
        self.levels = torch.nn.ModuleList()
        last = len(config.channel_multipliers) - 1
        for i, width in enumerate(widths[1:]):
            self.levels.append(
                Level(
                    [widths[i]] + [width] * config.num_blocks,
                    config.resolution >> i in config.attention_resolutions,
                    Downsample(width) if i < last else None,
                    config.dropout,
                )
            )
        self.middle = Middle(widths[-1], config.dropout)
        self.norm_out = norm(widths[-1])
        self.conv_out = torch.nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.levels:
            h = level(h)
        h = self.conv_out(self.norm_out(self.middle(h)))
        return like_layout(h, memory_format(x))


class Decoder(torch.nn.Module):
    """(N, in_channels, h, w) -> (N, image_channels, h*factor, w*factor); coarsest level first."""

    def __init__(self, config: AutoencoderConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(config.channel_multipliers)]
        self.conv_in = nn.StemConv2d(in_channels, widths[0], 3)
        self.middle = Middle(widths[0], config.dropout)
        self.levels = torch.nn.ModuleList()
        last = len(widths) - 1
        for i, width in enumerate(widths):
            self.levels.append(
                Level(
                    [widths[max(i - 1, 0)]] + [width] * (config.num_blocks + 1),
                    config.resolution >> (last - i) in config.attention_resolutions,
                    Upsample(width) if i < last else None,
                    config.dropout,
                )
            )
        self.norm_out = norm(widths[-1])
        self.conv_out = torch.nn.Conv2d(widths[-1], config.image_channels, 3, padding=1)
        self.tanh_out = config.tanh_out

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.conv_in(z))
        for level in self.levels:
            h = level(h)
        x = like_layout(self.conv_out(self.norm_out(h)), memory_format(z))
        return x.tanh() if self.tanh_out else x


class Autoencoder(torch.nn.Module):
    """Images to latents and back.

    `latent_scale` is a buffer, 1 until measured on a training set: latents over it lie in [-1, 1].
    `encode` and `decode` themselves are unscaled. `ignored_entries` names what an imported
    checkpoint held beside the autoencoder.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.ignored_entries: tuple[str, ...] = ()
        latent = config.latent_channels
        self.encoder: Encoder | TinyEncoder
        self.decoder: Decoder | TinyDecoder
        self.quant_conv: torch.nn.Module
        self.post_quant_conv: torch.nn.Module
        self.latent_scale: Tensor
        self.register_buffer("latent_scale", torch.ones(()))
        if config.kind == "tiny":
            shape = config.base_channels, len(config.channel_multipliers), config.num_blocks
            self.encoder = TinyEncoder(config.image_channels, *shape, latent)
            self.quant_conv, self.post_quant_conv = torch.nn.Identity(), torch.nn.Identity()
            self.quantizer = None
            self.decoder = TinyDecoder(config.image_channels, *shape, latent)
            return
        hidden = latent if config.z_channels is None else config.z_channels
        halves = 2 if config.kl else 1  # mean, and log variance
        self.encoder = Encoder(config, halves * hidden)
        self.quant_conv = torch.nn.Conv2d(halves * hidden, halves * latent, 1)
        self.quantizer = (
            VectorQuantizer(config.codebook_size, latent) if config.codebook_size else None
        )
        self.post_quant_conv = torch.nn.Conv2d(latent, hidden, 1)
        self.decoder = Decoder(config, hidden)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, at which adaptive loss weights are measured."""
        return self.decoder.conv_out.weight

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(mean, log variance) of the latent of `x`; no variance without `kl`.

        Raises:
            ValueError: `x` is no (N, image_channels, H, W) of sides that the factor divides.
        """
        channels, factor = self.config.image_channels, self.config.factor
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"Autoencoder: x must be (N, {channels}, H, W) with sides a multiple of {factor}, "
                f"got {tuple(x.shape)}"
            )
        h = self.quant_conv(self.encoder(x))
        if self.config.bounded_latent:
            h = F.layer_norm(h, h.shape[1:]).tanh()
        if not self.config.kl:
            return h, None
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """The latent (N, latent_channels, h, w) of images in [-1, 1]: unquantised, or KL's mean."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images of about [-1, 1] of unscaled latents (N, latent_channels, h, w), quantised first.

        Without gradients a large batch goes through in chunks, so that memory stays bounded.

        Raises:
            ValueError: `z` has another number of channels.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"Autoencoder: z must be (N, {self.config.latent_channels}, h, w), "
                f"got {tuple(z.shape)}"
            )
        limit = max(1, CHUNK_PIXELS // (self.config.factor**2 * z.shape[2] * z.shape[3]))
        if torch.is_grad_enabled() or nn.is_traced() or z.shape[0] <= limit:
            return self._decode(z)
        return torch.cat([self._decode(chunk) for chunk in z.split(limit)])

    def _decode(self, z: Tensor) -> Tensor:
        if self.quantizer is not None:
            z = self.quantizer(z)[0]
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> AutoencoderOutput:
        """One training pass; a KL latent is sampled with `noise`, float32 normals of its shape.

        Without `noise` they come from PyTorch's default generator.

        KL is summed over the latent, averaged over the batch and divided by the number of values
        of an image: beside an L1 loss averaged over those it weighs as published.
        """
        z, log_variance = self.moments(x)
        if log_variance is not None:
            mean, log_variance = z.float(), log_variance.float()
            variance = log_variance.exp()
            extra = 0.5 * (mean.square() + variance - 1.0 - log_variance).sum() / x.numel()
            noise = torch.randn_like(mean) if noise is None else noise
            z = (mean + variance.sqrt() * noise).to(z.dtype)
            return AutoencoderOutput(self.decode(z), z, extra)
        if self.quantizer is None:
            return AutoencoderOutput(self.decode(z), z, torch.zeros((), device=z.device))
        quantized, indices = self.quantizer(z)
        image = self.decoder(self.post_quant_conv(quantized))
        return AutoencoderOutput(image, z, self.quantizer.loss(z, indices))
