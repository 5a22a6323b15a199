"""Autoencoders in the folder format of diffusers: `config.json` beside safetensors.

`AutoencoderKL` and `VQModel` are the networks of latent diffusion under other names, to which
theirs are translated here; `AutoencoderTiny` (TAESD) has the names of our own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lddgan_kernels.interop.autoencoder import load_autoencoder
from lddgan_kernels.interop.checkpoint import read_state_dict
from lddgan_kernels.interop.options import integer, integers, names
from lddgan_kernels.models import Autoencoder, AutoencoderConfig
from lddgan_kernels.nn import largest_group_count

FAMILIES = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model"

# What must be as it is in latent diffusion, where the configuration names it.
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "norm_type": "group",
    "lookup_from_codebook": False,
}
FIXED_TINY: dict[str, Any] = {
    "act_fn": "relu",
    "upsampling_scaling_factor": 2,
    "upsample_fn": "nearest",
}

# diffusers -> latent diffusion, in this order.
RENAMES = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"^encoder\.down_blocks\.", "encoder.down."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_)?(q|k|v)(?:uery|ey|alue)?\.(weight|bias)$", r".\1.\2"),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
)


def load_diffusers(folder: Path, resolution: int) -> Autoencoder:
    """The autoencoder of a folder, in evaluation mode.

    Args:
        folder: with `config.json` and a safetensors file.
        resolution: side of the images that it is for.

    Raises:
        ValueError, FileNotFoundError: it is of another family, has what ours have not, or its
            weights are missing or do not fit its configuration.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config.get("_class_name")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"load_diffusers: {folder}/config.json cannot be read: {error}") from None
    if family not in FAMILIES:
        raise ValueError(
            f"load_diffusers: {folder} must hold one of {', '.join(FAMILIES)}, got {family}"
        )
    for name, only in (FIXED_TINY if family == "AutoencoderTiny" else FIXED).items():
        if config.get(name, only) != only:
            raise _unlike(folder, name, only, config[name])
    if family == "AutoencoderTiny":
        return _tiny(folder, config, resolution)
    options = _published_options(folder, config, family == "AutoencoderKL", resolution)
    state = _published_names(_weights(folder, "encoder.conv_in.weight"), options)
    network = "AutoencoderKL" if family == "AutoencoderKL" else "VQModelInterface"
    return load_autoencoder(state, network, options).eval()


def _published_options(
    folder: Path, config: Mapping[str, Any], kl: bool, resolution: int
) -> dict[str, Any]:
    """The options of latent diffusion for a configuration of diffusers."""
    widths = integers(config, "block_out_channels", (64,))
    if not widths:
        raise _unlike(folder, "block_out_channels", "one or more", list(widths))
    groups = integer(config, "norm_num_groups", 32)
    for width in widths:
        if largest_group_count(width) != groups:
            raise _unlike(folder, "norm_num_groups", largest_group_count(width), groups)
        if width % widths[0]:
            raise _unlike(folder, "block_out_channels", "multiples of the first", list(widths))
    down, up = (names(config, f"{side}_block_types") for side in ("down", "up"))
    plain = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
    plain |= {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
    if any(kind not in plain for kind in (*down, *up)) or len(down) != len(widths):
        raise _unlike(folder, "block types", "(Attn)Down- and (Attn)UpBlocks", [*down, *up])
    attention = [plain[kind] for kind in down]
    if attention != [plain[kind] for kind in reversed(up)]:
        raise _unlike(folder, "up_block_types", "attentive where down_block_types are", list(up))
    latent = integer(config, "latent_channels", 4 if kl else 3)
    options: dict[str, Any] = {
        "embed_dim": latent,
        "ddconfig": {
            "double_z": kl,
            "z_channels": latent,
            "resolution": resolution,
            "in_channels": integer(config, "in_channels", 3),
            "out_ch": integer(config, "out_channels", 3),
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": integer(config, "layers_per_block", 1),
            "attn_resolutions": [resolution >> i for i, has in enumerate(attention) if has],
        },
    }
    if not kl:
        options["n_embed"] = integer(config, "num_vq_embeddings", 256)
        if config.get("vq_embed_dim") is not None:
            options["embed_dim"] = integer(config, "vq_embed_dim", latent)
    return options


def _published_names(state: Mapping[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    levels = len(options["ddconfig"]["ch_mult"])
    found = {}
    for name, value in state.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(
            r"^decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name
        )
        if re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", name) and value.ndim == 2:
            value = value[:, :, None, None]  # a linear layer there, a 1x1 convolution here
        found[name] = value.float()
    for name, factor in (
        ("quant_conv", 1 + options["ddconfig"]["double_z"]),
        ("post_quant_conv", 1),
    ):
        if f"{name}.weight" not in found:  # none there
            width = factor * options["embed_dim"]
            found[f"{name}.weight"] = torch.eye(width)[:, :, None, None]
            found[f"{name}.bias"] = torch.zeros(width)
    return found


def _tiny(folder: Path, config: Mapping[str, Any], resolution: int) -> Autoencoder:
    """TAESD's networks, whose levels must all have one width and as many blocks."""
    down = integers(config, "num_encoder_blocks", (1, 3, 3, 3))
    up = integers(config, "num_decoder_blocks", (3, 3, 3, 1))
    widths = integers(config, "encoder_block_out_channels", (64, 64, 64, 64))
    widths += integers(config, "decoder_block_out_channels", (64, 64, 64, 64))
    if (
        (down[:1], up[-1:]) != ((1,), (1,))
        or len({*down[1:], *up[:-1]}) != 1
        or len(down) != len(up)
    ):
        raise _unlike(folder, "num_encoder_blocks", "1, n, n, ...", [list(down), list(up)])
    if len(set(widths)) != 1:
        raise _unlike(folder, "encoder_block_out_channels", "all the same", list(widths))
    module = Autoencoder(
        AutoencoderConfig(
            kind="tiny",
            image_channels=integer(config, "in_channels", 3),
            resolution=resolution,
            latent_channels=integer(config, "latent_channels", 4),
            base_channels=widths[0],
            channel_multipliers=(1,) * len(down),
            num_blocks=down[-1],
            codebook_size=0,
        )
    )
    state = _weights(folder, "encoder.layers.0.weight")
    try:
        module.load_state_dict(state | {"latent_scale": module.latent_scale})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"load_diffusers: weights of {folder} must fit it: {reason}") from None
    return module.eval()


def _weights(folder: Path, first: str) -> dict[str, Tensor]:
    found = sorted(folder.glob("*.safetensors"))
    named = [path for path in found if path.name == f"{WEIGHTS}.safetensors"] or found[:1]
    if not named:
        raise FileNotFoundError(f"load_diffusers: {folder} must hold {WEIGHTS}.safetensors")
    return read_state_dict(named[0], first)


def _unlike(folder: Path, name: str, expected: object, actual: object) -> ValueError:
    return ValueError(f"load_diffusers: {name} of {folder} must be {expected}, got {actual}")
