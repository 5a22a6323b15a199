"""Published DDGAN, WDDGAN and LDDGAN checkpoints: into our modules, and back.

Names and options are those of the published code; both follow from a network's structure, so any
configuration of it is read. Nothing in a file is run; one that was made to run code is refused.
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
            published names, with or without prefixes of DDP, `torch.compile` and others. Dicts with
            a state dict inside will do, under whatever key (Lightning's `state_dict`; `ema`,
            `model`, `generator`; `netG_dict` and `netD_dict` of the published GANs): averaged
            weights are preferred, and of a published training run those in its optimizer's state
            are taken. Objects beside the weights, losses and discriminators in an autoencoder's
            checkpoint are ignored, entries that are named in a warning.
        network: "NCSNpp" or "WaveletNCSNpp", called as `module(x, t, z)`; "Discriminator_small" or
            "Discriminator_large", called as `module(x, t, x_t)`; "AutoencoderKL" or
            "VQModelInterface", with `.encode(x)` and `.decode(z)`.
        options: the published options; missing ones take the published defaults, and options that
            do not shape a network (learning rates, say) are ignored.

    Returns:
        A `Generator`, `Discriminator` or `Autoencoder`, float32 on the CPU.

    Raises:
        FileNotFoundError: there is no such file. ValueError: the file is truncated, no checkpoint
            or made to run code; the network is unknown; an option is missing or has a value that is
            not supported; or the options contradict the weights: all names that are missing, not
            expected or of another shape are listed.
    """
    if network not in NETWORKS:
        raise ValueError(f"load_published: network must be one of {NETWORKS}, got {network!r}")
    if not isinstance(options, Mapping):
        raise TypeError(f"load_published: options must be a dict, got {type(options).__name__}")
    if network in autoencoder.NETWORKS:
        state = read_state_dict(checkpoint, autoencoder.FIRST)
        return autoencoder.load_autoencoder(state, network, options).eval()
    first, other = (
        (gan.FIRST_OF_GENERATORS, "netD_dict")
        if network in gan.GENERATORS
        else (gan.FIRST_OF_DISCRIMINATORS, "netG_dict")
    )
    state = read_state_dict(checkpoint, first, other)
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
