"""Published autoencoders, `AutoencoderKL` and `VQModelInterface`, to ours and back.

Published names are those of the latent-diffusion code base (Rombach et al. 2022), which LDDGAN
uses: `encoder.down.0.block.1.norm1.weight`, `decoder.up.2.attn.0.q.bias`, `quant_conv.weight`.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lddgan_kernels.interop.checkpoint import check_fits
from lddgan_kernels.interop.options import flag, integer, integers, number, table
from lddgan_kernels.models.autoencoder import Autoencoder, AutoencoderConfig

NETWORKS = ("AutoencoderKL", "VQModelInterface")

# The name by which one is found in a checkpoint.
FIRST = "encoder.conv_in.weight"

# What an autoencoder checkpoint holds beside the autoencoder.
IGNORED = (
    *("loss.", "model_ema.", "discriminator.", "perceptual_loss.", "colorize"),
    # Of quantisers: how often codes were used, averages that the codebook was made from.
    *("quantize.used", "quantize.re_embed", "quantize.remap", "quantize.embed_avg"),
    *("quantize.cluster_size", "quantize.embedding.embed_avg", "quantize.embedding.cluster_size"),
    *("quantize.N", "quantize.ema_"),
)

# Published options without a default, and the one value of others that is supported.
REQUIRED = (
    *("in_channels", "out_ch", "ch", "num_res_blocks", "attn_resolutions", "resolution"),
    "z_channels",
)
FIXED = {"resamp_with_conv": True, "use_linear_attn": False, "attn_type": "vanilla"}

# Ours -> published, in this order.
RENAMES = (
    (r"^encoder\.levels\.(\d+)\.resample\.", r"encoder.down.\1.downsample."),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.levels.\1.upsample."),
    (r"\.blocks\.(\d+)\.", r".block.\1."),
    (r"\.attention\.(\d+)\.", r".attn.\1."),
    (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."),
    (r"\.middle\.2\.", ".mid.block_2."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.out\.", ".proj_out."),
    (r"^quantizer\.codebook$", "quantize.embedding.weight"),
)


def load_autoencoder(
    state_dict: Mapping[str, Tensor], network: str, options: Mapping[str, Any]
) -> Autoencoder:
    """Our autoencoder with the weights of a published one.

    Args:
        state_dict: under the published names; all of a latent-diffusion checkpoint will do. Entries
            of losses, discriminator and averaged copies are ignored, listed in the module's
            `ignored_entries` and counted in a warning.
        network: "AutoencoderKL" or "VQModelInterface".
        options: `embed_dim`, `n_embed` (VQ) and `ddconfig`, as published; others are not needed.

    Raises:
        ValueError: an option is missing or unsupported, or the options contradict the weights: the
            message lists the entries that are missing, not expected or of another shape.
    """
    config = autoencoder_config(network, options)
    entries, ignored = _split(state_dict)
    module = Autoencoder(config)
    check_fits(network, entries, autoencoder_to_published(module))
    state = {"latent_scale": module.latent_scale}
    for name, parts in _names(module).items():
        state[name] = torch.cat([entries[part] for part in parts])
    module.load_state_dict(state)
    if ignored:
        module.ignored_entries = tuple(ignored)
        shown = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        warnings.warn(
            f"load_published: ignored {len(ignored)} entries beside the autoencoder: {shown}",
            stacklevel=2,
        )
    return module


def autoencoder_config(network: str, options: Mapping[str, Any]) -> AutoencoderConfig:
    """Our configuration for published options; missing ones take the published defaults."""
    if network not in NETWORKS:
        raise ValueError(f"load_published: network must be one of {NETWORKS}, got {network!r}")
    kl = network == "AutoencoderKL"
    _get(options, "ddconfig", network)
    dd = table(options, "ddconfig")
    for name, only in FIXED.items():
        if dd.get(name, only) != only:
            raise ValueError(f"load_published: ddconfig.{name} must be {only}, got {dd[name]}")
    if bool(dd.get("double_z", True)) != kl:
        raise ValueError(f"load_published: ddconfig.double_z must be {kl} for {network}")
    for name in REQUIRED:
        _get(dd, name, network)
    for name in ("embed_dim",) if kl else ("embed_dim", "n_embed"):
        _get(options, name, network)
    channels = integer(dd, "in_channels", 0)
    if dd["out_ch"] != channels:
        raise ValueError(
            f"load_published: ddconfig.out_ch must be in_channels ({channels}), got {dd['out_ch']}"
        )
    return AutoencoderConfig(
        image_channels=channels,
        resolution=integer(dd, "resolution", 0),
        latent_channels=integer(options, "embed_dim", 0),
        base_channels=integer(dd, "ch", 0),
        channel_multipliers=integers(dd, "ch_mult", (1, 2, 4, 8)),
        num_blocks=integer(dd, "num_res_blocks", 0),
        attention_resolutions=integers(dd, "attn_resolutions", ()),
        tanh_out=flag(dd, "tanh_out", False),
        codebook_size=0 if kl else integer(options, "n_embed", 0),
        kl=kl,
        dropout=number(dd, "dropout", 0.0),
        z_channels=integer(dd, "z_channels", 0),
    )


def infer_options(state_dict: Mapping[str, Tensor], resolution: int) -> dict[str, Any]:
    """The published options that weights tell of: all but `tanh_out` and `dropout`.

    Args:
        state_dict: as for `load_autoencoder`.
        resolution: side of the images that it is for.

    Raises:
        ValueError: it holds no such autoencoder.
    """
    own, _ = _split(state_dict)
    try:
        first, bottom = own["encoder.conv_in.weight"], own["decoder.conv_in.weight"]
        levels = 1 + max(int(m[1]) for m in _matches(r"encoder\.down\.(\d+)\.", own))
        widths = [own[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
        blocks = 1 + max(int(m[1]) for m in _matches(r"encoder\.down\.0\.block\.(\d+)\.", own))
        embed = own["post_quant_conv.weight"].shape[1]
        kl = own["encoder.conv_out.weight"].shape[0] == 2 * bottom.shape[1]
        multipliers = [width // first.shape[0] for width in widths]
        channels = first.shape[1]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            "load_published: checkpoint must hold an autoencoder of latent diffusion or taming "
            f"transformers, got one without {error}"
        ) from None
    attention = [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in own]
    options: dict[str, Any] = {
        "embed_dim": embed,
        "ddconfig": {
            "double_z": kl,
            "z_channels": bottom.shape[1],
            "resolution": resolution,
            "in_channels": channels,
            "out_ch": channels,
            "ch": first.shape[0],
            "ch_mult": multipliers,
            "num_res_blocks": blocks,
            "attn_resolutions": [resolution >> i for i in attention],
        },
    }
    if not kl and "quantize.embedding.weight" in own:
        options["n_embed"] = len(own["quantize.embedding.weight"])
    return options


def _matches(pattern: str, names: Mapping[str, Tensor]) -> list[re.Match[str]]:
    return [found for name in names if (found := re.match(pattern, name))]


def autoencoder_options(config: AutoencoderConfig) -> dict[str, Any]:
    """The published options of one of our autoencoders: the inverse of `autoencoder_config`."""
    if config.bounded_latent:
        raise ValueError("to_published: bounded_latent must be False, got True")
    if config.kind != "vqgan":
        raise ValueError(f"to_published: kind must be vqgan, got {config.kind}")
    latent = config.latent_channels
    options: dict[str, Any] = {
        "embed_dim": latent,
        "ddconfig": {
            "double_z": config.kl,
            "z_channels": latent if config.z_channels is None else config.z_channels,
            "resolution": config.resolution,
            "in_channels": config.image_channels,
            "out_ch": config.image_channels,
            "ch": config.base_channels,
            "ch_mult": list(config.channel_multipliers),
            "num_res_blocks": config.num_blocks,
            "attn_resolutions": list(config.attention_resolutions),
            "dropout": config.dropout,
            "tanh_out": config.tanh_out,
        },
    }
    if config.codebook_size:
        options["n_embed"] = config.codebook_size
    return options


def autoencoder_to_published(module: Autoencoder) -> dict[str, Tensor]:
    """The module's weights under the published names, without its latent scale."""
    state = module.state_dict()
    result: dict[str, Tensor] = {}
    for name, parts in _names(module).items():
        result.update(zip(parts, state[name].chunk(len(parts)), strict=True))
    return result


def _names(module: Autoencoder) -> dict[str, tuple[str, ...]]:
    """Our names -> the published ones; three for a joint projection to q, k and v."""
    levels = len(module.config.channel_multipliers)
    result = {}
    for ours in module.state_dict():
        if ours == "latent_scale":
            continue
        name = ours
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        # The published decoder counts its levels from the finest.
        name = re.sub(
            r"^decoder\.levels\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name
        )
        joint = ".qkv." in name
        result[ours] = tuple(name.replace("qkv", part) for part in "qkv") if joint else (name,)
    return result


def _split(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(the autoencoder's own entries, the names of the others)."""
    prefix = "first_stage_model."
    if not any(name.startswith(prefix) for name in state_dict):
        prefix = ""
    own: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, value in state_dict.items():
        short = name.removeprefix(prefix)
        if not name.startswith(prefix) or short.startswith(IGNORED):
            ignored.append(name)
        else:
            own[short] = value
    return own, ignored


def _get(options: Mapping[str, Any], name: str, network: str) -> Any:
    if name not in options:
        raise ValueError(f"load_published: options of {network} must hold {name}")
    return options[name]
