"""Published DDGAN, WDDGAN and LDDGAN checkpoints: into our modules, and back.

Names and options are those of the published code; both follow from a network's structure, so any
configuration of it is read. Weights only: a file that could run code is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lddgan_kernels.interop import autoencoder, gan
from lddgan_kernels.interop.checkpoint import read_state_dict
from lddgan_kernels.models import Autoencoder, Discriminator, Generator

NETWORKS = (
    *gan.GENERATORS,
    *gan.DISCRIMINATORS,
    *autoencoder.NETWORKS,
)


def load_published(
    checkpoint: str | Path | Mapping[str, Any], network: str, options: Mapping[str, Any]
) -> nn.Module:
    """Our module with the weights of a published network, in evaluation mode.

    Args:
        checkpoint: a path (`.safetensors`, or a file of `torch.save`), or a state dict under the
            published names, with or without the `module.` prefix of DDP. A training run's
            checkpoint with a state dict inside (Lightning's `state_dict`; `netG_dict` and
            `netD_dict` of the published GANs) will do. Losses and discriminators in an
            autoencoder's checkpoint are ignored, and named in a warning.
        network: "NCSNpp" or "WaveletNCSNpp", called as `module(x, t, z)`; "Discriminator_small" or
            "Discriminator_large", called as `module(x, t, x_t)`; "AutoencoderKL" or
            "VQModelInterface", with `.encode(x)` and `.decode(z)`.
        options: the published options; missing ones take the published defaults, and options that
            do not shape a network (learning rates, say) are ignored.

    Returns:
        A `Generator`, `Discriminator` or `Autoencoder`, float32 on the CPU.

    Raises:
        FileNotFoundError: there is no such file. ValueError: the file is truncated, no checkpoint
            or not weights only; the network is unknown; an option is missing or has a value that is
            not supported; or the options contradict the weights: all names that are missing, not
            expected or of another shape are listed.
    """
    if network not in NETWORKS:
        raise ValueError(f"load_published: network must be one of {NETWORKS}, got {network!r}")
    if not isinstance(options, Mapping):
        raise TypeError(f"load_published: options must be a dict, got {type(options).__name__}")
    state = read_state_dict(checkpoint, discriminator=network in gan.DISCRIMINATORS)
    if network in autoencoder.NETWORKS:
        return autoencoder.load_autoencoder(state, network, options).eval()
    module: Generator | Discriminator
    if network in gan.GENERATORS:
        kind = gan.GENERATORS[network]
        module = kind(gan.generator_config(options, state))
    else:
        module = Discriminator(gan.discriminator_config(network, options, state))
    gan.fill(module, state, network)
    return module.eval()


def to_published(module: nn.Module) -> dict[str, Tensor]:
    """The weights of one of our modules under the published names.

    Args:
        module: a `Generator`, `Discriminator` or `Autoencoder` (without its latent scale).

    Raises:
        TypeError: the module has no published counterpart.
    """
    if isinstance(module, Autoencoder):
        return autoencoder.autoencoder_to_published(module)
    if isinstance(module, Generator | Discriminator):
        return gan.published_state_dict(module)
    raise TypeError(
        "to_published: module must be a Generator, Discriminator or Autoencoder, "
        f"got {type(module).__name__}"
    )
