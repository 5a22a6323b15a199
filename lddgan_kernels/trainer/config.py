"""What a run is: one tree of frozen dataclasses, the same in TOML, on the command line and in code.

A system is a preset and a codec: "autoencoder" makes LDDGAN, "none" DDGAN, "haar" WDDGAN. The
annotations hold the valid ranges; `config_file.check` enforces them.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple


class Range(NamedTuple):
    """Inclusive bounds of a number, in an annotation."""

    low: float
    high: float = math.inf


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]


@dataclass(frozen=True)
class Images:
    """The training images."""

    resolution: Count = 32
    """Side in pixels: larger images are cropped and resized."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    flip: bool = True
    """Mirror half of the images left to right; not for digits or text."""
    workers: Whole = 0
    """Processes that decode images."""


@dataclass(frozen=True)
class AutoencoderModel:
    """The autoencoder, for the codec "autoencoder"."""

    latent_channels: Count = 4
    """Channels of the latent; its side is the image's over 2^(levels - 1)."""
    base_channels: Count = 128
    """Width of the finest level."""
    channel_multipliers: tuple[Count, ...] = (1, 2)
    """Each level's width over base_channels, finest first."""
    num_blocks: Count = 2
    """Residual blocks a level."""
    attention_resolutions: tuple[Count, ...] = ()
    """Resolutions whose blocks are followed by attention."""
    tanh_out: bool = False
    """Whether the image passes a tanh."""
    codebook_size: Whole = 8192
    """Codes of the quantiser inside the decoder; 0: none."""
    kl: bool = False
    """A Gaussian latent with a KL penalty instead; needs codebook_size 0."""
    bounded_latent: bool = False
    """Whether the latent is normalised and passes a tanh: then it fills [-1, 1]."""


@dataclass(frozen=True)
class AutoencoderTraining:
    """Training of the autoencoder."""

    steps: Count = 100_000
    """Updates."""
    batch_size: Count = 32
    """Images an update, over all processes."""
    lr_per_sample: NonNegative = 4.5e-6
    """Learning rate over batch size."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes; cosine ends at zero."""
    gan_start: Whole | None = None
    """The first step of the patch discriminator; leave out for none."""
    lpips_backbone: str | None = None
    """Perceptual loss from 64 px on: "vgg16" or "alexnet" (fetched), or a weight file."""
    lpips_linear: str | None = None
    """The file of LPIPS's linear layers, beside a lpips_backbone file."""


@dataclass(frozen=True)
class Diffusion:
    """The diffusion process."""

    num_steps: Annotated[int, Range(1, 8)] = 4
    """T, the generator's calls for a sample; 1 makes a one-shot GAN."""


@dataclass(frozen=True)
class GeneratorModel:
    """The generator; its channels and resolution follow from the codec."""

    kind: Literal["ncsnpp", "wavelet", "vit"] = "ncsnpp"
    """NCSN++ with FIR resampling, WDDGAN's with wavelets, or the transformer of [vit]."""
    patch_size: Count = 1
    """Patches of this side become channels, or the transformer's tokens."""
    base_channels: Count = 128
    """Width of the finest level."""
    channel_multipliers: tuple[Count, ...] = (1, 2, 2)
    """Each level's width over base_channels, finest first."""
    num_blocks: Count = 2
    """Residual blocks a level on the way down; one more on the way up."""
    attention_resolutions: tuple[Count, ...] = ()
    """Resolutions with attention; the middle always has it."""
    z_dim: Count = 25
    """Width of the latent z."""
    mapping_layers: Whole = 4
    """Linear layers of the mapping network after its first."""
    mapping_width: Count = 256
    """Width of the mapping network."""
    dropout: Fraction = 0.0
    """In the residual blocks."""
    tanh_out: bool = True
    """Whether the output passes a tanh."""


@dataclass(frozen=True)
class ViTModel:
    """The generator of kind "vit"; of the generator's fields it uses patch_size, z_dim, mapping_*
    and tanh_out."""

    width: Count = 512
    """Channels of a token."""
    depth: Count = 5
    """Blocks; odd."""
    num_heads: Count = 8
    """Heads of attention."""
    mlp_width: Count = 1920
    """Hidden width of the blocks' second halves."""


@dataclass(frozen=True)
class DiscriminatorModel:
    """The discriminator."""

    kind: Literal["small", "large"] = "small"
    """Small keeps the resolution in its first block, large halves it in every one."""
    base_channels: Count = 64
    """The stem has twice as many channels, the deepest blocks 8 times."""
    time_embedding: Count = 128
    """Width of the time embedding."""
    num_blocks: Count = 3
    """Residual blocks: 3 or 4 (small), 3 to 6 (large)."""


@dataclass(frozen=True)
class GanTraining:
    """Training of the GAN."""

    epochs: Count = 400
    """Passes over the training set."""
    batch_size: Count = 128
    """Images an update, over all processes."""
    accumulate: Count = 1
    """Parts that a process's share of the batch is computed in, to save memory."""
    lr_generator: NonNegative = 2e-4
    """Learning rate of the generator."""
    lr_discriminator: NonNegative = 1e-4
    """Learning rate of the discriminator."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """How both learning rates go; cosine ends at zero."""
    ema_decay: Fraction = 0.999
    """Of the average of the generator's weights that samples."""
    r1_gamma: NonNegative = 1.0
    """Weight of the gradient penalty; 0: none."""
    r1_every: Count = 10
    """Steps between two gradient penalties."""
    reconstruction: Literal["weighted", "constant", "none"] = "weighted"
    """L1 loss of the generator: Weighted Learning, weight 1, or none."""
    delta: NonNegative = 6.0
    """Weighted Learning: its weight falls from sigmoid(delta) to sigmoid(-delta)."""


@dataclass(frozen=True)
class Log:
    """What is written, and how often."""

    every: Count = 50
    """Steps between lines of the log."""
    sample_every: Count = 1000
    """Steps between sample grids."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    grid: Count = 64
    """Samples in a grid."""
    scored: Whole = 1000
    """Samples that are scored at the end, where the data set has a score."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs tensorboard)."""


@dataclass(frozen=True)
class Config:
    """A run."""

    data: str | None = None
    """Folder, zip, .npz, LMDB, CIFAR-10 archive, or "cifar10"; left out: the embedded digits."""
    limit: Count | None = None
    """At most this many images."""
    seed: Whole = 0
    """Decides all that is random: on a CPU the same seed gives the same losses, bit for bit."""
    codec: Literal["autoencoder", "haar", "none"] = "autoencoder"
    """What the GAN works on: an autoencoder's latents, wavelet bands or pixels."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast, weights stay float32; auto takes it where the device multiplies it."""
    channels_last: bool = False
    """Memory layout of images and convolution weights."""
    images: Images = field(default_factory=Images)
    autoencoder: AutoencoderModel = field(default_factory=AutoencoderModel)
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    diffusion: Diffusion = field(default_factory=Diffusion)
    generator: GeneratorModel = field(default_factory=GeneratorModel)
    vit: ViTModel = field(default_factory=ViTModel)
    discriminator: DiscriminatorModel = field(default_factory=DiscriminatorModel)
    gan: GanTraining = field(default_factory=GanTraining)
    log: Log = field(default_factory=Log)
