"""What all generators have in common."""

from dataclasses import dataclass, field

from lddgan_kernels._options import Count, Whole


@dataclass(frozen=True)
class LatentShape:
    """What a generator maps from and to; follows from the images and the codec."""

    channels: Count
    """Channels of x and of the output."""
    resolution: Count
    """Height and width of x."""
    classes: Whole = field(default=0, kw_only=True)
    """Classes that can be asked for; 0: none."""


@dataclass(frozen=True)
class CommonOptions:
    """Options of any generator."""

    z_dim: Whole = 25
    """Width of the latent z; 0: none, as for a network that predicts noise."""
    mapping_layers: Whole = 4
    """Linear layers of the mapping network after its first."""
    mapping_width: Count = 256
    """Width of the mapping network."""
    tanh_out: bool = True
    """Whether the output passes a tanh."""
    patch_size: Count = 1
    """Patches of this side become channels, or the transformer's tokens."""
