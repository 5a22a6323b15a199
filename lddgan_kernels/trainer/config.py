"""What a run is: one tree of frozen dataclasses, the same in TOML, on the command line and in code.

A system is a method and a codec: of the diffusion GANs "autoencoder" makes LDDGAN, "none" DDGAN and
"haar" WDDGAN; "ddpm" is latent diffusion with the first, DDPM with the second. The networks'
options are those of `models`. Annotations hold the valid ranges; `config_file.check`
enforces them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lddgan_kernels._options import Count, Fraction, NonNegative, Range, Whole
from lddgan_kernels.diffusion import SamplerName
from lddgan_kernels.models import (
    AutoencoderOptions,
    CommonOptions,
    DiscriminatorOptions,
    UNetOptions,
    ViTOptions,
)

MOST_CLASSES = 2**16


@dataclass(frozen=True)
class Images:
    """The training images."""

    resolution: Count = 32
    """Side in pixels: larger images are cropped and resized."""
    enlarge: bool = False
    """Use smaller images too, enlarged; else they are skipped."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    flip: bool = True
    """Mirror half of the images left to right; not for digits or text."""
    workers: Whole = 0
    """Processes that decode images."""


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
    kl_weight: NonNegative = 1e-6
    """Of the KL term of a `kl` autoencoder; a VAE that is sampled needs far more."""
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
    beta_min: NonNegative = 0.1
    """Noise added per unit of time at its beginning."""
    beta_max: NonNegative = 20.0
    """And at its end."""


@dataclass(frozen=True)
class GeneratorOptions(CommonOptions, UNetOptions):
    """The generator; its channels and resolution follow from the codec. The kind "vit" takes its
    other options from [vit]."""

    kind: Literal["ncsnpp", "wavelet", "vit"] = "ncsnpp"
    """NCSN++ with FIR resampling, WDDGAN's with wavelets, or the transformer of [vit]."""


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
    """Reconstruction loss of the generator: by Weighted Learning, of constant weight, or none."""
    reconstruction_weight: NonNegative = 1.0
    """Weight of the reconstruction loss; Weighted Learning's is multiplied by it."""
    squared_from: Whole | None = None
    """Step t from which on the reconstruction loss is the squared difference, which covers rare
    images better, in place of the absolute one; left out: nowhere, as published."""
    delta: NonNegative = 6.0
    """Weighted Learning: its weight falls from sigmoid(delta) to sigmoid(-delta)."""


@dataclass(frozen=True)
class DdpmTraining:
    """Training and sampling of a network that predicts noise."""

    num_steps: Annotated[int, Range(1, 1000)] = 1000
    """N, the steps that the diffusion is cut into."""
    sampler: SamplerName = "ddim"
    """How it samples: ddpm, ddim, heun (probability-flow ODE) or dpm++ (DPM-Solver++ 2M)."""
    sample_steps: Count = 50
    """Steps of the sampler; heun calls the network twice in each but the last."""
    epochs: Count = 400
    """Passes over the training set."""
    batch_size: Count = 128
    """Images an update, over all processes."""
    lr: NonNegative = 2e-4
    """Learning rate."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """How it goes; cosine ends at zero."""
    ema_decay: Fraction = 0.9999
    """Of the average of the network's weights that samples."""


@dataclass(frozen=True)
class Start:
    """What a run begins with, instead of new networks."""

    autoencoder: str | None = None
    """A trained autoencoder, which is not trained again: a run, a folder of diffusers
    (AutoencoderKL, VQModel or AutoencoderTiny), or a checkpoint of latent diffusion, taming or
    LDDGAN. Its structure takes the place of [autoencoder]."""
    autoencoder_options: str | None = None
    """The published options of such a checkpoint, .json or .toml; left out: those that its weights
    tell, without tanh_out."""
    init_from: str | None = None
    """Generator and discriminator to train on: a run, or a checkpoint of DDGAN, WDDGAN or LDDGAN.
    What does not fit is named and starts fresh."""
    init_discriminator: str | None = None
    """The discriminator's checkpoint, where it is another file."""
    latent_scale: NonNegative | None = None
    """By which latents are divided: the scale_factor of a published LDDGAN that is trained on; left
    out: that of the run that is, or the largest latent measured."""


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
    """Samples that are scored: by score_every, and at the end where the data set has a score."""
    score_every: Whole = 0
    """Steps between scores of samples against the training set; the generator with the least
    Frechet distance is kept as best.safetensors. 0: none."""
    features: str | None = None
    """Feature network of score_every, as for evaluate; the digits need none."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs tensorboard)."""


@dataclass(frozen=True)
class Config:
    """A run."""

    data: str | None = None
    """Folder, archive or array of images (see `data.open_images`); left out: embedded digits."""
    limit: Count | None = None
    """At most this many images."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Decides all that is random: on a CPU the same seed gives the same losses, bit for bit."""
    method: Literal["gan", "ddpm", "vae"] = "gan"
    """What learns to sample: a diffusion GAN, a network that predicts noise, or nothing beside the
    KL autoencoder, which then decodes draws from its prior."""
    codec: Literal["autoencoder", "haar", "none"] = "autoencoder"
    """What it works on: an autoencoder's latents, wavelet bands or pixels."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast, weights stay float32; auto takes it where the device multiplies it."""
    channels_last: bool = False
    """Memory layout of images and convolution weights."""
    cuda_graphs: bool = True
    """Replay the GAN's step as a CUDA graph, on one GPU."""
    labels: bool = False
    """Learn the images' classes, to draw one that is asked for: the labels of the data set, or the
    folders that the images lie in."""
    classes: Annotated[int, Range(0, MOST_CLASSES)] = 0
    """With labels, their number; 0: up to the largest label of the data set."""
    label_dropout: Fraction = 0.1
    """Share of the images that are learned without their label, which guidance needs."""
    images: Images = field(default_factory=Images)
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    diffusion: Diffusion = field(default_factory=Diffusion)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    vit: ViTOptions = field(default_factory=ViTOptions)
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    gan: GanTraining = field(default_factory=GanTraining)
    ddpm: DdpmTraining = field(default_factory=DdpmTraining)
    start: Start = field(default_factory=Start)
    log: Log = field(default_factory=Log)

    @property
    def training(self) -> GanTraining | DdpmTraining:
        """The training of what samples."""
        return self.ddpm if self.method == "ddpm" else self.gan
