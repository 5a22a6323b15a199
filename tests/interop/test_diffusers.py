"""Autoencoders of diffusers: made by it where it is installed, and folders written by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lddgan_kernels.interop import load_diffusers
from lddgan_kernels.interop.autoencoder import autoencoder_to_published
from lddgan_kernels.models import Autoencoder, AutoencoderConfig

KL = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
}
VQ = KL | {
    "_class_name": "VQModel",
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "num_vq_embeddings": 16,
    "vq_embed_dim": 3,
}
TINY = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 2, 2],
    "num_decoder_blocks": [2, 2, 1],
}
BARE = {"use_quant_conv": False, "use_post_quant_conv": False}


def ours(config):
    """The structure that a folder's configuration stands for."""
    if config["_class_name"] == "AutoencoderTiny":
        return AutoencoderConfig(
            kind="tiny", resolution=16, base_channels=8, channel_multipliers=(1, 1, 1),
            num_blocks=2, codebook_size=0,
        )  # fmt: skip
    kl = config["_class_name"] == "AutoencoderKL"
    return AutoencoderConfig(
        resolution=16, base_channels=32, num_blocks=1, kl=kl, codebook_size=0 if kl else 16,
        latent_channels=4 if kl else 3, z_channels=4, attention_resolutions=() if kl else (8,),
    )  # fmt: skip


# A layer of ours under its published name, and of diffusers.
PLACES = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down.0.block.0": "encoder.down_blocks.0.resnets.0",
    "encoder.down.0.downsample.conv": "encoder.down_blocks.0.downsamplers.0.conv",
    "encoder.down.1.block.0": "encoder.down_blocks.1.resnets.0",
    "encoder.down.1.attn.0": "encoder.down_blocks.1.attentions.0",
    "encoder.mid.block_1": "encoder.mid_block.resnets.0",
    "encoder.mid.attn_1": "encoder.mid_block.attentions.0",
    "encoder.mid.block_2": "encoder.mid_block.resnets.1",
    "encoder.norm_out": "encoder.conv_norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "quant_conv": "quant_conv",
    "quantize.embedding": "quantize.embedding",
    "post_quant_conv": "post_quant_conv",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.mid.block_1": "decoder.mid_block.resnets.0",
    "decoder.mid.attn_1": "decoder.mid_block.attentions.0",
    "decoder.mid.block_2": "decoder.mid_block.resnets.1",
    "decoder.up.1.block.0": "decoder.up_blocks.0.resnets.0",
    "decoder.up.1.block.1": "decoder.up_blocks.0.resnets.1",
    "decoder.up.1.attn.0": "decoder.up_blocks.0.attentions.0",
    "decoder.up.1.attn.1": "decoder.up_blocks.0.attentions.1",
    "decoder.up.1.upsample.conv": "decoder.up_blocks.0.upsamplers.0.conv",
    "decoder.up.0.block.0": "decoder.up_blocks.1.resnets.0",
    "decoder.up.0.block.1": "decoder.up_blocks.1.resnets.1",
    "decoder.norm_out": "decoder.conv_norm_out",
    "decoder.conv_out": "decoder.conv_out",
}
IN_BLOCK = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
IN_BLOCK["nin_shortcut"] = "conv_shortcut"
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def write(folder, config):
    """A folder of diffusers with random weights, and our autoencoder with the same."""
    torch.manual_seed(0)
    module = Autoencoder(ours(config)).eval()
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if module.config.kind == "tiny":
        state = {n: v for n, v in module.state_dict().items() if n != "latent_scale"}
    else:
        state = {}
        for name, value in autoencoder_to_published(module).items():
            layer, kind = name.rsplit(".", 1)
            if layer not in PLACES:
                layer, part = layer.rsplit(".", 1)
                part = IN_BLOCK.get(part) or ATTENTION[part]
                kind = f"{part}.{kind}"
                if value.ndim == 4 and "to_" in part:
                    value = value[:, :, 0, 0]
            state[f"{PLACES[layer]}.{kind}"] = value.contiguous()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return module


@torch.no_grad()
@pytest.mark.parametrize("config", [KL, VQ, TINY], ids=["kl", "vq", "tiny"])
def test_a_folder_written_by_hand(tmp_path, config):
    module = write(tmp_path, config)
    loaded = load_diffusers(tmp_path, 16)
    assert loaded.config == module.config
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert loaded.encode(x).equal(module.encode(x))
    z = module.encode(x)
    assert loaded.decode(z).equal(module.decode(z))


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "more"),
    [(KL, {}), (KL, BARE), (VQ, {}), (TINY, {})],
    ids=["kl", "bare", "vq", "tiny"],
)
def test_an_autoencoder_that_diffusers_made(tmp_path, config, more):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    given = {name: value for name, value in (config | more).items() if name != "_class_name"}
    theirs = getattr(diffusers, config["_class_name"])(**given).eval()
    theirs.save_pretrained(tmp_path)
    loaded = load_diffusers(tmp_path, 16)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    found = theirs.encode(x)
    z = found.latent_dist.mean if config is KL else found.latents
    torch.testing.assert_close(loaded.encode(x), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.decode(z), theirs.decode(z).sample, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"_class_name": "AutoencoderDC"},
            "must hold one of AutoencoderKL, VQModel.*AutoencoderDC",
        ),
        ({"_class_name": None}, "must hold one of .* got None"),
        ({"norm_num_groups": 16}, "norm_num_groups of .* must be 32, got 16"),
        ({"act_fn": "relu"}, "act_fn of .* must be silu, got relu"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention of .* must be True"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "block types of .* got"),
        ({"down_block_types": 3}, "down_block_types must be a list of names, got 3"),
        ({"up_block_types": [["UpDecoderBlock2D"]] * 2}, "up_block_types must be a list of names"),
        ({"block_out_channels": []}, "block_out_channels of .* must be one or more"),
        ({"block_out_channels": [True, 64]}, "block_out_channels must be a list of integers"),
        (TINY | {"num_encoder_blocks": []}, "num_encoder_blocks of .* must be 1, n, n"),
        ({"layers_per_block": 2}, r"(?s)do not fit AutoencoderKL .*missing"),
    ],
)
def test_what_is_no_autoencoder_of_ours_is_named(tmp_path, changes, reason):
    write(tmp_path, KL)
    (tmp_path / "config.json").write_text(json.dumps(KL | changes))
    with pytest.raises(ValueError, match=reason):
        load_diffusers(tmp_path, 16)


def test_missing_weights_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(KL))
    with pytest.raises(FileNotFoundError, match="must hold diffusion_pytorch_model.safetensors"):
        load_diffusers(tmp_path, 16)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        load_diffusers(tmp_path, 16)
